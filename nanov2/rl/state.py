"""A training phase under way: model and judges where the ranks hold them, optimiser, snapshots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from nanov2.distributed.checkpoints import Snapshots, fingerprint
from nanov2.distributed.ranks import Ranks
from nanov2.distributed.safety import CleanStop, Guard, check_space, on_disk, on_main
from nanov2.distributed.sharding import place, whole
from nanov2.errors import InputError
from nanov2.model.decoder import Model
from nanov2.rl.optimizer import make_optimizer, schedule, set_lr


class Phase:
    """What a training phase holds: the model as it is trained, its optimiser, its judges, its checkpoints.

    `model` is what the caller gave, or its twin in shards; `whole()` fills the caller's and the judges'
    for sampling and measuring. It begins where the newest checkpoint left off: `start` is the step to go on
    from, `curve` the figures so far, `saved` whatever else was given to `save`. Where an engine samples the
    model, `whole()` gives the engine its weights and leaves them in shards here.
    """

    def __init__(
        self, folder: Path, model: Model, config, ranks: Ranks, judges: dict | None = None, reference=None
    ):
        on_disk(folder, lambda: folder.mkdir(parents=True, exist_ok=True))
        check_space(folder, model.n_params)
        frozen = {n: j.model for n, j in (judges or {}).items() if getattr(j, "model", None) is not None}
        if reference is not None:
            frozen["reference"] = reference
        served = {n: getattr(j, "weights", "") for n, j in (judges or {}).items() if n not in frozen}
        self.hashes = {n: weights for n, weights in served.items() if weights}
        own: dict[str, str] = {}
        on_main(ranks, folder, lambda: own.update({n: fingerprint(m, m.source) for n, m in frozen.items()}))
        self.hashes |= ranks.from_main(own)
        self.config, self.snapshots = config, Snapshots(folder, ranks, config.keep)
        self.trained = place(model, ranks)
        self.frozen = {name: place(m, ranks) for name, m in frozen.items()}
        self.model, self.given, self.engine = self.trained.model, model, model.engine
        self.optimizer = make_optimizer(self.model, config.lr, config.weight_decay, config.optimizer)
        if self.engine is not None:
            self.engine.changed()
            self.optimizer.register_step_post_hook(lambda *_: self.engine.changed())
        self.reference = self.frozen["reference"].model if reference is not None else None
        self.stop, self.guard = CleanStop(ranks), Guard(folder, config.max_skipped, ranks)
        self.start, self.curve, self.saved = self._resume()
        self.guard.in_a_row = self.saved.get("skipped_in_a_row", 0)

    def whole(self) -> AbstractContextManager[None]:
        frozen = [p for name, p in self.frozen.items() if name != "reference"]
        if self.engine is None:
            return whole([self.trained, *frozen])
        if not self.engine.fresh:
            self.engine.load(self.given)
        return whole(frozen)

    def steps(self, lowest: float) -> Iterator[int]:
        """The steps that are left, or up to the one in which the run is asked to stop, each at its learning
        rate: linear warm-up, flat, then linear down to `lowest` of the peak."""
        c = self.config
        for step in self.stop.until(self.start, c.steps):
            set_lr(self.optimizer, c.lr * schedule(step, c.steps, c.warmup, c.decay, lowest))
            yield step

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def measures(self, step: int) -> bool:
        return (step + 1) % self.config.eval_every == 0

    def measure(self, measure: Callable[[Model, int], Mapping], step: int) -> Mapping:
        """The figures of the caller's model after `step` steps, which join the curve."""
        with self.whole():
            figures = measure(self.given, step)
        self.curve.append({"step": step, **figures})
        return figures

    def _resume(self) -> tuple[int, list[dict], dict]:
        path = self.snapshots.newest("step")
        if path is None:
            return 0, [], {}
        extra = self.snapshots.load(path, self.model, self.optimizer)
        changed = [n for n, value in self.hashes.items() if _differs(extra["judges"].get(n, ""), value)]
        if changed:
            raise InputError(
                f"{path}: the phase was begun with another {changed[0]}: put its weights back, or move "
                f"{path.parent} away to begin the phase again"
            )
        return extra["step"], extra["curve"], extra

    def save(self, step: int, **progress) -> None:
        """A checkpoint after every `save_every` steps, after the last, and when the run is asked to stop."""
        stopping = self.stop.now()
        if (step + 1) % self.config.save_every == 0 or step + 1 == self.config.steps or stopping:
            state = {"curve": self.curve, "skipped_in_a_row": self.guard.in_a_row, "judges": self.hashes}
            extra = {"step": step + 1} | state | progress
            self.snapshots.save("step", self.model, self.optimizer, extra)
        self.snapshots.poll()

    def save_best(self, step: int) -> None:
        self.snapshots.save("best", self.model, self.optimizer, {"step": step + 1})

    def load_best(self) -> int:
        """Back to the best weights so far; returns the step that they are of."""
        path = self.snapshots.newest("best")
        if path is None:
            raise InputError(
                f"{self.snapshots.folder}: no best weights left to go back to; move it away to begin again"
            )
        if self.engine is not None:
            self.engine.changed()
        return self.snapshots.load(path, self.model, self.optimizer)["step"]

    def end(self) -> None:
        """The caller's model and the judges hold all their weights again."""
        self.snapshots.finish()
        for placed in (self.trained, *self.frozen.values()):
            placed.give_back()


def _differs(old: str, new: str) -> bool:
    """Whether two hashes of a judge's weights are of different ones. Of a hash that an older version took in
    another way, and length, nobody knows."""
    return old != new and len(old) in (0, len(new))
