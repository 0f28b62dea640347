"""The expert: who scores proofs (s) and critiques (ms).

- ExactExpert: the truth of a domain that has one.
- FileExpert: looks the scores up in a labelled JSONL file, and asks a person for the rest.
- GradesExpert: proofs come with people's grades; a critique is as good as its score is near them.
- MarksExpert: proofs come with people's grades and marks of the first wrong step; a critique is judged by the
  places of its claims.
- PersonExpert: writes what is waiting to a file, and the phase goes on when it comes back filled in: when it
  is started again, or by itself where it waits for the judging page (judge.py).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from nanov2.domains.domain import Truth
from nanov2.domains.language import read_score
from nanov2.domains.marks import grade_by_marks
from nanov2.errors import InputError
from nanov2.records import CritiqueRecord, ProofRecord, read_jsonl, write_jsonl

Judged = TypeVar("Judged", ProofRecord, CritiqueRecord)

GRADED = ("grades", "marks")  # experts that know proofs that people graded, and cannot score a new one


class Expert(Protocol):
    def score_proofs(self, records: list[ProofRecord]) -> list[ProofRecord]:
        """The records with `score` filled in."""
        ...

    def score_critiques(self, records: list[CritiqueRecord]) -> list[CritiqueRecord]:
        """The records with `quality` filled in."""
        ...


class ExactExpert:
    """Knows the truth of the domain. With `misses`, a critique that passes over an issue is worth 0.5 at
    most; the paper's ms judges what is claimed alone."""

    def __init__(self, truth: Truth, misses: bool = False):
        self.truth, self.misses = truth, misses

    def score_proofs(self, records: list[ProofRecord]) -> list[ProofRecord]:
        return [
            dataclasses.replace(r, score=self.truth.score(r.problem, r.proof), label="expert")
            for r in records
        ]

    def score_critiques(self, records: list[CritiqueRecord]) -> list[CritiqueRecord]:
        grades = [self.truth.examine(r.problem, r.proof, r.critique) for r in records]
        return [
            dataclasses.replace(
                r, quality=min(g.quality, 0.5 if self.misses and g.missed else 1.0), label="expert"
            )
            for r, g in zip(records, grades, strict=True)
        ]


class FileExpert:
    """Scores from a file of graded proofs and one of graded critiques; `rest` is asked for what is not in
    them, and where there is nobody to ask that is an InputError."""

    def __init__(
        self, proofs: Path | None = None, critiques: Path | None = None, rest: PersonExpert | None = None
    ):
        self.path, self.rest = proofs or critiques, rest
        self.proofs = {_key(r): r for r in (read_jsonl(proofs, ProofRecord) if proofs else [])}
        self.critiques = {_key(r): r for r in (read_jsonl(critiques, CritiqueRecord) if critiques else [])}

    def score_proofs(self, records: list[ProofRecord]) -> list[ProofRecord]:
        return self._fill(records, self.proofs, "score", self.rest.score_proofs if self.rest else None)

    def score_critiques(self, records: list[CritiqueRecord]) -> list[CritiqueRecord]:
        ask = self.rest.score_critiques if self.rest else None
        return self._fill(records, self.critiques, "quality", ask)

    def _fill(self, records: list, known: dict, name: str, ask: Callable[[list], list] | None) -> list:
        found = [_judged(r, known, name, "file") for r in records]
        missing = [r for r, f in zip(records, found, strict=True) if f is None]
        if missing and not ask:
            raise InputError(
                f"{self.path}: no {name} for {len(missing)} of {len(records)} items, "
                f"the first of problem {missing[0].problem[:60]!r}"
            )
        asked = iter(ask(missing) if missing else [])
        return [f or next(asked) for f in found]


def _key(record: ProofRecord | CritiqueRecord) -> tuple[str, ...]:
    return record.problem, record.proof, getattr(record, "critique", "")


def _judged(record: Judged, known: dict, name: str, label: str) -> Judged | None:
    """The record with the grade `name` and the first wrong step that somebody gave it; None: nobody did."""
    by = known.get(_key(record))
    if by is None or getattr(by, name) is None:
        return None
    if by.wrong not in record.proof:
        raise InputError(
            f"the first wrong step {by.wrong!r:.60} is no part of the proof of {record.problem[:60]!r}: give "
            'it word for word, or leave "wrong" empty'
        )
    given = {name: getattr(by, name), "wrong": by.wrong or record.wrong}
    return dataclasses.replace(record, **given, label=label)


class GradesExpert:
    """For graded proofs and nobody to grade critiques: ms = 1 − |s' − s|, which is 0, 0.5 or 1.

    A stand-in, and weaker than a person: it cannot see an invented issue behind a right score.
    """

    def score_proofs(self, records: list[ProofRecord]) -> list[ProofRecord]:
        missing = [r for r in records if r.score is None]
        if missing:
            raise InputError(
                f"{len(missing)} proofs have no grade, the first of problem {missing[0].problem[:60]!r}: "
                "grade them, or let --expert=page ask a person"
            )
        return records

    def score_critiques(self, records: list[CritiqueRecord]) -> list[CritiqueRecord]:
        claims = [read_score(r.critique) for r in records]
        return [
            dataclasses.replace(r, quality=0.0 if c is None else 1 - abs(c - r.score), label="by its score")
            for r, c in zip(records, claims, strict=True)
        ]


class MarksExpert(GradesExpert):
    """For graded proofs whose first wrong step is marked: ms from where a critique claims defects.

    Of a faulty proof without a mark the score is known and ms is not (`gradable`). Where none has one, or a
    right proof has, that is an InputError.
    """

    def score_proofs(self, records: list[ProofRecord]) -> list[ProofRecord]:
        graded = super().score_proofs(records)
        unmarked = not any(r.wrong for r in graded if r.score < 1)
        _check_marks([r for r in graded if unmarked or r.score == 1])
        return graded

    def score_critiques(self, records: list[CritiqueRecord]) -> list[CritiqueRecord]:
        _check_marks(records)
        return [
            dataclasses.replace(
                r, quality=grade_by_marks(r.proof, r.wrong, r.critique).quality, label="by marks"
            )
            for r in records
        ]


def is_marked(record: ProofRecord | CritiqueRecord) -> bool:
    """Whether marks tell a real defect from an invented one: a faulty proof has its first wrong step."""
    return record.score is not None and (record.score < 1) == bool(record.wrong)


def gradable(expert: str, records: list[ProofRecord]) -> list[ProofRecord]:
    """The proofs whose critiques the expert can grade: "marks" needs to know where they are wrong."""
    return [r for r in records if expert != "marks" or is_marked(r)]


def _check_marks(records: list) -> None:
    """Refuse grades and marks that contradict each other."""
    for r in records:
        if not is_marked(r):
            raise InputError(
                f'expert "marks": a proof of {r.problem[:60]!r} has '
                f"{'no score' if r.score is None else f'score {r.score:g}'} and "
                f"{'a' if r.wrong else 'no'} first wrong step; data.wrong names the column"
            )


class PersonExpert:
    """Judgements by hand: items wait in `folder`, with `score` or `quality` null, to be filled in.

    `wait`: look every second whether they are, rather than stop with an InputError.
    """

    def __init__(self, folder: Path, wait: bool = False):
        self.folder, self.wait = Path(folder), wait

    def score_proofs(self, records: list[ProofRecord]) -> list[ProofRecord]:
        return self._ask(records, self.folder / "proofs_to_score.jsonl", ProofRecord, "score")

    def score_critiques(self, records: list[CritiqueRecord]) -> list[CritiqueRecord]:
        return self._ask(records, self.folder / "critiques_to_score.jsonl", CritiqueRecord, "quality")

    def _ask(self, records: list[Judged], path: Path, kind: type[Judged], name: str) -> list[Judged]:
        told = False
        while True:
            known = {_key(r): r for r in read_jsonl(path, kind)} if path.is_file() else {}
            filled = [_judged(r, known, name, "person") for r in records]
            open_items = filled.count(None)
            if not open_items:
                return filled
            if any(_key(r) not in known for r in records):  # never overwrite what a person has written
                waits: dict = {name: None, "label": "person"}
                rows = zip(records, filled, strict=True)
                write_jsonl(path, [f or dataclasses.replace(r, **waits) for r, f in rows])
            if self.wait:
                if not told:
                    print(f"{open_items} items wait in {path}: python -m nanov2 judge {self.folder.parent}")
                    told = True
                time.sleep(1.0)
                continue
            raise InputError(
                f"{open_items} of {len(records)} items wait for an expert: set every {name!r} to 0, 0.5 or 1 "
                f"in {path}, then run the same command again"
            )


def make_expert(setting: str, folder: Path, truth: Truth | None = None, misses: bool = False) -> Expert:
    """The expert that the configuration names: "exact", "grades", "marks", "person", "page" (a person, waited
    for), or the path of a labelled file."""
    if setting == "exact":
        if truth is None:
            raise InputError(
                'expert "exact": nobody knows the truth here; set --expert=page, person, or a file'
            )
        return ExactExpert(truth, misses)
    if setting in GRADED:
        return MarksExpert() if setting == "marks" else GradesExpert()
    if setting in ("person", "page"):
        return PersonExpert(folder, wait=setting == "page")
    path = Path(setting)
    critiques = path.with_name("critiques.jsonl")
    return FileExpert(path, critiques if critiques.is_file() else None, PersonExpert(folder))
