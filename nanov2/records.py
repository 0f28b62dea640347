"""What the data sets hold, as JSON lines that a person can read and edit.

𝒟p problems (X), 𝒟v graded proofs (X, Y, s), 𝒟mv graded critiques (X, Y, V, ms). Files are written whole
to a temporary name and renamed, so that a kill or a full disk leaves the old file, never half a new one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TypeGuard, TypeVar

from nanov2.errors import InputError

LEVELS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class ProblemRecord:
    """One line of 𝒟p."""

    problem: str  # X
    kind: str = ""  # the problem's type, for drawing diverse subsets


@dataclass(frozen=True)
class ProofRecord:
    """One line of 𝒟v; `score` is None while it waits for an expert."""

    problem: str  # X
    proof: str  # Y
    score: float | None = None  # s ∈ {0, 0.5, 1}
    kind: str = ""
    source: str = ""  # who wrote the proof: "coldstart/draft", "autolabel/lap1", …
    label: str = ""  # who scored it: "expert", "consensus 8/8", …
    wrong: str = ""  # the first wrong step, word for word, where somebody marked it


@dataclass(frozen=True)
class CritiqueRecord:
    """One line of 𝒟mv; `quality` is None while it waits for an expert."""

    problem: str  # X
    proof: str  # Y
    critique: str  # V
    quality: float | None = None  # ms ∈ {0, 0.5, 1}
    score: float | None = None  # s of the proof, where known
    source: str = ""
    label: str = ""
    wrong: str = ""  # of the proof


@dataclass(frozen=True)
class TrajectoryRecord:
    """A proof with its author's own critiques and revisions: draft, critique, revision, …, final."""

    problem: str
    turns: tuple[tuple[str, str], ...]  # (task, text)
    reward: float | None = None
    kind: str = ""


Record = TypeVar("Record", ProblemRecord, ProofRecord, CritiqueRecord, TrajectoryRecord)


def write_atomically(path: str | Path, data: str | bytes) -> None:
    """Write a whole file so that it is either the old one or the new one, whatever happens."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            f.write(data.encode("utf-8") if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(
            f"cannot write {path}: {e.strerror}; free space or fix permissions and run again: "
            "what was finished before is kept"
        ) from e


def write_jsonl(path: str | Path, records: Iterable) -> None:
    """Write dataclasses or dicts, one JSON object a line."""
    rows = (
        dataclasses.asdict(r) if dataclasses.is_dataclass(r) and not isinstance(r, type) else r
        for r in records
    )
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: str | Path, kind: type[Record]) -> list[Record]:
    """Records of a JSONL file.

    Raises InputError naming file, line and field where a line is not a JSON object, lacks a field, has a
    field too many, or has one of the wrong type; scores must be 0, 0.5, 1 or null.
    """
    lines = read_lines(path)
    return [parse_record(line, kind, f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip()]


def read_lines(path: str | Path) -> list[str]:
    """Lines of a UTF-8 file with their ends, split at line feeds alone: texts may hold other separators."""
    try:
        with open(path, encoding="utf-8", newline="\n") as f:
            return f.readlines()
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"cannot read {path}: {e}") from e


def read_json(path: str | Path, most: int = 0) -> dict:
    """The object that a JSON file holds; InputError naming the file for anything else, and with `most` for a
    larger file than so many MiB."""
    try:
        if most and Path(path).stat().st_size > most << 20:
            raise InputError(f"{path}: larger than {most} MiB")
        value = parse_json(Path(path).read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from e
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def parse_json(text: str, where: str) -> object:
    """A JSON value; InputError, headed by `where`, for anything else, bombs included."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise InputError(f"{where}: not valid JSON ({e}); mend it, or leave it out") from e


def parse_record(line: str, kind: type[Record], where: str) -> Record:
    """One record from its line; `where` (file:line) heads the error."""
    row = parse_json(line, where)
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(row).__name__}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := row.keys() - fields.keys():
        raise InputError(f"{where}: unknown field {sorted(unknown)[0]!r:.80}; known: {', '.join(fields)}")
    required = {f.name for f in fields.values() if f.default is dataclasses.MISSING}
    if missing := required - row.keys():
        raise InputError(f"{where}: field {sorted(missing)[0]!r} is missing")
    for name, value in row.items():
        _check(name, value, where)
    if "turns" in row:
        row["turns"] = tuple((task, text) for task, text in row["turns"])
    return kind(**row)


def _check(name: str, value: object, where: str) -> None:
    if name in ("score", "quality"):
        if value is not None and (isinstance(value, bool) or value not in LEVELS):
            raise InputError(f"{where}: {name} must be 0, 0.5, 1 or null, found {value!r:.80}")
    elif name == "reward":
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise InputError(f"{where}: reward must be a number or null, found {value!r:.80}")
    elif name == "turns":
        pairs = isinstance(value, list) and all(
            isinstance(t, list) and len(t) == 2 and all(map(is_text, t)) for t in value
        )
        if not pairs:
            raise InputError(f"{where}: turns must be a list of [task, text]")
    elif not is_text(value):
        raise InputError(f"{where}: {name} must be text, found {value!r:.80}")


def is_text(value: object) -> TypeGuard[str]:
    """A string of whole characters: JSON can spell half of a surrogate pair, which no file can hold."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def group(items: list, key: Callable) -> list[list]:
    """The items with one key each, by key."""
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return [groups[k] for k in sorted(groups)]


def in_turn(queues: list[list]) -> list:
    """One of each queue, then the second of each, and so on."""
    return [item for row in zip_longest(*queues) for item in row if item is not None]
