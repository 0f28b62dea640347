"""The files of a run folder as the pages read them: whatever is there, of an unfinished run too."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanov2 import journal, records
from nanov2.rl.logs import BY_STEP, GROUPS, read_rows
from nanov2.run.phases import PHASES, title


@dataclass(frozen=True)
class Figure:
    """A held-out figure with its 95% interval and the number of items."""

    value: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Phase:
    """What the folder of one phase holds."""

    name: str
    lap: int
    folder: str  # relative to the run
    title: str
    seconds: float | None  # None: unfinished
    memory_mb: float | None
    memory_of: str  # "phase", or "process": the most that its process had until then
    sampled: float | None  # tokens
    before: dict[str, Figure]
    after: dict[str, Figure]
    curve: list[tuple[float, dict[str, Figure]]]  # step, figures on validation items
    metrics: list[dict]
    samples: list[dict]
    tables: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    beside: dict[str, dict[str, Figure]] = field(default_factory=dict)  # figures of models to compare with
    groups: list[tuple[int, str]] = field(default_factory=list)  # step, a prompt's completions
    by_step: list[dict] = field(default_factory=list)  # samples of validation items, each with its step

    @property
    def key(self) -> tuple[str, int]:
        return self.name, self.lap

    @property
    def label(self) -> str:
        return self.name + (f", lap {self.lap}" if self.lap > 1 else "")

    @property
    def anchor(self) -> str:
        return f"{self.name}-{self.lap}"


def read_json(path: Path) -> dict:
    """The object of a JSON file, an empty one where there is no file yet."""
    return records.read_json(path) if path.is_file() else {}


def number(x: Any) -> float | None:
    """A finite number, or None: a loss that ran away says NaN."""
    good = isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
    return x if good else None


def figures(found: dict) -> dict[str, Figure]:
    """The figures of one measurement; entries that are no figure (the step), or not finite, are left out."""
    out = {}
    for name, m in found.items():
        if not isinstance(m, dict):
            continue
        values = [number(m.get(k)) for k in ("value", "low", "high", "n")]
        if values[0] is not None:
            value, low, high, n = values
            out[name] = Figure(
                value, value if low is None else low, value if high is None else high, int(n or 0)
            )
    return out


def lap_folders(run: Path) -> Iterator[tuple[int, Path]]:
    yield 1, run
    numbered = ((p.name[3:], p) for p in run.glob("lap*"))
    yield from sorted((int(n), p) for n, p in numbered if n.isdecimal() and len(n) < 7)


def read_phase(run: Path, here: Path, name: str, lap: int) -> Phase:
    done = read_json(here / "phase.json")
    measured = read_json(here / "eval.json")
    return Phase(
        name,
        lap,
        str(here.relative_to(run)),
        str(done.get("title") or title(name, lap)),
        number(done.get("seconds")),
        number(done.get("peak_memory_mb")),
        str(done.get("memory_of", "process")),
        number(done.get("sampled_tokens")),
        figures(measured.get("before", {})),
        figures(measured.get("after", {})),
        [(c["step"], figures(c)) for c in measured.get("curve", []) if number(c.get("step")) is not None],
        read_rows(here / "metrics.jsonl"),
        journal.read(here / "samples.jsonl"),
        [t for t in done.get("tables", []) if t["rows"] is not None and t["columns"] is not None],
        [str(n) for n in done.get("notes", [])],
        {str(model): figures(found) for model, found in measured.get("beside", {}).items()},
        [(row["step"], str(row.get("text", ""))) for row in read_rows(here / GROUPS)],
        read_rows(here / BY_STEP),
    )


def read_phases(run: Path) -> list[Phase]:
    """Every phase that has a folder, in the order of the cycle."""
    return [
        read_phase(run, folder / name, name, lap)
        for lap, folder in lap_folders(run)
        for name in PHASES
        if (folder / name).is_dir()
    ]
