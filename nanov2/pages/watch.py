"""A running flywheel in the terminal: phase, step, rate, time left, newest curves, last sample.

    python -m nanov2 watch runs/proofworld            # until the run is done, or Ctrl-C
    python -m nanov2 watch runs/proofworld --once     # one frame

It only reads the run folder, so it may be started, stopped and started again at any time.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from pathlib import Path

from nanov2.errors import InputError, as_written
from nanov2.pages.report import collect, read_json

SHOWN = ("loss", "reward", "truth", "truth_quality", "truth_draft", "meta", "entropy", "cut", "grad_norm")
BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: list[float], width: int) -> str:
    """Values as blocks, averaged down to `width` of them; a constant line is low."""
    n = len(values)
    cells = [values[i * n // width : max((i + 1) * n // width, i * n // width + 1)] for i in range(width)]
    means = [statistics.mean(c) for c in (cells if n > width else [[v] for v in values])]
    low, high = min(means), max(means)
    return "".join(BARS[int((m - low) / (high - low) * 7.999)] if high > low else BARS[0] for m in means)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def safe(text: str, width: int) -> str:
    """One line that no control character can turn into commands of the terminal."""
    line = "".join(c if c.isprintable() else " " for c in text.replace("\n", " | "))
    return line if len(line) <= width else line[: width - 1] + "…"


def steps_of(config: dict, phase: str, lap: int) -> int | None:
    section = config.get(phase if lap == 1 or phase == "consolidate" else f"lap_{phase}", {})
    return section.get("steps")


def frame(run: Path, width: int) -> tuple[str, bool]:
    """What is on the screen now, and whether the run is done."""
    with as_written(run):
        return _frame(run, width)


def _frame(run: Path, width: int) -> tuple[str, bool]:
    if not (run / "run.json").is_file():
        raise InputError(
            f"{run} is not a run folder: run.json is missing; start train.py with --dir={run} first"
        )
    facts = read_json(run / "run.json", {})
    phases = collect(run)
    lines = [safe(f"{run}  seed {facts.get('seed')}  {facts.get('ranks')} rank(s)", width), ""]
    for p in phases:
        name = f"{p['phase']}" + (f" lap {p['lap']}" if p["lap"] > 1 else "")
        state = f"done in {clock(p['seconds'])}" if p["seconds"] is not None else "running"
        lines.append(f"  {'✓' if p['seconds'] is not None else '▸'} {name:20} {state}")
    running = [p for p in phases if p["seconds"] is None]
    if not running:
        return "\n".join([*lines, ""]), True
    p = running[-1]
    rows, total = p["metrics"], steps_of(facts.get("config", {}), p["phase"], p["lap"])
    if rows:
        recent = [sum(r.get("seconds", {}).values()) for r in rows[-20:]]
        per_step = statistics.mean(recent)
        step = rows[-1]["step"] + 1
        left = f", {clock(per_step * (total - step))} left in it" if total else ""
        lines += ["", f"  step {step}{f' of {total}' if total else ''}, {per_step:.2f} s a step{left}"]
        if tokens := [r["tokens"] for r in rows[-20:] if "tokens" in r]:
            lines[-1] += f", {statistics.mean(tokens) / max(per_step, 1e-9):,.0f} tokens/s"
        for name in SHOWN:
            if values := [r[name] for r in rows if isinstance(r.get(name), (int, float))]:
                lines.append(f"  {name:14} {values[-1]:8.3f}  {sparkline(values, max(width - 30, 10))}")
    last = run / p["folder"] / "last_sample.txt"
    if last.is_file():
        sample = last.read_text(errors="replace").splitlines()[:6]
        lines += ["", "  last sample (advantage, completion):", *(f"  {safe(s, width - 2)}" for s in sample)]
    return "\n".join([*lines, ""]), False


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--once", action="store_true", help="print one frame and end")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between frames")
    args = parser.parse_args()
    try:
        while True:
            text, done = frame(args.run, shutil.get_terminal_size((100, 30)).columns)
            # Home, then clear to the end: no flicker, and what was on the screen before scrolls away.
            print(text if args.once else f"\x1b[H\x1b[2J{text}", flush=True)
            if args.once or done:
                return
            time.sleep(args.every)
    except InputError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
