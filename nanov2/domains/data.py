"""Problems, proofs and critiques from files: JSONL or CSV, columns by name, grades of any scale.

    load(DataConfig("grades.csv", proof="solution", score="points", full=7, half=4), ProofRecord)

Bad lines are InputErrors that name file, line and column. Duplicates and overlong items are left out and
counted; `split` divides by problem, so that no problem is on both sides.
"""

from __future__ import annotations

import csv
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Generic

from nanov2.errors import InputError
from nanov2.records import ProblemRecord, Record, parse_json
from nanov2.settings import Above0, Positive, Within, setting

TEXTS = ("problem", "proof", "critique")
GRADES = ("score", "quality")
WORDS = {  # grades in words, as shares of `full`
    **dict.fromkeys(("correct", "true", "right", "pass", "yes"), 1.0),
    **dict.fromkeys(("partial", "partially correct", "almost"), 0.5),
    **dict.fromkeys(("incorrect", "false", "wrong", "fail", "no"), 0.0),
}
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,15}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:e[+-]?[0-9]{1,2})?")


@dataclass(frozen=True)
class DataConfig:
    """A file of problems, proofs or critiques: its columns, and what its grades mean."""

    path: str = setting("", "JSONL, or CSV with a header line")
    problem: str = setting("problem", "the column that holds X")
    proof: str = setting("proof", "Y")
    critique: str = setting("critique", "V")
    problems: str = setting(
        "", "a further file, of harder problems alone: for automatic labels and later laps"
    )
    score: str = setting("score", "the grade of the proof")
    quality: str = setting("quality", "the grade of the critique")
    wrong: str = setting("wrong", "the proof's first wrong step, word for word; empty where there is none")
    full: Above0 = setting(1.0, "grades of at least this become 1")
    half: Above0 = setting(0.5, "of at least this, 0.5; below, 0")
    top: Annotated[float, Within(0, 1e12)] = setting(
        0.0, "highest grade of the scale, more is an error; 0 = full"
    )
    maximum: str = setting("", "column with each row's full marks: grades are divided by it first")
    max_chars: Positive = setting(100_000, "items with a longer text are left out, and counted")
    held_out: Annotated[float, Within(0, 0.9)] = setting(0.0, "share of the problems that `split` holds out")

    def __post_init__(self):
        if not 0 < self.half <= self.full or (self.top and self.top < self.full):
            raise ValueError(
                f"data: grades must have 0 < half <= full <= top, found half {self.half:g}, "
                f"full {self.full:g}, top {self.top:g}"
            )
        if not 0 <= self.held_out < 1:
            raise ValueError(f"data: held_out must be a share of the problems, found {self.held_out:g}")

    def level(self, grade: float) -> float:
        """0, 0.5 or 1."""
        return 1.0 if grade >= self.full else 0.5 if grade >= self.half else 0.0


@dataclass
class Loaded(Generic[Record]):
    """What a file held."""

    records: list[Record]
    counts: Counter = field(default_factory=Counter)  # kept, duplicate, …
    levels: Counter = field(default_factory=Counter)  # (grade as written, level given to it)

    def report(self) -> str:
        """How many of what, and how grades were mapped: worth a look before any figure is believed."""
        text = ", ".join(f"{n} {what}" for what, n in self.counts.items())
        shown = [f"{grade} → {level:g} ({n})" for (grade, level), n in self.levels.most_common(12)]
        return text + ("; grades " + ", ".join(sorted(shown)) if shown else "")


def load(config: DataConfig, kind: type[Record]) -> Loaded[Record]:
    """The records of a file, in order, with counts of what was left out.

    Every text that `kind` needs must be in every row. A grade may be missing if its column has the default
    name: then it is None.
    """
    texts = [f.name for f in fields(kind) if f.name in TEXTS]
    grade = "quality" if "critique" in texts else "score" if kind is not ProblemRecord else ""
    loaded: Loaded[Record] = Loaded([])
    seen: dict[tuple[str, ...], float | None] = {}
    for where, row in _rows(Path(config.path)):
        values: dict[str, Any] = {name: _text(row, getattr(config, name), where) for name in texts}
        key = tuple(normal(v) for v in values.values())
        if max(map(len, values.values())) > config.max_chars:
            loaded.counts["too long"] += 1
            continue
        if grade:
            values[grade], written = _grade(config, row, grade, where)
        if "proof" in texts:
            values["wrong"] = _marked(row, config, values["proof"], where)
        if key in seen:
            same = not grade or seen[key] == values[grade]
            loaded.counts["duplicate" if same else "duplicate with another grade"] += 1
            continue
        seen[key] = values.get(grade)
        if grade and values[grade] is None:
            loaded.counts["ungraded"] += 1
        elif grade:
            loaded.levels[written, values[grade]] += 1
        loaded.records.append(kind(**values))
    loaded.counts = Counter({"kept": len(loaded.records)}) + loaded.counts
    if not loaded.records:
        raise InputError(f"{config.path}: nothing in it" + (f" ({loaded.report()})" if loaded.counts else ""))
    return loaded


def normal(text: str) -> str:
    """The text without what does not matter to whether two are the same: spacing and capitals."""
    return " ".join(text.split()).casefold()


def split(records: list[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Two parts by problem: about `share` of the problems in the second. Spacing does not make a problem."""
    problems = sorted({normal(r.problem) for r in records})
    random.Random(seed).shuffle(problems)
    held_out = set(problems[: round(share * len(problems))])
    parts = ([], [])
    for r in records:
        parts[normal(r.problem) in held_out].append(r)
    return parts


def _rows(path: Path) -> Iterator[tuple[str, dict]]:
    """(file and line, row)."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:  # spreadsheets write a byte-order mark
            yield from (_csv_rows if path.suffix.lower() == ".csv" else _json_rows)(f, path)
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: not UTF-8: {e}") from e


def _json_rows(f, path: Path) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(f, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise InputError(f"{where}: must be a JSON object, found {type(row).__name__}")
        yield where, row


def _csv_rows(f, path: Path) -> Iterator[tuple[str, dict]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the library's limit is 128 KiB
    reader, first = csv.reader(f, strict=True), 1
    try:
        header = next(reader, [])
        if twice := [name for name, n in Counter(header).items() if n > 1]:
            raise InputError(f"{path}, line 1: two columns are named {twice[0]!r:.80}")
        while True:
            first = reader.line_num + 1  # a row can span lines
            row = next(reader, None)
            if row is None:
                return
            if row and len(row) != len(header):
                counts = f"{len(row)} cells, the header {len(header)}"
                raise InputError(f"{path}, line {first}: the row has {counts}")
            if row:
                yield f"{path}, line {first}", dict(zip(header, row, strict=True))
    except csv.Error as e:
        raise InputError(f"{path}, line {first}: not valid CSV: {e}") from e


def _text(row: dict, column: str, where: str) -> str:
    value = row.get(column)
    if value is None:
        raise InputError(f"{where}: no column {column!r} (columns: {', '.join(row) or 'none'})")
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}, column {column!r}: must be text that is not empty, found {value!r:.60}")
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise InputError(f"{where}, column {column!r}: not Unicode text: {e.reason}") from e
    return value


def _marked(row: dict, config: DataConfig, proof: str, where: str) -> str:
    """The first wrong step, or "" where none is marked."""
    if row.get(config.wrong) in (None, "") and (config.wrong == "wrong" or config.wrong in row):
        return ""
    wrong = _text(row, config.wrong, where)
    if wrong not in proof:
        raise InputError(f"{where}, column {config.wrong!r}: not a part of the proof: {wrong!r:.60}")
    return wrong


def _grade(config: DataConfig, row: dict, name: str, where: str) -> tuple[float | None, str]:
    """(0, 0.5 or 1; the grade as it is written), or (None, "") where there is none."""
    column = getattr(config, name)
    value = row.get(column)
    if value is None or value == "":
        if column == name or column in row:
            return None, ""
        raise InputError(f"{where}: no column {column!r} (columns: {', '.join(row) or 'none'})")
    grade, top = _number(value, config, f"{where}, column {column!r}"), config.top or config.full
    written = f"{value:g}" if isinstance(value, (int, float)) else str(value).strip()
    if config.maximum:
        most = _number(row.get(config.maximum), config, f"{where}, column {config.maximum!r}")
        if most <= 0:
            raise InputError(
                f"{where}, column {config.maximum!r}: full marks must be above 0, found {most:g}"
            )
        grade, written = grade / most, f"{written}/{most:g}"
    if not 0 <= grade <= top:
        raise InputError(
            f"{where}, column {column!r}: grade {written} is not from 0 to {top:g}; "
            "set data.full, data.half and data.top to the scale of the file"
        )
    return config.level(grade), written


def _number(value: object, config: DataConfig, where: str) -> float:
    word = str(value).strip().lower()  # JSON's true and false too
    if word in WORDS:
        return WORDS[word] * config.full
    if not NUMBER.fullmatch(word):
        raise InputError(f"{where}: {value!r:.60} is not a grade")
    return float(word)
