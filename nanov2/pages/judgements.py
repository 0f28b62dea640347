"""Judgements by people: waiting items, an append-only journal, who agrees with whom.

A phase that waits for a person leaves a JSONL file of items without a score (expert.py). Each judgement is
one line of `judgements.jsonl` beside it, on disk before the next item is shown; the state is replayed from
it at start. When every item has a final score, the waiting file is written whole, and the phase goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
import time
from collections import Counter
from pathlib import Path

from nanov2.errors import InputError
from nanov2.records import LEVELS, CritiqueRecord, ProofRecord, read_jsonl, read_lines, write_jsonl

WAITING = {  # file name: what it holds, and the field that an expert fills in
    "proofs_to_score.jsonl": (ProofRecord, "score"),
    "critiques_to_score.jsonl": (CritiqueRecord, "quality"),
    "unclear.jsonl": (ProofRecord, "score"),
}


def item_id(record: ProofRecord | CritiqueRecord) -> str:
    texts = (record.problem, record.proof, getattr(record, "critique", None))
    return hashlib.blake2b(repr(texts).encode(), digest_size=9).hexdigest()


def cohen_kappa(pairs: list[tuple[float, float]]) -> float | None:
    """Agreement of two raters beyond chance (Cohen 1960), unweighted; None for no pair or one category."""
    if not pairs:
        return None
    observed = sum(a == b for a, b in pairs) / len(pairs)
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(first[x] * second[x] for x in first) / len(pairs) ** 2
    return None if chance == 1 else (observed - chance) / (1 - chance)


class Queue:
    """One waiting file with its judgements. Methods may be called from several threads.

    `double` is the share of items, drawn by content, that two experts score; where they differ, the item is
    final once one judgement of it is marked as settling.
    """

    def __init__(self, path: Path, double: float = 0.0):
        self.path, self.journal = path, path.with_name("judgements.jsonl")
        self.kind, self.field = WAITING[path.name]
        self.records = {item_id(r): r for r in read_jsonl(path, self.kind)}
        self.ids = list(self.records)
        self.twice = {i for i in self.ids if int(i[:8], 16) < double * 2**32}
        self.votes: dict[str, dict[str, dict]] = {i: {} for i in self.ids}  # id → expert → judgement
        self.given: dict[str, list[str]] = {}  # expert → ids in the order judged, for undo
        self.skipped: dict[str, dict[str, None]] = {}
        self.cursor: dict[str, int] = {}
        self.final: dict[str, float] = {
            i: getattr(r, self.field) for i, r in self.records.items() if getattr(r, self.field) is not None
        }
        self.lock = threading.RLock()
        self._replay()

    def _replay(self) -> None:
        if not self.journal.is_file():
            return
        lines = read_lines(self.journal)
        if lines and not lines[-1].endswith("\n"):  # torn by a crash: it was never confirmed to anyone
            whole = sum(len(line.encode()) for line in lines[:-1])
            os.truncate(self.journal, whole)
            lines.pop()
        for n, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if row["id"] in self.records:  # the journal of one folder serves all its waiting files
                    self._apply(row)
            except (ValueError, KeyError, TypeError, RecursionError) as e:
                raise InputError(f"{self.journal}:{n}: not a judgement ({e}); mend or delete the line") from e

    def _apply(self, row: dict) -> None:
        id, expert, action = row["id"], row["expert"], row["action"]
        given, skipped = self.given.setdefault(expert, []), self.skipped.setdefault(expert, {})
        if action == "undo":
            self.votes[id].pop(expert, None)
            skipped.pop(id, None)
            if id in given:
                given.remove(id)
            self.cursor[expert] = min(self.cursor.get(expert, 0), self.ids.index(id))
        elif action == "skip":
            skipped[id] = None
            given.append(id)
        else:
            skipped.pop(id, None)
            self.votes[id][expert] = row
            given.append(id)
        self._settle(id)

    def _settle(self, id: str) -> None:
        votes = list(self.votes[id].values())
        values = [v["value"] for v in votes]
        settling = [v["value"] for v in votes if v["action"] == "settle"]
        enough = len(votes) >= (2 if id in self.twice else 1)
        if settling or (enough and len(set(values)) == 1):
            self.final[id] = settling[-1] if settling else values[0]
        else:
            self.final.pop(id, None)

    def judge(self, id: str, expert: str, action: str, value=None, note="", findings=None) -> None:
        """One action ("score", "skip", "undo", "settle") of an expert, on disk when this returns.

        `findings`: for each claimed issue of a critique, True (confirmed), False (rejected) or None.
        """
        if id not in self.records:
            raise InputError(f"no item {id:.40} waits in {self.path}: reload the page")
        if action not in ("score", "skip", "undo", "settle"):
            raise InputError(f"unknown action {action!r:.40}")
        if action in ("score", "settle") and (isinstance(value, bool) or value not in LEVELS):
            raise InputError(f"a score must be 0, 0.5 or 1, found {value!r:.40}")
        row = {"id": id, "expert": expert, "action": action, "value": value, "note": note}
        row |= {"findings": findings, "time": time.time()}
        with self.lock:
            with open(self.journal, "a", encoding="utf-8") as f:
                f.write(json.dumps(row) + "\n")
                f.flush()
                os.fsync(f.fileno())
            self._apply(row)
            if len(self.final) == len(self.ids):
                self.deliver()

    def deliver(self) -> None:
        """Write the scores into the waiting file: the phase that waits for it goes on."""
        notes = {i: "; ".join(f"{e}: {v['value']:g}" for e, v in self.votes[i].items()) for i in self.ids}
        rows = [
            dataclasses.replace(
                r, **{self.field: self.final[i]}, label=f"person ({notes[i]})" if notes[i] else r.label
            )
            for i, r in self.records.items()
        ]
        write_jsonl(self.path, rows)

    def next(self, expert: str) -> str | None:
        """The item to show: the first in order that this expert can still judge; skipped ones last."""
        with self.lock:
            skipped = self.skipped.get(expert, {})
            at = self.cursor.get(expert, 0)
            while at < len(self.ids) and (not self.open_to(self.ids[at], expert) or self.ids[at] in skipped):
                at += 1
            self.cursor[expert] = at
            if at < len(self.ids):
                return self.ids[at]
            return next((i for i in skipped if self.open_to(i, expert)), None)

    def open_to(self, id: str, expert: str) -> bool:
        """Whether the item still wants this expert's score."""
        votes = self.votes[id]
        return id not in self.final and expert not in votes and len(votes) < (2 if id in self.twice else 1)

    def last(self, expert: str) -> str | None:
        """The item that undo takes back."""
        given = self.given.get(expert)
        return given[-1] if given else None

    def disagreements(self) -> list[str]:
        return [i for i in self.twice if i not in self.final and len(self.votes[i]) > 1]

    def agreement(self) -> dict:
        """Cohen's kappa over the items that two experts scored, settlements apart."""
        pairs = []
        for id in self.twice:
            scores = [(e, v["value"]) for e, v in sorted(self.votes[id].items()) if v["action"] == "score"]
            if len(scores) == 2:
                pairs.append((scores[0][1], scores[1][1]))
        return {"pairs": len(pairs), "kappa": cohen_kappa(pairs)}


def waiting_files(run: Path) -> list[Path]:
    """The run's waiting files, oldest first."""
    found = [p for name in WAITING for p in run.rglob(name)]
    return sorted(found, key=lambda p: p.stat().st_mtime)
