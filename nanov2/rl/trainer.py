"""The loops of a training phase: supervised, and GRPO. Both continue where a checkpoint left off.

Everything random at step t is drawn from (seed, phase, t), so weights, optimiser, step and cursor are
all the state there is, and N steps, a stop and N more are bitwise 2N steps on one device (C14).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from nanov2.distributed.ranks import Ranks, derive_rng, derive_seed
from nanov2.distributed.sharding import in_step
from nanov2.kernels.logprob import linear_logprob
from nanov2.model.decoder import Model
from nanov2.model.packing import Pack, collate, micro_batches
from nanov2.model.sampler import Tokenizer
from nanov2.rl.config import BaseConfig, GRPOConfig
from nanov2.rl.grpo import Clock, rollout_groups, train_on_groups
from nanov2.rl.logs import Log
from nanov2.rl.optimizer import descend
from nanov2.rl.state import Phase
from nanov2.rl.stats import Stats
from nanov2.rl.task import Group, Task

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
    log, clock = Log(folder, name, ranks, phase.start, config.steps), Clock()
    for step in phase.steps(lowest=0.05):
        packs = [draw(step, i) for i in ranks.mine(list(range(config.batch)))]
        tokens = ranks.sum({"tokens": counted_tokens(packs)})["tokens"]
        clock.lap("data")
        loss = supervised_loss(phase.model, packs, tokenizer, tokens, backward=True)
        loss = ranks.sum({"loss": loss})["loss"]
        norm = descend(phase.model, phase.optimizer, config, ranks)
        phase.guard.step(step, norm is None, lambda packs=packs: [_text(tokenizer, p) for p in packs])
        clock.lap("train")
        if phase.measures(step) and step + 1 < config.steps:
            with phase.whole():
                phase.curve.append({"step": step + 1, **measure(model, step + 1)})
            log.metrics(step + 1, phase.curve[-1] | {"step": {"value": step + 1}})
            clock.lap("eval")
        figures = {"tokens": tokens, "skipped": float(norm is None), "seconds": clock.take()}
        log.step(step, figures if norm is None else {"loss": loss, "grad_norm": norm} | figures)
        phase.save(step)
    phase.end()
    log.close()
    phase.stop.finish(name)
    return phase.curve


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
    phase = Phase(folder, model, config, ranks, task.judges, reference)
    stream = Stream(items, seed, phase.saved.get("cursor", 0))
    best = Best(phase, keep_best)
    log, clock = Log(folder, name, ranks, phase.start, config.steps), Clock()
    if not phase.curve:
        with phase.whole():
            phase.curve.append({"step": 0, **measure(model, 0)})
    for step in phase.steps(lowest=0.1):
        rollout_seed = derive_seed(seed, "rollout", step)
        for judge in task.judges.values():
            judge.step = step
        with phase.whole():
            groups, stats = rollout_groups(
                model, tokenizer, task, stream.take, config, ranks, rollout_seed, clock
            )
        stats |= train_on_groups(
            phase.model, phase.optimizer, groups, config, ranks, rollout_seed, phase.reference, task.max_turns
        )
        text = partial(_readable, tokenizer, groups)
        phase.guard.step(step, stats.maxima["skipped"] > 0, text)
        clock.lap("train")
        measured = phase.measures(step) or step + 1 == config.steps
        if measured:
            with phase.whole():
                phase.curve.append({"step": step + 1, **measure(model, step + 1)})
            log.metrics(step + 1, {k: v for k, v in phase.curve[-1].items() if k != "step"})
            log.text(step + 1, "group", "\n".join(text()[:1]))
            clock.lap("eval")
        log.step(step, _figures(stats.over_ranks(ranks), clock.take()) | {"lr": phase.lr})
        if measured and best.ends(step):
            break
        phase.save(step, cursor=stream.cursor, best=best.value, notes=best.notes)
    phase.end()
    log.close()
    phase.stop.finish(name)
    return phase.curve, best.notes


class Best:
    """Keeps the weights that did best on the figure `name` of the curve; without a name it does nothing."""

    def __init__(self, phase: Phase, name: str):
        self.phase, self.name = phase, name
        self.value, self.notes = phase.saved.get("best", -math.inf), phase.saved.get("notes", [])

    def ends(self, step: int) -> bool:
        """After a measurement: whether the phase ends, back at its best weights."""
        if not self.name:
            return False
        config, last = self.phase.config, self.phase.curve[-1]
        value, gap = last[self.name]["value"], last.get("validation/hacking_gap", {"value": 0.0})["value"]
        if value >= self.value:
            self.value = value
            self.phase.save_best(step)
        if gap <= config.max_gap and (step + 1 < config.steps or value >= self.value - 0.02):
            return False
        at = self.phase.load_best()
        why = f"gap of reward over truth {gap:.3f}" if gap > config.max_gap else f"{self.name} {value:.3f}"
        self.notes.append(f"fell back to step {at} ({self.name} {self.value:.3f}) at step {step + 1}: {why}")
        return True


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


def _readable(tokenizer: Tokenizer, groups: list[Group]) -> list[str]:
    """Each group as lines: the prompt, then each completion with its advantage."""
    texts = []
    for group in groups:
        rows = zip(group.rollouts, group.advantages, strict=True)
        lines = [tokenizer.decode(group.prompt), *(f"{a:+.2f}  {tokenizer.decode(r.ids)}" for r, a in rows)]
        texts.append("\n".join(lines))
    return texts


def _figures(stats: Stats, seconds: dict[str, float]) -> dict:
    """A step's figures over all ranks, for the curves; `seconds` are the main rank's."""
    figures = stats.figures()
    squared = figures.pop("reward_squared", 0.0)
    mean = figures.setdefault("reward", 0.0)
    figures["reward_std"] = math.sqrt(max(squared - mean**2, 0.0))
    rates = {
        "sample": figures["tokens"] / max(seconds.get("sample", 0.0), 1e-9),
        "train": figures.setdefault("trained_tokens", 0.0) / max(seconds.get("train", 0.0), 1e-9),
    }
    for name in ("loss", "grad_norm", "kl", "clip_fraction"):  # of a step without anything to learn from
        figures.setdefault(name, 0.0)
    return figures | {"seconds": seconds, "tokens_per_second": rates}
