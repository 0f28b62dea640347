"""What a phase tells while it runs: metrics.jsonl, TensorBoard, a progress bar, a table at its end.

TensorBoard's tags do not name the phase, which the folder does: curves of several laps lie over each other.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nanov2 import journal
from nanov2.distributed.ranks import Ranks
from nanov2.distributed.safety import on_main
from nanov2.errors import InputError
from nanov2.model.rollout import Rollout, watching
from nanov2.records import write_atomically, write_jsonl

GROUPS = "groups.jsonl"  # a prompt's completions, at each measured step
BY_STEP = "samples_by_step.jsonl"  # of the first validation items, at each measured step
KEPT = 3  # of them


def read_rows(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl that may be being written, or was when its writer was killed."""
    return [row for row in journal.read(path, lenient=True) if isinstance(row.get("step"), int)]


class Tracker:
    """Weights & Biases or Trackio, which have the same functions: a run there for each phase, in a group.

    InputError, in one line, where the package is missing or does not start.
    """

    def __init__(self, tool: str, group: str, settings: dict):
        if tool not in TRACKERS:
            raise InputError(f"--track must be one of {', '.join(TRACKERS)}, found {tool!r}")
        try:
            self.module = importlib.import_module(tool)
        except ImportError as e:
            raise InputError(f"--track={tool}: {e}; install it with `pip install {tool}`") from e
        self.tool, self.group, self.settings, self.waiting = tool, group, settings, {}

    def begin(self, phase: str) -> None:
        where = {"project": "nanov2", "group": self.group, "name": f"{self.group} {phase}"}
        if self.tool == "wandb":  # goes on with a run by its id, Trackio by its name
            where["id"] = where["name"].replace("/", "-").replace(" ", "-")
        try:
            self.module.init(**where, config=self.settings, resume="allow")
        except Exception as e:  # whatever a service raises: no key, no network
            said = " ".join(str(e).split())
            raise InputError(f"--track={self.tool}: {type(e).__name__}: {said:.200}") from e

    def step(self, step: int, scalars: dict) -> None:
        self.module.log(scalars | self.waiting, step=step)
        self.waiting = {}


LINES = 10  # that a phase writes where nobody sits at a terminal, into a log
TRACKERS = ("wandb", "trackio")
tracker: Tracker | None = None  # of this process; see `track`


def track(tool: str, group: str, settings: dict) -> None:
    """From here on every phase is told to the tool too, under the name of the run."""
    global tracker
    tracker = Tracker(tool, group, settings)


class Log:
    """Scalars and samples of one phase. Every rank calls; only the main rank writes.

    Where the disk does not take it, that is an InputError on every rank.
    """

    def __init__(self, folder: Path, name: str, ranks: Ranks, start: int, steps: int):
        self.ranks, self.folder, self.path, self.name = ranks, folder, folder / "metrics.jsonl", name
        self.writer: Any = None
        threading.excepthook = _quietly
        on_main(ranks, folder, partial(self._open, start))
        hidden = not ranks.main or not sys.stderr.isatty()
        self.bar = tqdm(total=steps, initial=start, disable=hidden, leave=False)
        self.told = max(1, round(steps / LINES))

    def _open(self, start: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # what came after the checkpoint is done again
        kept = [row for row in read_rows(self.path) if row["step"] < start] if start else []
        write_jsonl(self.path, kept)
        for path in (self.folder / GROUPS, self.folder / BY_STEP):
            if path.is_file():
                write_jsonl(path, [row for row in read_rows(path) if start and row["step"] <= start])
        from torch.utils.tensorboard import SummaryWriter  # slow to import: only where it is used

        self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=start)
        if tracker:
            tracker.begin(self.name)

    def step(self, step: int, scalars: dict) -> None:
        on_main(self.ranks, self.folder, partial(self._write, step, scalars))
        shown = {k: f"{scalars[k]:.3f}" for k in ("loss", "reward", "truth") if k in scalars}
        text = " ".join(f"{k} {x}" for k, x in shown.items())
        self.bar.set_postfix_str(text)
        self.bar.update(1)
        if self.ranks.main and self.bar.disable and (step + 1) % self.told == 0:
            print(f"  step {step + 1} of {self.bar.total}: {text}", file=sys.stderr, flush=True)

    def _write(self, step: int, scalars: dict) -> None:
        journal.append(self.path, [{"step": step} | _rounded(scalars)])
        flat = {}
        for key, value in scalars.items():
            flat |= {f"{key}/{k}": x for k, x in value.items()} if isinstance(value, dict) else {key: value}
        for name, x in flat.items():
            self.writer.add_scalar(name, x, step)
        if tracker:
            tracker.step(step, flat)

    def metrics(self, step: int, metrics: Mapping) -> None:
        """Figures of validation items after `step` steps, {name: {"value", …}}."""

        def write():
            values = {name: m["value"] for name, m in metrics.items()}
            for name, x in values.items():
                self.writer.add_scalar(name, x, step)
            if tracker:
                tracker.waiting |= values  # steps may only grow there: told with the step that ends now

        on_main(self.ranks, self.folder, write)

    def samples(self, step: int, samples: list[dict]) -> None:
        """What the weights after `step` steps write about the first validation items: the same at each step,
        so that they are followed through training."""
        rows = [{"step": step} | sample for sample in samples[:KEPT]]
        on_main(self.ranks, self.folder, partial(journal.append, self.folder / BY_STEP, rows))

    def text(self, step: int, title: str, text: str) -> None:
        def write():
            write_atomically(self.path.with_name("last_sample.txt"), text)
            journal.append(self.folder / GROUPS, [{"step": step, "text": text}])
            body = "\n".join("    " + line for line in text.splitlines())
            self.writer.add_text(title, body, step)

        on_main(self.ranks, self.folder, write)

    def close(self) -> None:
        self.bar.close()
        on_main(self.ranks, self.folder, self._end)

    def _end(self) -> None:
        self.writer.close()
        if tracker:
            tracker.module.finish()


class Progress:
    """How far `total` answers are: a bar on a terminal; in a log a line for each tenth with the time left,
    but none within SECONDS of the last."""

    SECONDS = 5.0

    def __init__(self, what: str, total: int, shown: bool):
        self.what, self.total, self.done, self.told = what, total, 0, 0
        self.begin = self.last = time.monotonic()
        self.quiet = not shown
        hidden = not shown or not sys.stderr.isatty()
        self.bar = tqdm(desc=what, total=total, unit="answer", disable=hidden, leave=False)

    def expect(self, total: int) -> None:
        """There are so many after all: fewer where some turned out not to be needed."""
        self.total = self.bar.total = max(total, self.done)

    def answered(self, rollout: Rollout | None = None) -> None:
        self.done += 1
        self.bar.update(1)
        now, tenth = time.monotonic(), LINES * self.done // max(self.total, self.done)
        if self.quiet or not self.bar.disable or tenth <= self.told or now - self.last < self.SECONDS:
            return
        self.told, self.last = tenth, now
        left = tqdm.format_interval((now - self.begin) / self.done * (self.total - self.done))
        print(f"  {self.what}: {self.done} of {self.total}, {left} left", file=sys.stderr, flush=True)

    def reach(self, done: int) -> None:
        """So many are there, those among them that nobody heard of: asked elsewhere, or asked twice."""
        while self.done < done:
            self.answered()


@contextmanager
def progress(what: str, total: int, shown: bool = True) -> Iterator[Progress]:
    """Progress of what this process samples within."""
    told = Progress(what, total, shown)
    try:
        with watching(told.answered):
            yield told
    finally:
        told.bar.close()


def _quietly(args) -> None:
    """TensorBoard's writing thread shows a traceback where the disk is full; its error comes up again in
    `Log`, at the next figure that is written."""
    if not (issubclass(args.exc_type, OSError) and "tensorboard" in type(args.thread).__module__):
        threading.__excepthook__(args)


def hyperparameters(folder: Path, settings: dict, metrics: dict) -> None:
    """A finished phase's settings beside its held-out figures, for TensorBoard's table of hyperparameters."""
    if not (folder / "tensorboard").is_dir():
        return
    from torch.utils.tensorboard import SummaryWriter

    plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in settings.items()}
    figures = {f"final/{name}": m["value"] for name, m in metrics.items()}
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        writer.add_hparams(plain, figures, run_name=".")


def _rounded(value):
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def print_table(title: str, before: dict, after: dict, say: Callable[[str], str] = str) -> None:
    """A short table of held-out figures on the terminal; `say` gives a figure's name in plain words."""
    print(f"\n{title}", flush=True)
    for name in after:
        old = f"{before[name]['value']:8.3f} →" if name in before else " " * 10
        a = after[name]
        print(
            f"  {say(name):60} {old} {a['value']:.3f}  [{a['low']:.3f}, {a['high']:.3f}]  n={a['n']}",
            flush=True,
        )
