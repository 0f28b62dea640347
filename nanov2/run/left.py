"""The time that a run has left: what its finished phases took, on the steps that are planned."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from nanov2.run.phases import PHASES, planned_steps

Key = tuple[str, int]  # phase, lap


@dataclass(frozen=True)
class Spent:
    """What a finished phase took, in seconds."""

    step: float  # of one step; 0 where it has none
    beside: float  # of all but its steps: measuring, and records that models write

    @classmethod
    def of(cls, seconds: float, rows: list[dict]) -> Spent:
        """By the phase's seconds and the rows of its metrics.jsonl."""
        steps = steps_seconds(rows)
        return cls(steps / max(len(rows), 1), max(seconds - steps, 0.0))


def steps_seconds(rows: list[dict]) -> float:
    """What the steps of metrics.jsonl took, over all processes that did them."""
    spent = [row.get("seconds", {}) for row in rows]
    seconds = (s for row in spent if isinstance(row, dict) for s in row.values())
    return sum(s for s in seconds if isinstance(s, (int, float)) and math.isfinite(s))


def estimate(key: Key, done: dict[Key, Spent], settings: dict) -> float | None:
    """Seconds of a phase to come by its own last lap, or else by a phase whose steps are much like its; None
    where the run has finished neither."""
    phase, lap = key
    for name in (phase, *PHASES[phase].like):
        if laps := [n for p, n in done if p == name]:
            spent = done[name, max(laps)]
            return spent.beside + spent.step * (planned_steps(settings, phase, lap) or 0)
    return None


def time_left(
    todo: Iterable[Key], done: dict[Key, Spent], settings: dict, running: float | None = None
) -> str:
    """What a terminal says of the phases `todo`, and of the one under way, which is to go on for `running`
    seconds; nothing where nothing is known."""
    found = [estimate(key, done, settings) for key in todo]
    known = [s for s in [*found, running] if s is not None]
    if not known:
        return ""
    told = f"{clock(sum(known))} left by the phases so far"
    unknown = found.count(None)
    return f"at least {told}; {unknown} to come are of new kinds" if unknown else f"about {told}"


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
