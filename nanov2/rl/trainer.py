"""The loops of a training phase: supervised, and GRPO. Both continue where a checkpoint left off.

Everything random at step t is drawn from (seed, phase, t), so weights, optimiser, step and cursor are
all the state there is, and N steps, a stop and N more are bitwise 2N steps on one device (C14).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import torch

from nanov2.distributed.ranks import Ranks, derive_rng, derive_seed
from nanov2.distributed.safety import CleanStop, Guard, usable
from nanov2.distributed.sharding import in_step
from nanov2.kernels.logprob import linear_logprob
from nanov2.model.decoder import Model
from nanov2.model.deepseek import balance
from nanov2.model.packing import Pack, collate, micro_batches
from nanov2.model.sampler import Tokenizer
from nanov2.rl.config import BaseConfig, GRPOConfig
from nanov2.rl.grpo import Clock, Group, Task, rollout_groups, schedule, train_on_groups
from nanov2.rl.logs import Log
from nanov2.rl.state import Phase, judges_of

Metrics = dict[str, dict]  # name → {"value", "n", "low", "high"}
MICRO_TOKENS = 1024  # of a supervised micro-batch: small ones stay in the processor's cache


def _text(tokenizer: Tokenizer, pack: Pack) -> str:
    return tokenizer.decode(pack.prompt + [i for c in pack.completions for i in c.ids])


def supervised_loss(
    model: Model, packs: list[Pack], tokenizer: Tokenizer, denominator: float, backward: bool
):
    """Sum of −log p over counted tokens / denominator, micro-batch by micro-batch; accumulates gradients."""
    total = 0.0
    for part in in_step(model, micro_batches(packs, MICRO_TOKENS)):
        batch = collate(part).to(model.output_weight.device)
        hidden = model(batch.layout)[batch.at[batch.counted]]
        logp = linear_logprob(hidden, model.output_weight, batch.target[batch.counted])
        loss = -logp.sum() / denominator
        if backward:
            loss.backward()
        total += loss.item()
    return total


def counted_tokens(packs: list[Pack]) -> int:
    return sum(sum(c.counted) for pack in packs for c in pack.completions)


def train_supervised(
    folder: Path,
    name: str,
    model: Model,
    tokenizer: Tokenizer,
    draw: Callable[[int, int], Pack],
    config: BaseConfig,
    ranks: Ranks,
    measure: Callable[[Model, int], Metrics],
) -> list[dict]:
    """Train on `draw(step, i)`, i < batch. Returns the curve of `measure` every `eval_every` steps."""
    phase = Phase(folder, model, config, ranks)
    start, curve, extra = phase.resume()
    log = Log(folder, name, ranks, start, config.steps)
    clock = Clock()
    stop, guard = CleanStop(ranks), Guard(folder, config.max_skipped, ranks)
    guard.in_a_row = extra.get("skipped_in_a_row", 0)
    for step in stop.until(start, config.steps):
        _set_lr(phase.optimizer, config.lr * schedule(step, config.steps, config.warmup, config.decay, 0.05))
        packs = [draw(step, i) for i in ranks.mine(list(range(config.batch)))]
        tokens = ranks.sum({"tokens": counted_tokens(packs)})["tokens"]
        clock.lap("data")
        loss = supervised_loss(phase.model, packs, tokenizer, tokens, backward=True)
        loss = ranks.sum({"loss": loss})["loss"]
        norm = _descend(phase.model, phase.optimizer, config, ranks)
        guard.step(step, norm is None, lambda packs=packs: [_text(tokenizer, p) for p in packs])
        clock.lap("train")
        if (step + 1) % config.eval_every == 0 and step + 1 < config.steps:
            with phase.whole():
                curve.append({"step": step + 1, **measure(model, step + 1)})
            log.metrics(step + 1, curve[-1] | {"step": {"value": step + 1}})
            clock.lap("eval")
        figures = {"tokens": tokens, "skipped": float(norm is None), "seconds": dict(clock.seconds)}
        log.step(step, figures if norm is None else {"loss": loss, "grad_norm": norm} | figures)
        clock.seconds.clear()
        phase.save(step, stop.now(), {"curve": curve, "skipped_in_a_row": guard.in_a_row})
    phase.end()
    log.close()
    stop.finish(name)
    return curve


def train_grpo(
    folder: Path,
    name: str,
    model: Model,
    tokenizer: Tokenizer,
    task: Task,
    items: list,
    config: GRPOConfig,
    ranks: Ranks,
    seed: int,
    measure: Callable[[Model, int], Metrics],
    keep_best: str = "",
) -> tuple[list[dict], list[str]]:
    """GRPO over `items`. Returns the validation curve and notes on what happened.

    `keep_best` names a validation metric (the expert's, never the judge's): the weights that did best on
    it are kept beside the newest; they are put back at the end where the newest are more than 0.02 below
    them, and at once, ending the phase, where `validation/hacking_gap` passes `config.max_gap`.
    """
    reference = copy.deepcopy(model).eval().requires_grad_(False) if config.kl_coef else None
    phase = Phase(folder, model, config, ranks, judges_of(task), reference)
    start, curve, extra = phase.resume()
    stream = Stream(items, seed, extra.get("cursor", 0))
    best, notes = extra.get("best", -math.inf), extra.get("notes", [])
    log = Log(folder, name, ranks, start, config.steps)
    clock = Clock()

    if not curve:
        with phase.whole():
            curve.append({"step": 0, **measure(model, 0)})
    stop, guard = CleanStop(ranks), Guard(folder, config.max_skipped, ranks)
    guard.in_a_row = extra.get("skipped_in_a_row", 0)
    for step in stop.until(start, config.steps):
        lr = config.lr * schedule(step, config.steps, config.warmup, config.decay, 0.1)
        _set_lr(phase.optimizer, lr)
        step_seed = derive_seed(seed, "rollout", step)
        with phase.whole():
            groups, sums = rollout_groups(
                model, tokenizer, task, stream.take, config, ranks, step_seed, clock
            )
        trained = train_on_groups(
            phase.model, phase.optimizer, groups, config, ranks, step_seed, phase.reference, task.max_turns
        )
        skipped = trained.get("skipped", 0) > 0
        guard.step(step, skipped, lambda groups=groups: [_readable(tokenizer, g) for g in groups])
        clock.lap("train")
        measured = (step + 1) % config.eval_every == 0 or step + 1 == config.steps
        if measured:
            with phase.whole():
                curve.append({"step": step + 1, **measure(model, step + 1)})
            log.metrics(step + 1, {k: v for k, v in curve[-1].items() if k != "step"})
            for group in groups[:1]:
                log.text(step + 1, "group", "\n".join(_readable(tokenizer, group)))
            clock.lap("eval")
        figures = _summary(sums, trained, ranks)
        rates = {  # over all ranks, in the main rank's seconds
            "sample": sums["sampled_tokens"] / max(clock.seconds["sample"], 1e-9),
            "train": figures["trained_tokens"] / max(clock.seconds["train"], 1e-9),
        }
        timeline = {"seconds": dict(clock.seconds), "tokens_per_second": rates}
        log.step(step, figures | {"lr": lr} | timeline)
        clock.seconds.clear()
        if measured and keep_best:
            value = curve[-1][keep_best]["value"]
            if value >= best:
                best = value
                phase.save_best(step)
            gap = curve[-1].get("validation/hacking_gap", {"value": 0.0})["value"]
            if gap > config.max_gap or (step + 1 == config.steps and value < best - 0.02):
                at = phase.load_best()
                why = (
                    f"gap of reward over truth {gap:.3f}"
                    if gap > config.max_gap
                    else f"{keep_best} {value:.3f}"
                )
                notes.append(f"fell back to step {at} ({keep_best} {best:.3f}) at step {step + 1}: {why}")
                break
        progress = {"cursor": stream.cursor, "best": best, "notes": notes}
        phase.save(step, stop.now(), {"curve": curve, "skipped_in_a_row": guard.in_a_row} | progress)
    phase.end()
    log.close()
    stop.finish(name)
    return curve, notes


class Stream:
    """Endless shuffled passes over a list, each item once a pass; all state is the `cursor`."""

    def __init__(self, items: list, seed: int, cursor: int):
        self.items, self.seed, self.cursor = items, seed, cursor
        self._epoch, self._order = -1, []

    def take(self, n: int) -> list:
        taken = []
        for position in range(self.cursor, self.cursor + n):
            epoch, i = divmod(position, len(self.items))
            if epoch != self._epoch:
                self._epoch, self._order = epoch, list(range(len(self.items)))
                derive_rng(self.seed, "order", epoch).shuffle(self._order)
            taken.append(self.items[self._order[i]])
        self.cursor += n
        return taken


def _readable(tokenizer: Tokenizer, group: Group) -> list[str]:
    """A group as lines: the prompt, then each completion with its advantage."""
    pairs = zip(group.rollouts, group.advantages, strict=True)
    return [tokenizer.decode(group.prompt), *(f"{a:+.2f}  {tokenizer.decode(r.ids)}" for r, a in pairs)]


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _descend(
    model: Model, optimizer: torch.optim.Optimizer, config: BaseConfig, ranks: Ranks
) -> float | None:
    """A step on the summed gradients; returns their norm, or None where it was unusable and skipped."""
    ranks.sum_gradients(model)
    norm = ranks.clip_gradients(model, config.max_grad_norm)
    good = usable(norm, config.skip_norm)
    if good:
        optimizer.step()
        balance(model, ranks)
    optimizer.zero_grad(set_to_none=True)
    return norm if good else None


def _summary(sums: dict[str, float], trained: dict[str, float], ranks: Ranks) -> dict[str, float]:
    """A step's figures for the curves, over all ranks."""
    trained = ranks.sum({k: trained.get(k, 0.0) for k in _TRAINED})
    answered, rows = max(sums["answered"], 1), max(sums["rows"], 1)
    mean = sums["reward"] / answered
    out = {
        "reward": mean,
        "reward_std": math.sqrt(max(sums["reward_sq"] / answered - mean**2, 0.0)),
        "groups_kept": sums["groups_kept"],
        "groups_sampled": sums["groups_sampled"],
        "unanswered": (sums["rows"] - sums["answered"]) / rows,
        "cut": sums["cut"] / rows,
        "overlong": sums["overlong"],
        # −log p of sampled tokens has the entropy as its mean
        "entropy": sums["neg_logprob"] / max(sums["sampled_tokens"], 1),
        "tokens": sums["sampled_tokens"],
        "trained_tokens": trained["tokens"],
        "skipped": trained["skipped"],
        "loss": trained["loss"],
        "grad_norm": trained["grad_norm"] / max(trained["optimizer_steps"], 1),
        "kl": trained["kl_sum"] / max(trained["tokens"], 1),
        "clip_fraction": (trained["clip_low_count"] + trained["clip_high_count"]) / max(trained["tokens"], 1),
    }
    for name in sums:
        key = name.removeprefix("log.")
        if key != name and sums["log_n." + key]:  # only of what somebody knows
            out[key] = sums[name] / sums["log_n." + key]
    return out


_TRAINED = (
    "loss",
    "grad_norm",
    "optimizer_steps",
    "skipped",
    "kl_sum",
    "tokens",
    "clip_low_count",
    "clip_high_count",
)
