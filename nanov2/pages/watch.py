"""A running flywheel in the terminal: phases done and to come, step, rate, time left, curves, last sample.

    python -m nanov2 watch runs/proofworld            # until the run is done or nobody runs it, or Ctrl-C
    python -m nanov2 watch runs/proofworld --once     # one frame

It only reads the run folder, so it may be started, stopped and started again at any time.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from nanov2.errors import InputError, as_written
from nanov2.pages.legend import entry
from nanov2.pages.read import Phase, number, read_json, read_phases
from nanov2.run.cli import Parser
from nanov2.run.left import Spent, clock, steps_seconds, time_left
from nanov2.run.phases import planned, planned_steps

SHOWN = ("loss", "reward", "truth", "truth_quality", "truth_draft", "meta", "entropy", "cut", "grad_norm")
BARS = "▁▂▃▄▅▆▇█"
GRACE = 20.0  # seconds without a process that runs the run before the view ends


def sparkline(values: list[float], width: int) -> str:
    """Values as blocks, averaged down to `width` of them; a constant line is low."""
    n = len(values)
    cells = [values[i * n // width : max((i + 1) * n // width, i * n // width + 1)] for i in range(width)]
    means = [statistics.mean(c) for c in (cells if n > width else [[v] for v in values])]
    low, high = min(means), max(means)
    return "".join(BARS[int((m - low) / (high - low) * 7.999)] if high > low else BARS[0] for m in means)


def safe(text: str, width: int) -> str:
    """One line that no control character can turn into commands of the terminal."""
    line = "".join(c if c.isprintable() else " " for c in text.replace("\n", " | "))
    return line if len(line) <= width else line[: width - 1] + "…"


def is_held(run: Path) -> bool:
    """Whether a process holds the run's lock, by the owner that stands beside it.

    The lock itself is not tried: while it was, a run that starts would be refused. The owner on another
    machine, or a file that names none, is taken to be at work while files of the run are being written.
    """
    path = run / "owner"
    if not path.is_file():
        return False
    owner = re.match(r"process (\d{1,9}) on (\S+?),? ", path.read_text(errors="replace"))
    if owner and owner[2] == socket.gethostname():
        try:
            os.kill(int(owner[1]), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # someone else's process: it is there
        return True
    newest = max((p.stat().st_mtime for p in run.glob("**/*.jsonl")), default=0.0)
    return time.time() - max(newest, path.stat().st_mtime) < 60


@dataclass
class Ending:
    """Decides when the view ends: the run is done, or nobody has run it for a while.

    Between two phases no phase is under way for a moment, and a run may be started again at once.
    """

    grace: float = GRACE
    since: float | None = None  # when nobody was first seen to run it

    def reached(self, done: bool, held: bool, now: float) -> bool:
        if done:
            return True
        self.since = None if held else self.since if self.since is not None else now
        return self.since is not None and now - self.since >= self.grace


def frame(run: Path, width: int) -> tuple[str, bool]:
    """What is on the screen now, and whether the run is done."""
    with as_written(run):
        return _frame(run, width)


def _frame(run: Path, width: int) -> tuple[str, bool]:
    if not (run / "run.json").is_file():
        raise InputError(
            f"{run} is not a run folder: run.json is missing; start train.py with --dir={run} first"
        )
    facts = read_json(run / "run.json")
    settings = facts.get("config", {})
    phases = {p.key: p for p in read_phases(run)}
    plan = planned(settings)
    order = [*plan, *(key for key in phases if key not in plan)]
    lines = [safe(f"{run}  seed {facts.get('seed')}  {facts.get('ranks')} rank(s)", width), ""]
    lines += [phase_line(phases.get(key), *key) for key in order]
    done = all(key in phases and phases[key].seconds is not None for key in plan)
    running = [p for p in phases.values() if p.seconds is None]
    if left := left_in_all(phases, plan, running, settings):
        lines += ["", safe(f"  {left}", width)]
    if running:
        p = running[-1]
        lines += progress(p, planned_steps(settings, p.name, p.lap), width)
        last = run / p.folder / "last_sample.txt"
        if last.is_file():
            sample = last.read_text(errors="replace").splitlines()[:6]
            lines += [
                "",
                "  last sample (advantage, completion):",
                *(f"  {safe(s, width - 2)}" for s in sample),
            ]
    return "\n".join([*lines, ""]), done


def phase_line(phase: Phase | None, name: str, lap: int) -> str:
    name += f" lap {lap}" if lap > 1 else ""
    if phase is None:
        return f"  · {name:20} to come"
    if phase.seconds is None:
        return f"  ▸ {name:20} running"
    return f"  ✓ {name:20} done in {clock(phase.seconds)}"


def left_in_all(phases: dict, plan: list[tuple[str, int]], running: list[Phase], settings: dict) -> str:
    """The time that the run has left; of the phase under way that of its own steps."""
    done = {key: Spent.of(p.seconds, p.metrics) for key, p in phases.items() if p.seconds is not None}
    todo, own = [key for key in plan if key not in done], None
    if running and (total := planned_steps(settings, *running[-1].key)) and (rows := running[-1].metrics):
        own = step_seconds(rows) * max(total - rows[-1]["step"] - 1, 0)
        todo = [key for key in todo if key != running[-1].key]
    return time_left(todo, done, settings, own) if todo or own else ""


def step_seconds(rows: list[dict]) -> float:
    """Of one of the last steps."""
    return steps_seconds(rows[-20:]) / len(rows[-20:])


def progress(phase: Phase, total: int | None, width: int) -> list[str]:
    """Step, rate, time left and curves of the phase under way; reward beside truth."""
    rows = phase.metrics
    if not rows:
        return []
    per_step, step = step_seconds(rows), rows[-1]["step"] + 1
    left = f", {clock(per_step * max(total - step, 0))} left in it" if total else ""
    lines = ["", f"  step {step}{f' of {total}' if total else ''}, {per_step:.2f} s a step{left}"]
    if tokens := [r["tokens"] for r in rows[-20:] if number(r.get("tokens")) is not None]:
        lines[-1] += f", {statistics.mean(tokens) / max(per_step, 1e-9):,.0f} tokens/s"
    curves = {n: [r[n] for r in rows if number(r.get(n)) is not None] for n in SHOWN}
    both = [r for r in rows if number(r.get("reward")) is not None and number(r.get("truth")) is not None]
    curves["reward − truth"] = [r["reward"] - r["truth"] for r in both]
    for name in (*SHOWN[:3], "reward − truth", *SHOWN[3:]):
        if values := curves[name]:
            title = entry(name).title
            lines.append(f"  {title:21} {values[-1]:8.3f}  {sparkline(values, max(width - 36, 10))}")
    return lines


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--once", action="store_true", help="print one frame and end")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between frames")
    ending = Ending()
    try:
        args = parser.parse_args()
        if not 0.1 <= args.every <= 3600:
            raise InputError(f"--every must be from 0.1 to 3600 seconds, found {args.every:g}")
        while True:
            text, done = frame(args.run, shutil.get_terminal_size((100, 30)).columns)
            # Home, then clear to the end: no flicker, and what was on the screen before scrolls away.
            print(text if args.once else f"\x1b[H\x1b[2J{text}", flush=True)
            if args.once:
                return
            if ending.reached(done, is_held(args.run), time.monotonic()):
                if not done:
                    print("nobody is running it: the command that began it goes on from here")
                return
            time.sleep(args.every)
    except InputError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
