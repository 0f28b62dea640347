"""Graded proofs from files: JSONL or CSV, columns by name, grades of any scale to 0, 0.5 and 1.

    GradedFile("proofs.jsonl", {"score": "points"}, full=7, half=4).read()

Bad lines are InputErrors that name file, line and column. Duplicates and overlong items are left out and
counted; `split` divides by problem, so that no problem is on both sides.
"""

from __future__ import annotations

import csv
import json
import math
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from nanov2.errors import InputError
from nanov2.records import ProofRecord, is_text

WORDS = {"correct": 1.0, "incorrect": 0.0, "true": 1.0, "false": 0.0, "right": 1.0, "wrong": 0.0}


@dataclass(frozen=True)
class GradedFile:
    """Where proofs are and how they are graded."""

    path: str
    columns: dict[str, str] = field(default_factory=dict)  # ours (problem, proof, score) → the file's
    full: float = 1.0  # a grade of at least this is 1
    half: float = 0.5  # of at least this, 0.5; below, 0
    max_chars: int = 100_000  # longer proofs are left out

    def read(self) -> tuple[list[ProofRecord], Counter]:
        """The proofs, and how many lines were kept, doubled or too long."""
        records, seen, counts = [], set(), Counter()
        for number, row in self._rows():
            problem, proof = (self._text(row, name, number) for name in ("problem", "proof"))
            if (problem, proof) in seen:
                counts["duplicate"] += 1
            elif len(proof) > self.max_chars:
                counts["too long"] += 1
            else:
                seen.add((problem, proof))
                records.append(ProofRecord(problem, proof, self._score(row, number)))
                counts["kept"] += 1
        if not records:
            raise InputError(f"{self.path}: no proofs in it")
        return records, counts

    def _rows(self):
        path, number = Path(self.path), 1
        try:
            with open(path, encoding="utf-8", newline="") as f:
                if path.suffix == ".csv":
                    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
                    reader = csv.DictReader(f, strict=True)
                    for row in reader:
                        yield reader.line_num, row
                else:
                    for number, line in enumerate(f, 1):
                        if line.strip():
                            yield number, json.loads(line)
        except OSError as e:
            raise InputError(f"cannot read {path}: {e.strerror}") from e
        except UnicodeDecodeError as e:
            raise InputError(f"{path}: not UTF-8: {e}") from e
        except (ValueError, RecursionError) as e:
            raise InputError(f"{path}, line {number}: not valid JSON: {e}") from e
        except csv.Error as e:
            raise InputError(f"{path}, line {reader.line_num}: not valid CSV: {e}") from e

    def _cell(self, row: object, name: str, number: int) -> object:
        column = self.columns.get(name, name)
        if not isinstance(row, dict) or row.get(column) is None:
            known = ", ".join(map(str, row)) if isinstance(row, dict) else "none"
            raise InputError(f"{self.path}, line {number}: no column {column!r} (columns: {known})")
        return row[column]

    def _text(self, row: object, name: str, number: int) -> str:
        value = self._cell(row, name, number)
        if not is_text(value) or not value.strip():
            raise InputError(f"{self.path}, line {number}: {self.columns.get(name, name)!r} must be text")
        return value

    def _score(self, row: object, number: int) -> float:
        value = self._cell(row, "score", number)
        if isinstance(value, bool):
            value = float(value)
        try:
            grade = (
                WORDS[value.strip().lower()] * self.full
                if str(value).strip().lower() in WORDS
                else float(value)
            )
        except (ValueError, TypeError) as e:
            raise InputError(f"{self.path}, line {number}: {value!r} is not a grade") from e
        if not math.isfinite(grade) or grade < 0:
            raise InputError(f"{self.path}, line {number}: {value!r} is not a grade")
        return 1.0 if grade >= self.full else 0.5 if grade >= self.half else 0.0


def split(records: list[ProofRecord], share: float, seed: int) -> tuple[list[ProofRecord], list[ProofRecord]]:
    """Two parts by problem: about `share` of the problems in the second."""
    problems = sorted({r.problem for r in records})
    random.Random(seed).shuffle(problems)
    held_out = set(problems[: round(share * len(problems))])
    return [r for r in records if r.problem not in held_out], [r for r in records if r.problem in held_out]
