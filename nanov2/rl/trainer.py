"""The loops of a training phase: supervised, and GRPO. Both continue where a checkpoint left off.

Everything random at step t is drawn from (seed, phase, t), so weights, optimiser, step and cursor are
all the state there is, and N steps, a stop and N more are bitwise 2N steps on one device (C14).
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from nanov2.distributed.ranks import Ranks, derive_rng, derive_seed
from nanov2.distributed.sharding import in_step
from nanov2.kernels.logprob import linear_logprob
from nanov2.model.decoder import Model
from nanov2.model.packing import Pack, collate, micro_batches, share_prefix
from nanov2.model.sampler import Tokenizer
from nanov2.rl.config import BaseConfig, GRPOConfig
from nanov2.rl.grpo import Clock, rollout_groups, train_on_groups
from nanov2.rl.logs import Log
from nanov2.rl.optimizer import descend
from nanov2.rl.state import Phase
from nanov2.rl.stats import Stats
from nanov2.rl.task import Group, Task

Metrics = Mapping[str, Mapping]  # name → {"value", "n", "low", "high"}
Measure = Callable[[Model, int], Metrics]  # of the whole model, after so many steps
Exam = Callable[[Model, int], tuple[Metrics, list[dict]]]  # the same, with samples
MICRO_TOKENS = 1024  # of a supervised micro-batch: small ones stay in the processor's cache


def supervised_loss(model: Model, packs: list[Pack], denominator: float, backward: bool) -> float:
    """Sum of −log p over counted tokens / denominator, micro-batch by micro-batch; accumulates gradients."""
    total, packs = 0.0, share_prefix(packs, 2 * MICRO_TOKENS)
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


@dataclass(frozen=True)
class Trainee:
    """A model to be trained: on which ranks, and in which folder checkpoints and curves are kept."""

    folder: Path
    name: str  # of the phase, as logs tell it
    model: Model
    tokenizer: Tokenizer
    ranks: Ranks
    seed: int = 0  # of what GRPO draws: the order of items, and rollouts


def train_supervised(
    trainee: Trainee, draw: Callable[[int, int], Pack], config: BaseConfig, measure: Measure
) -> list[dict]:
    """Train on `draw(step, i)`, i < batch. Returns the curve of `measure` every `eval_every` steps."""
    ranks, phase = trainee.ranks, Phase(trainee.folder, trainee.model, config, trainee.ranks)
    log, clock = Log(trainee.folder, trainee.name, ranks, phase.start, config.steps), Clock()
    for step in phase.steps(lowest=0.05):
        packs = [draw(step, i) for i in ranks.mine(list(range(config.batch)))]
        tokens = ranks.sum({"tokens": counted_tokens(packs)})["tokens"]
        clock.lap("data")
        loss = supervised_loss(phase.model, packs, tokens, backward=True)
        loss = ranks.sum({"loss": loss})["loss"]
        norm = descend(phase.model, phase.optimizer, config, ranks)
        phase.guard.step(step, norm is None, partial(_texts, trainee.tokenizer, packs))
        clock.lap("train")
        if phase.measures(step) and step + 1 < config.steps:
            log.metrics(step + 1, phase.measure(measure, step + 1))
            clock.lap("eval")
        figures = {"tokens": tokens, "skipped": float(norm is None), "seconds": clock.take()}
        log.step(step, figures if norm is None else {"loss": loss, "grad_norm": norm} | figures)
        phase.save(step)
    phase.end()
    log.close()
    phase.stop.finish(trainee.name)
    return phase.curve


def train_grpo(
    trainee: Trainee, task: Task, items: list, config: GRPOConfig, measure: Exam, keep_best: str = ""
) -> tuple[list[dict], list[str]]:
    """GRPO over `items`. Returns the validation curve and notes on what happened. `measure` gives figures of
    validation items and samples of them, of which some are kept by step.

    `keep_best` names a validation metric (the expert's, never the judge's): the weights that did best on
    it are kept beside the newest; they are put back at the end where the newest are more than 0.02 below
    them, and at once, ending the phase, where `validation/hacking_gap` passes `config.max_gap`.
    """
    model, tokenizer, ranks = trainee.model, trainee.tokenizer, trainee.ranks
    reference = copy.deepcopy(model).eval().requires_grad_(False) if config.kl_coef else None
    phase = Phase(trainee.folder, model, config, ranks, task.judges, reference)
    _tell(task, max(phase.start - 1, 0))  # a judge's draws go on too, also where no step is left to do
    stream, best = make_stream(config, items, trainee.seed, phase.saved), Best(phase, keep_best)
    log, clock = Log(trainee.folder, trainee.name, ranks, phase.start, config.steps), Clock()
    if not phase.curve:
        _examine(phase, measure, log, 0)
    for step in phase.steps(lowest=0.1):
        _tell(task, step)
        seed, exact = derive_seed(trainee.seed, "rollout", step), model.engine is None
        with phase.whole():
            groups, stats = rollout_groups(
                model, tokenizer, task, stream.take, config, ranks, seed, clock, stream.saw
            )
        stats |= train_on_groups(
            phase.model, phase.optimizer, groups, config, ranks, seed, phase.reference, task.max_turns, exact
        )
        texts = partial(_readable, tokenizer, groups)
        phase.guard.step(step, stats.maxima["skipped"] > 0, texts)
        clock.lap("train")
        measured = phase.measures(step) or step + 1 == config.steps
        if measured:
            log.metrics(step + 1, _examine(phase, measure, log, step + 1))
            log.text(step + 1, "group", "\n".join(texts()[:1]))
            clock.lap("eval")
        figures = _figures(stats.over_ranks(ranks), clock.take())
        log.step(step, figures | {"lr": phase.lr})
        if ranks.main and not exact:
            warn_of_gap(figures, step)
        if measured and best.ends(step):
            break
        phase.save(step, **stream.state(), best=best.value, notes=best.notes)
    phase.end()
    log.close()
    phase.stop.finish(trainee.name)
    return phase.curve, best.notes


def _examine(phase: Phase, measure: Exam, log: Log, step: int) -> Metrics:
    """The figures after `step` steps, which join the curve; samples are kept by step."""

    def figures(model: Model, step: int) -> Metrics:
        metrics, samples = measure(model, step)
        log.samples(step, samples)
        return metrics

    return phase.measure(figures, step)


def _tell(task: Task, step: int) -> None:
    """Tell the judges at which step they judge: what they draw depends on it."""
    for judge in task.judges.values():
        judge.step = step


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

    def saw(self, spreads: list[float | None]) -> None:
        """How much the rewards of the items taken last varied: nothing to this stream."""

    def state(self) -> dict:
        """What a checkpoint keeps."""
        return {"cursor": self.cursor}


class Curriculum:
    """Draws items by the standard deviation of the rewards that their group had last: what is always right or
    always wrong now teaches nothing now. An item that was not drawn yet counts as the mean of the others, and
    none less than a tenth of that, so that all come back.

    State: how many were drawn, and the deviations by the item's place. The same on any number of ranks.
    """

    def __init__(self, items: list, seed: int, cursor: int = 0, spreads: dict[str, float] | None = None):
        self.items, self.seed, self.cursor = items, seed, cursor
        self.spreads = {int(i): s for i, s in (spreads or {}).items()}
        self._taken: list[int] = []

    def take(self, n: int) -> list:
        """n items, all different where there are so many."""
        rng, taken = derive_rng(self.seed, "draw", self.cursor), []
        mean = sum(self.spreads.values()) / max(len(self.spreads), 1) or 1.0
        while len(taken) < n:
            # The n largest of u^(1/w) are a weighted draw without replacement (Efraimidis and Spirakis 2006).
            keys = [
                math.log(1.0 - rng.random()) / max(self.spreads.get(i, mean), mean / 10)
                for i in range(len(self.items))
            ]
            taken += sorted(range(len(keys)), key=keys.__getitem__, reverse=True)[: n - len(taken)]
        self._taken, self.cursor = taken, self.cursor + n
        return [self.items[i] for i in taken]

    def saw(self, spreads: list[float | None]) -> None:
        """The deviations of the items taken last; None leaves an item's last one."""
        known = zip(self._taken, spreads, strict=True)
        self.spreads |= {i: round(s, 6) for i, s in known if s is not None}

    def state(self) -> dict:
        """What a checkpoint keeps (JSON: its keys are texts)."""
        return {"cursor": self.cursor, "spreads": {str(i): s for i, s in self.spreads.items()}}


def make_stream(config: GRPOConfig, items: list, seed: int, saved: dict) -> Stream | Curriculum:
    """The items as `config.draw` says, from where a checkpoint left off."""
    cursor = saved.get("cursor", 0)
    if config.draw == "variance":
        return Curriculum(items, seed, cursor, saved.get("spreads"))
    return Stream(items, seed, cursor)


def warn_of_gap(figures: dict, step: int) -> None:
    """Say so where an engine's tokens are, on average, more than 1% likelier or unlikelier to the trainer: an
    engine that samples from other weights, another temperature or a rounded distribution shows here."""
    mean = figures.get("importance_weight", 1.0)
    if abs(mean - 1) > 0.01:
        most = figures.get("importance_weight_max", math.nan)
        tqdm.write(
            f"step {step}: the mean importance weight is {mean:.4f} (largest {most:.3g}), not within 1% of "
            "1: does the engine serve these weights, at this temperature, with processed log-probs?",
            file=sys.stderr,
        )


def _texts(tokenizer: Tokenizer, packs: list[Pack]) -> list[str]:
    return [tokenizer.decode(pack.prompt + [i for c in pack.completions for i in c.ids]) for pack in packs]


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
