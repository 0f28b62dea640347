"""What benchmarks that go on from finished runs share: jobs in parallel, a run's folders, tables of texts.

An arm is a run that begins from a finished one (`--from`) with one setting changed: what the change does not
touch is taken over, the rest is trained. A job is one process of one rank. Several at once, each with its
share of the cores, do more in an hour than one job with as many ranks.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanov2.distributed.startup import cores
from nanov2.errors import InputError
from nanov2.records import read_json, write_atomically

ROOT = Path(__file__).parents[1]
MISSING = "not measured yet"
PATIENCE = 120.0  # seconds for a process that was asked to end
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t by degrees of freedom


@dataclass(frozen=True)
class Job:
    """A command that leaves the file `done`; it can start when those of `needs` are there."""

    name: str
    command: tuple[str, ...]
    done: Path
    log: Path
    needs: tuple[Path, ...] = ()


def phase_job(
    folder: Path, source: Path, phase: str, lap: int, settings: tuple[str, ...], needs: tuple[Path, ...] = ()
) -> Job:
    """A phase of the run `folder`, which begins from the run `source` with other settings."""
    script = [sys.executable, str(ROOT / "train.py"), f"--phase={phase}", f"--lap={lap}"]
    command = (*script, f"--from={source}", f"--dir={folder}", *settings)
    name = f"{folder} {phase}" + (f" of lap {lap}" if lap > 1 else "")
    return Job(name, command, is_done(folder, phase, lap), folder.with_name(f"{folder.name}.log"), needs)


def phase_folder(run: Path, phase: str, lap: int = 1) -> Path:
    return run / phase if lap == 1 else run / f"lap{lap}" / phase


def is_done(run: Path, phase: str, lap: int = 1) -> Path:
    """The file that a finished phase has."""
    return phase_folder(run, phase, lap) / "phase.json"


def do_all(
    jobs: list[Job], workers: int, minutes: float = math.inf, after: Callable[[], object] = lambda: None
) -> list[str]:
    """Do the jobs, the first ones first, `workers` at once; returns what went wrong, a line a job.

    A finished job is not done again. When the time is up those that run are asked to end, and the same call
    goes on with them. `after()` is called whenever one has finished.
    """
    waiting, running = [job for job in jobs if not job.done.is_file()], {}
    begin, wrong, total = time.monotonic(), [], len(jobs)
    env = os.environ | {"OMP_NUM_THREADS": str(max(1, cores() // workers))}
    try:
        while waiting or running:
            if time.monotonic() - begin > 60 * minutes:
                tell(f"the time is up: {len(waiting) + len(running)} of {total} jobs are left")
                return wrong
            for job in [j for j in waiting if all(need.is_file() for need in j.needs)]:
                if len(running) < workers:
                    waiting.remove(job)
                    job.log.parent.mkdir(parents=True, exist_ok=True)
                    with open(job.log, "ab") as log:
                        process = subprocess.Popen(
                            job.command, stdout=log, stderr=log, env=env, cwd=Path.cwd()
                        )
                    running[job] = process, time.monotonic()
            if not running:
                wrong += [f"{job.name}: what it needs is not there" for job in waiting]
                return wrong
            time.sleep(0.2)
            for job in [j for j, (process, _) in running.items() if process.poll() is not None]:
                _, started = running.pop(job)
                spent = (time.monotonic() - started) / 60
                if job.done.is_file():
                    tell(f"{job.name}: {spent:.1f} min; {len(waiting) + len(running)} of {total} jobs left")
                    after()
                else:
                    wrong.append(f"{job.name}: not finished, see {job.log}")
                    tell(wrong[-1])
        return wrong
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def options(description: str | None, out: str) -> argparse.ArgumentParser:
    """The command line of a benchmark over finished runs."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs, one for each seed")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder for figures and tables")
    parser.add_argument("--workers", type=int, default=cores(), help="processes at once (default: the cores)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after so long, to go on later")
    return parser


def check_runs(runs: list[Path]) -> None:
    """InputError where one of them is no run, or two have the same name."""
    for run in runs:
        if not (run / "config.json").is_file():
            raise InputError(f"{run} is not the folder of a run: config.json is missing")
    if len({run.resolve() for run in runs}) < len(runs):
        raise InputError("a run is given twice: each is to be a seed of its own")


def figures_of(run: Path, phase: str, lap: int = 1, when: str = "after") -> dict[str, float]:
    """A finished phase's held-out figures, by name; empty where it is not finished."""
    if not is_done(run, phase, lap).is_file():
        return {}
    path = phase_folder(run, phase, lap) / "eval.json"
    return {name: figure["value"] for name, figure in read_json(path)[when].items()}


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and its 95% interval by Student's t; of one value the interval is everything."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return mean, -math.inf, math.inf
    half = T95[min(n - 2, len(T95) - 1)] * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


def spread(values: list[float]) -> str:
    """Mean, and of several the standard deviation."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


def difference(values: list[float], digits: int = 3) -> str:
    """Mean of differences within seeds, its interval, and in how many seeds it is above 0."""
    if not values:
        return MISSING
    mean, low, high = interval(values)
    if len(values) == 1:
        return f"{mean:+.{digits}f} (one seed)"
    above = f"{sum(v > 0 for v in values)} of {len(values)} above 0"
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}], {above}"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fill(path: Path, parts: dict[str, str]) -> None:
    """Put each part into a text, between <!-- NAME --> and <!-- end NAME -->; where a text has no such
    place, or is not there, at its end."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        block = f"{begin}\n{part.strip()}\n{end}"
        found = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if found.search(text):
            text = found.sub(lambda _, b=block: b, text)
        else:
            text += f"{block}\n"
    write_atomically(path, text)


def add_table(run: Path, phase: str, lap: int, title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table of a phase in the run's report, in place of an earlier one of this title."""
    path = is_done(run, phase, lap)
    done = read_json(path)
    others = [t for t in done.get("tables", []) if t["title"] != title]
    tables = [*others, {"title": title, "columns": columns, "rows": rows}]
    write_atomically(path, json.dumps(done | {"tables": tables}, indent=1))
