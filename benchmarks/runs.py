"""What benchmarks that go on from finished runs share: a run's folders, its phases, its report's tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def phase_folder(run: Path, phase: str, lap: int) -> Path:
    return run / phase if lap == 1 else run / f"lap{lap}" / phase


def do_phase(run: Path, phase: str, lap: int, ranks: int, *flags: str) -> None:
    """One phase of train.py on so many ranks, unless it is done."""
    if not (phase_folder(run, phase, lap) / "phase.json").is_file():
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
        ]
        script = [str(ROOT / "train.py"), f"--phase={phase}", f"--lap={lap}", f"--dir={run}"]
        subprocess.run([*torchrun, *script, *flags], check=True)


def figures_after(run: Path, phase: str, lap: int) -> dict[str, dict]:
    """The held-out figures that a phase ended with, by metric."""
    return json.loads((phase_folder(run, phase, lap) / "eval.json").read_text())["after"]


def add_table(run: Path, phase: str, lap: int, title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table of a phase in the run's report, in place of an earlier one of this title."""
    path = phase_folder(run, phase, lap) / "phase.json"
    done = json.loads(path.read_text())
    others = [t for t in done.get("tables", []) if t["title"] != title]
    tables = [*others, {"title": title, "columns": columns, "rows": rows}]
    path.write_text(json.dumps(done | {"tables": tables}, indent=1))
