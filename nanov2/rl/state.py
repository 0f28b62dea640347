"""A training phase under way: model and judges where the ranks hold them, optimiser, snapshots."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from nanov2.distributed.checkpoints import Snapshots, fingerprint
from nanov2.distributed.ranks import Ranks
from nanov2.distributed.safety import check_space
from nanov2.distributed.sharding import place, whole
from nanov2.errors import InputError
from nanov2.model.decoder import Model
from nanov2.rl.grpo import Task, make_optimizer


class Phase:
    """What a training phase holds: the model as it is trained, its optimiser, its judges, its snapshots.

    `model` is what the caller gave, or its twin in shards; `whole()` fills the caller's and the judges'
    for sampling and measuring.
    """

    def __init__(
        self, folder: Path, model: Model, config, ranks: Ranks, judges: dict | None = None, reference=None
    ):
        folder.mkdir(parents=True, exist_ok=True)
        check_space(folder, model.n_params)
        frozen = {name: judge.model for name, judge in (judges or {}).items()}
        if reference is not None:
            frozen["reference"] = reference
        self.hashes = {name: fingerprint(m) for name, m in frozen.items()}
        self.config, self.snapshots = config, Snapshots(folder, ranks, config.keep)
        self.trained = place(model, ranks)
        self.frozen = {name: place(m, ranks) for name, m in frozen.items()}
        self.model = self.trained.model
        self.optimizer = make_optimizer(self.model, config.lr, config.weight_decay)
        self.reference = self.frozen["reference"].model if reference is not None else None

    def whole(self) -> AbstractContextManager[None]:
        return whole([self.trained, *(p for name, p in self.frozen.items() if name != "reference")])

    def resume(self) -> tuple[int, list[dict], dict]:
        """The step to go on from, the curve so far, and whatever else was saved."""
        path = self.snapshots.newest("step")
        if path is None:
            return 0, [], {}
        extra = self.snapshots.load(path, self.model, self.optimizer)
        changed = [name for name, value in self.hashes.items() if extra["judges"].get(name) != value]
        if changed:
            raise InputError(
                f"{path}: the phase was begun with another {changed[0]}: put its weights back, or delete "
                f"{path.parent} to begin the phase again"
            )
        return extra["step"], extra["curve"], extra

    def save(self, step: int, stopping: bool, progress: dict) -> None:
        """A snapshot after every `save_every` steps, after the last, and when the run is asked to stop."""
        if (step + 1) % self.config.save_every == 0 or step + 1 == self.config.steps or stopping:
            extra = {"step": step + 1, "judges": self.hashes} | progress
            self.snapshots.save("step", self.model, self.optimizer, extra)
        self.snapshots.poll()

    def save_best(self, step: int) -> None:
        self.snapshots.save("best", self.model, self.optimizer, {"step": step + 1})

    def load_best(self) -> int:
        """Back to the best weights so far; returns the step that they are of."""
        path = self.snapshots.newest("best")
        if path is None:
            raise InputError(
                f"{self.snapshots.folder}: no best weights left to go back to; delete the folder"
            )
        return self.snapshots.load(path, self.model, self.optimizer)["step"]

    def end(self) -> None:
        """The caller's model and the judges hold all their weights again."""
        self.snapshots.finish()
        for placed in (self.trained, *self.frozen.values()):
            placed.give_back()


def judges_of(task: Task) -> dict:
    """A task's frozen judges in this process, by name."""
    found = {name: getattr(task, name, None) for name in ("verifier", "meta")}
    return {name: judge for name, judge in found.items() if hasattr(judge, "model")}
