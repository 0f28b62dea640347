"""Begin a run from another's finished phases: what would be made with the same settings is not made again.

    python train.py --phase=flywheel --from=runs/a --dir=runs/b --verifier2.meta_gate=false

Every phase rests on those before it, so what is taken is the first part of the cycle: up to the first phase
that the other run has not finished, or made with other settings, or that this run has begun itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from nanov2.errors import InputError
from nanov2.records import read_json, write_atomically
from nanov2.run import seal
from nanov2.run.config import load_config
from nanov2.run.folder import Run
from nanov2.run.phases import flywheel

LINKED = ".safetensors"  # written whole and renamed, never changed: two runs can share one file


@dataclass
class Takeover:
    """What a run takes from another, and why no more."""

    source: Path
    phases: list[tuple[str, int]] = field(default_factory=list)
    end: str = ""  # why the next phase is not taken

    def __str__(self) -> str:
        names = [name if lap == 1 else f"lap{lap}/{name}" for name, lap in self.phases]
        taken = f"taken from {self.source}: {', '.join(names) or 'nothing'}"
        return f"{taken}; {self.end}" if self.end else taken


def plan(run: Run, source: Path, last: tuple[str, int]) -> Takeover:
    """What `run` can take, up to the phase `last`. Reads only.

    InputError where the source is no run, is the run itself, or holds a file that has changed since.
    """
    if not (source / "config.json").is_file():
        raise InputError(f"--from={source} is not the folder of a run: config.json is missing")
    if source.resolve() == run.dir.resolve():
        raise InputError(f"--from={source} is the run itself: give another --dir")
    found, old = Takeover(source), load_config(source / "config.json")
    theirs = Run(source, old, run.ranks)
    made = flywheel(old)
    for i, (phase, lap) in enumerate(flywheel(run.config)):
        here, there = run.folder(phase, lap), theirs.folder(phase, lap)
        if made[i : i + 1] not in ([(phase, lap)], []):  # such as renew_meta.on in one of the two
            found.end = f"{there} came after {theirs.folder(*made[i])}, which this run has not"
        elif not theirs.is_done(phase, lap):
            found.end = f"{there} is not finished"
        elif differences := seal.other_settings(there, phase, lap, run.config, old):
            found.end = f"{there} was made with other settings of {', '.join(differences)}"
        elif here.is_dir() and not _same(here, there):
            found.end = f"{here} was begun here"
        if found.end:
            break
        _check(there)
        if not here.is_dir():
            found.phases.append((phase, lap))
        if (phase, lap) == last:
            break
    return found


def _same(here: Path, there: Path) -> bool:
    """Whether a phase that both runs have finished left the same files."""
    done = here / "phase.json"
    return done.is_file() and read_json(done).get("files") == read_json(there / "phase.json").get("files")


def _check(folder: Path) -> None:
    for name in read_json(folder / "phase.json").get("files", {}):
        if fault := seal.fault(folder / name):
            raise InputError(f"--from: {folder / name} {fault}: put it back, or begin without --from")


def take(run: Run, found: Takeover) -> None:
    """Copy the phases of the plan, each at once and whole; weights are hard links where the disk has them."""
    for phase, lap in found.phases:
        here = run.folder(phase, lap)
        there = found.source / here.relative_to(run.dir)
        temporary = here.with_name(f".{phase}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        skip = shutil.ignore_patterns("snapshots", ".*")
        shutil.copytree(there, temporary, copy_function=_link_or_copy, ignore=skip)
        done = read_json(there / "phase.json")
        notes = [*done.get("notes", []), f"taken from {found.source}, where it was made"]
        write_atomically(temporary / "phase.json", json.dumps(done | {"notes": notes}, indent=1))
        os.replace(temporary, here)


def _link_or_copy(source: str, target: str) -> None:
    if source.endswith(LINKED):
        with contextlib.suppress(OSError):  # another disk, or one without links
            return os.link(source, target)
    shutil.copy2(source, target)
