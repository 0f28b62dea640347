"""What a phase was made with, and what it left: its settings from its first step on, checksums from its end.

PHASE/settings.json     written before anything else of the phase; other settings are refused by name
PHASE/phase.json        "files": BLAKE2b of what the finished phase left, checked when a later phase reads it
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from nanov2.errors import InputError
from nanov2.records import read_json, write_atomically
from nanov2.run.config import Config, load_config
from nanov2.run.phases import PHASES

# What changes no figure, or only how answers of the same model are reached.
FREE = {"keep", "save_every", "checkpointing"}
NOT_OF_PHASES = {"laps", "search", "endpoint", "rollout", "parallel"}
# What a person goes on writing after the phase's end.
BY_HAND = ("unclear.jsonl", "unscored_proofs.jsonl", "proofs_to_score.jsonl", "critiques_to_score.jsonl")


def settings_of(phase: str, lap: int, config: Config) -> dict:
    """Everything that the results of a phase depend on: what all phases share, and its own section."""
    everything = json.loads(json.dumps(config.to_dict()))
    others = {name for p in PHASES for name in (p, f"lap_{p}")} | NOT_OF_PHASES
    shared = {name: value for name, value in everything.items() if name not in others}
    if config.gets_harder:  # how hard the hardest problems are depends on it
        shared["laps"] = config.laps
    shared["precision"] = config.parallel.precision
    if not config.lora.rank:
        del shared["lora"]
    if phase == "coldstart" and config.scorer == "endpoint":  # whose critiques become scores by its rule
        shared["autolabel"] = everything["autolabel"]
    own = config.section(phase, lap)
    limits = {name: {"max_tokens": everything[name]["max_tokens"]} for name in PHASES[phase].limits}
    return shared | limits | {own: everything[own]}


def begin(folder: Path, phase: str, lap: int, config: Config) -> None:
    """Write down what a phase is made with; InputError where it was begun with other settings."""
    refuse_others(folder, phase, lap, config, config)
    if not (folder / "settings.json").is_file():
        write_atomically(folder / "settings.json", json.dumps(settings_of(phase, lap, config), indent=1))


def check_run(run: Path, config: Config) -> None:
    """InputError where a begun or finished phase of a run folder was made with other settings.

    Reads only. A folder without settings.json is held against the run's config.json.
    """
    path = run / "config.json"
    old = load_config(path) if path.is_file() else config
    for phase, lap, folder in phases_in(run):
        if (folder / "settings.json").is_file() or (folder / "phase.json").is_file():
            refuse_others(folder, phase, lap, config, old)


def phases_in(run: Path) -> Iterator[tuple[str, int, Path]]:
    """(phase, lap, folder) of every phase that a run folder has."""
    for path in [run, *sorted(run.glob("lap*"))]:
        lap = 1 if path == run else int(re.sub(r"\D", "", path.name) or 0)
        for phase in PHASES:
            if lap and (path / phase).is_dir():
                yield phase, lap, path / phase


def refuse_others(folder: Path, phase: str, lap: int, config: Config, old: Config) -> None:
    if changed := other_settings(folder, phase, lap, config, old):
        raise InputError(
            f"{folder} was made with other settings of {', '.join(changed)}: go on with those, or use "
            "another --dir; --from takes over what the change does not touch"
        )


def other_settings(folder: Path, phase: str, lap: int, config: Config, old: Config) -> list[str]:
    """The settings in which a phase differs from `config`, each with both values; `old`: those of its run."""
    new, path = settings_of(phase, lap, config), folder / "settings.json"
    known = read_json(path) if path.is_file() else settings_of(phase, lap, old)
    for limit in set(PHASES[phase].limits) - known.keys():  # an older version did not write it down
        del new[limit]
    return sorted(_differences(new, _filled(known, settings_of(phase, lap, Config()))))


def _filled(known: dict, defaults: dict) -> dict:
    """What an older version wrote: a setting that it did not have yet was what is now the default."""
    both = {n for n, d in defaults.items() if isinstance(d, dict) and isinstance(known.get(n), dict)}
    return defaults | known | {n: _filled(known[n], defaults[n]) for n in both}


def _differences(new: dict, old: dict, prefix: str = "") -> Iterator[str]:
    """What differs, as "base.lr (0.003, now 0.02)". A setting that there is no more does not count."""
    for name in (new.keys() & old.keys()) - FREE:
        a, b = old[name], new[name]
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(b, a, f"{name}.")
        elif name == "expert" and {a, b} <= {"person", "page"}:
            continue  # the same people, asked in another way
        elif a != b:
            yield f"{prefix}{name} ({a!r:.60}, now {b!r:.60})"


def checksums(folder: Path) -> dict[str, str]:
    """BLAKE2b of what a finished phase leaves to others, by file name."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return {name: digest(folder / name) for name in names if name not in (*BY_HAND, "phase.json")}


def check_file(path: Path, again: str) -> None:
    """InputError where a file of a finished phase is missing or not as the phase left it.

    `again` is the command that makes it again.
    """
    if what := fault(path):
        raise InputError(
            f"{path} {what}: put it back, or move {path.parent} and what came after it away, "
            f"and run `{again}`"
        )


def fault(path: Path) -> str:
    """What is wrong with a file of a finished phase; "" where nothing is, or nobody vouches for it."""
    sums = read_json(path.parent / "phase.json").get("files", {})
    wanted = sums.get(path.name) if isinstance(sums, dict) else None
    if wanted is None:
        return ""
    try:
        return "" if digest(path) == wanted else "has changed since the phase wrote it"
    except OSError:
        return "cannot be read" if path.is_file() else "is missing"


def digest(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def clear_leftovers(run: Path) -> None:
    """Remove temporary files and folders that killed processes of this machine left in a run folder."""
    for path in sorted(run.rglob(".*.tmp"), reverse=True):  # what is in a folder before the folder
        found = re.fullmatch(r"\..+\.(\d+)\.tmp", path.name)
        if not found or _alive(int(found[1])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
