"""Judgements by people: waiting items, an append-only journal, who agrees with whom.

A phase that waits for a person leaves a JSONL file of items without a score (method/experts.py). Each
judgement is one line of `judgements.jsonl` beside it, on disk before it is confirmed; the state of every item
is replayed from the journal:

    open ──judged by as many experts as it needs──> agreed       all gave one score
                                                └─> disputed ──settled by anybody──> settled

Agreed and settled items are final. `proofs_to_score.jsonl` and `critiques_to_score.jsonl` are filled in once
every item is final, and the phase goes on; in `unclear.jsonl` and `unscored_proofs.jsonl` each final score
counts at once.

Leases keep experts apart: an item that is shown to one expert is not offered to another while the lease
lasts. They live in memory alone: a score counts as long as the item is open, with or without one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import threading
import time
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from nanov2.errors import InputError
from nanov2.records import LEVELS, CritiqueRecord, ProofRecord, is_text, read_jsonl, write_jsonl

WAITING: dict[
    str, tuple[type[Any], str]
] = {  # file name: what it holds, and the field that an expert fills in
    "proofs_to_score.jsonl": (ProofRecord, "score"),
    "critiques_to_score.jsonl": (CritiqueRecord, "quality"),
    "unclear.jsonl": (ProofRecord, "score"),
    "unscored_proofs.jsonl": (ProofRecord, "score"),
}
AT_ONCE = ("unclear.jsonl", "unscored_proofs.jsonl")  # each score counts; nothing waits for the last
ACTIONS = ("score", "skip", "undo", "settle")
LEASE = 60.0  # seconds that a shown item is kept for one expert; the page renews it while she is at work
MAX_NOTE = 5000  # characters


class Late(InputError):
    """A judgement that the item no longer takes: someone was first. The next item is to be shown."""


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


def clean_name(name: object) -> str:
    """An expert's name, as it goes into labels: one line of printable characters, InputError otherwise."""
    if not is_text(name) or not name.strip() or len(name) > 60:
        raise InputError("give your name first (up to 60 characters)")
    name = unicodedata.normalize("NFC", name.strip())
    if not name.isprintable():
        raise InputError("a name is of printable characters only")
    return name


def clean_note(note: object) -> str:
    """A note without control characters, line ends and tabs apart; InputError where it is no text."""
    if not is_text(note) or len(note) > MAX_NOTE:
        raise InputError(f"a note is text of up to {MAX_NOTE} characters")
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Zl", "Zp") else " " for c in note
    )


# --- the journal ----------------------------------------------------------------------------------


def append_line(path: Path, row: dict) -> None:
    """One line more, on disk when this returns. InputError where the disk does not take the whole line.

    A part that stays behind spoils no line but its own: what follows it begins on a new line.
    """
    data = json.dumps(row).encode() + b"\n"
    try:
        with open(path, "a+b", buffering=0) as f:
            size = f.seek(0, os.SEEK_END)
            if size:
                f.seek(size - 1)
                if f.read(1) != b"\n":
                    data = (
                        b" torn\n" + data
                    )  # also where all but the line's end was written: it was not confirmed
            try:
                while data:
                    data = data[f.write(data) :]
                os.fsync(f.fileno())
            except OSError:
                f.truncate(size)
                raise
    except OSError as e:
        raise InputError(
            f"not saved: cannot write {path} ({e.strerror}); free space or fix permissions"
        ) from e


def read_journal(path: Path) -> tuple[list[dict], int]:
    """The judgements of a journal, and the number of torn lines, which were never confirmed to anyone."""
    if not path.is_file():
        return [], 0
    try:
        *lines, tail = path.read_bytes().split(b"\n")
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e
    rows = [_judgement(line) for line in lines if line.strip()]
    whole = [row for row in rows if row is not None]
    return whole, len(rows) - len(whole) + bool(tail)


def _judgement(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
        id, expert, action = row["id"], row["expert"], row["action"]
        good = isinstance(id, str) and isinstance(expert, str) and action in ACTIONS
        if action in ("score", "settle"):
            good = good and not isinstance(row["value"], bool) and row["value"] in LEVELS
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return row | {"expert": expert.encode(errors="replace").decode()} if good else None


# --- the items of one file ------------------------------------------------------------------------


@dataclass
class Item:
    """One item and what experts said of it."""

    need: int  # experts who score it
    written: float | None  # its score in the file
    votes: dict[str, dict] = field(default_factory=dict)  # expert → judgement
    settled: dict | None = None
    leases: dict[str, float] = field(default_factory=dict)  # expert → when it ends
    undone: bool = False  # the journal's last word on it is an undo: what the file says is out of date

    @property
    def state(self) -> str:
        if self.settled:
            return "settled"
        values = {v["value"] for v in self.votes.values()}
        if len(values) > 1:
            return "disputed"
        judged = len(self.votes) >= self.need or (self.written is not None and not self.undone)
        return "agreed" if judged else "open"

    @property
    def final(self) -> float | None:
        if self.state == "settled":
            return float(self.settled["value"])
        if self.state == "agreed":
            return float(next((v["value"] for v in self.votes.values()), self.written))
        return None

    def open_to(self, expert: str, now: float) -> bool:
        """Whether it wants this expert's score, those counted who have it before them."""
        if expert in self.votes or self.state != "open":
            return False
        others = sum(e != expert and e not in self.votes and end > now for e, end in self.leases.items())
        return len(self.votes) + others < self.need

    def label(self) -> str:
        said = [f"{e}: {v['value']:g}" for e, v in self.votes.items()]
        if self.settled:
            said.append(f"settled by {self.settled['expert']}: {self.settled['value']:g}")
        return f"person ({'; '.join(said)})"


class Queue:
    """One waiting file with its judgements. Methods may be called from several threads.

    `double` is the share of items, drawn by content, that two experts score.
    """

    def __init__(self, path: Path, double: float = 0.0, lease: float = LEASE):
        self.path, self.journal, self.lease = path, path.with_name("judgements.jsonl"), lease
        self.kind, self.field = WAITING[path.name]
        self.lock = threading.RLock()
        self.stamp = file_stamp(path)
        self.rows = read_jsonl(path, self.kind)  # one item may stand in several
        self.records = {item_id(r): r for r in self.rows}
        self.ids = list(self.records)
        self.twice = {i for i in self.ids if int(i[:8], 16) < double * 2**32}
        self.items = {i: Item(1 + (i in self.twice), getattr(r, self.field)) for i, r in self.records.items()}
        self.given: dict[str, list[tuple[str, str]]] = {}  # expert → (id, action), in their order, for undo
        self.skipped: dict[str, dict[str, None]] = {}
        self.held: dict[str, str] = {}  # expert → the item before her
        self.final: dict[str, float] = {}
        self.times: dict[str, float] = {}  # expert → of the last judgement
        self.requests: set[str] = set()
        self.seconds: list[float] = []  # spent on each score
        self.trouble = ""  # why the scores are not in the file yet
        journal, self.torn = read_journal(self.journal)
        for row in journal:
            if row["id"] in self.items and row.get("file", path.name) == path.name:
                self._apply(row)
        self._look_through()
        self.deliver()

    def _look_through(self) -> None:
        """Sort items into final ones and open ones, each in the order of the file."""
        self.final = {i: s for i, item in self.items.items() if (s := item.final) is not None}
        self.open = {i: None for i, item in self.items.items() if item.state == "open"}

    def _apply(self, row: dict) -> None:
        id, expert, action = row["id"], row["expert"], row["action"]
        item = self.items[id]
        given, skipped = self.given.setdefault(expert, []), self.skipped.setdefault(expert, {})
        if isinstance(row.get("time"), (int, float)):
            self.times[expert] = row["time"]
        if isinstance(row.get("request"), str):
            self.requests.add(row["request"])
        if action == "undo":
            at = max((k for k, (i, _) in enumerate(given) if i == id), default=None)
            what = given.pop(at)[1] if at is not None else "score"
            if what == "settle":
                item.settled = None
            elif what == "score":
                item.votes.pop(expert, None)
            skipped.pop(id, None)
            item.undone = True
            return
        if id in skipped:
            given.remove((id, "skip"))
            skipped.pop(id)
        given.append((id, action))
        if action == "skip":
            skipped[id] = None
            return
        item.undone = False
        if action == "settle":
            item.settled = row
        else:
            item.votes[expert] = row
            if isinstance(row.get("seconds"), (int, float)):
                self.seconds.append(row["seconds"])

    def judge(
        self,
        id: str,
        expert: str,
        action: str,
        value=None,
        note="",
        findings=None,
        seconds=None,
        request=None,
    ) -> None:
        """One action ("score", "skip", "undo", "settle") of an expert, on disk when this returns.

        `findings`: for each claimed issue of a critique, True (confirmed), False (rejected) or None.
        `seconds`: time spent on the item. `request`: a name of this judgement that no other has; with it, a
        judgement that is sent again counts once. Raises Late where the item no longer takes it.
        """
        if id not in self.items:
            raise Late(f"no item {id:.40} waits in {self.path}: here is the next")
        if action not in ACTIONS:
            raise InputError(f"unknown action {action!r:.40}")
        if action in ("score", "settle"):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value not in LEVELS:
                raise InputError(f"a score must be 0, 0.5 or 1, found {value!r:.40}")
        expert, note = clean_name(expert), clean_note(note)
        row = {"id": id, "file": self.path.name, "expert": expert, "action": action, "value": value}
        row |= {"note": note, "findings": findings, "seconds": _seconds(seconds), "time": time.time()}
        row |= {"request": request} if request else {}
        with self.lock:
            if self._confirmed_before(row):
                return
            self._refuse_late(id, expert, action)
            append_line(self.journal, row)
            self._apply(row)
            self._after(id, expert, action)
            self.deliver()

    def _confirmed_before(self, row: dict) -> bool:
        """Whether this judgement is in the journal: its answer was lost on the way, and it is sent again."""
        if row.get("request") in self.requests:
            return True
        item = self.items[row["id"]]
        said = {"score": item.votes.get(row["expert"]), "settle": item.settled}.get(row["action"])
        return said is not None and (said["expert"], said["value"]) == (row["expert"], row["value"])

    def _refuse_late(self, id: str, expert: str, action: str) -> None:
        item = self.items[id]
        if action == "undo":
            if self.last(expert) != id:
                raise Late("this is not your last judgement of this file: nothing was taken back")
            what = self.given[expert][-1][1]
            if what != "skip" and self.whole:
                raise Late("the scores of this file are with the run already: nothing was taken back")
            if what == "score" and item.settled:
                raise Late("this item has been settled since: nothing was taken back")
        elif action == "settle" and item.state != "disputed":
            raise Late("this difference is settled already")
        elif action in ("score", "skip") and (item.state != "open" or expert in item.votes):
            by = ", ".join(item.votes) or "someone else"
            raise Late(f"this item was judged by {by} before: your judgement was not taken")

    def _after(self, id: str, expert: str, action: str) -> None:
        """Bring leases and lists up to date with one more judgement."""
        item = self.items[id]
        if action == "undo":
            self._hold(id, expert, time.monotonic())
            self._look_through()  # the item goes back to its place
            return
        item.leases.pop(expert, None)
        if self.held.get(expert) == id:
            del self.held[expert]
        if item.state != "open":
            self.open.pop(id, None)
        if (score := item.final) is not None:
            self.final[id] = score

    @property
    def whole(self) -> bool:
        """Whether all scores are in a file that is filled in as a whole."""
        return self.path.name not in AT_ONCE and all(i.written is not None for i in self.items.values())

    def deliver(self) -> None:
        """Write what is final into the waiting file; the phase that waits for it goes on.

        Does nothing where the file says the same already, and keeps `trouble` where it cannot be written: the
        judgements are in the journal, and it is tried again.
        """
        with self.lock:
            if self.path.name not in AT_ONCE and len(self.final) < len(self.ids):
                return
            changed = [i for i, item in self.items.items() if item.written != item.final]
            if not changed:
                self.trouble = ""
                return
            try:
                if file_stamp(self.path) != self.stamp:
                    return  # written by someone else meanwhile: it is read again first
                write_jsonl(self.path, [self._filled(r) for r in self.rows])
                self.stamp, self.trouble = file_stamp(self.path), ""
            except InputError as e:
                self.trouble = str(e)
                return
            for i in changed:
                self.items[i].written = self.items[i].final

    def _filled(self, record):
        item = self.items[item_id(record)]
        said = {"label": item.label()} if item.votes or item.settled else {}
        return dataclasses.replace(record, **{self.field: item.final}, **said)

    def next(self, expert: str, wanted: str | None = None, again: bool = True) -> str | None:
        """The item to show, leased to this expert; None where nothing waits for her.

        The item `wanted`, if it is open to her; else the one that she has; else the first in order that is
        with nobody else; those that she skipped come last, or where `again` is off not at all.
        """
        now = time.monotonic()
        with self.lock:
            held, skipped = self.held.get(expert), self.skipped.get(expert, {})
            for id in (wanted, held):
                if id in self.items and (again or id not in skipped) and self.items[id].open_to(expert, now):
                    return self._hold(id, expert, now)
            for id in self.open:
                if id not in skipped and self.items[id].open_to(expert, now):
                    return self._hold(id, expert, now)
            for id in skipped if again else ():
                if self.items[id].open_to(expert, now):
                    return self._hold(id, expert, now)
            self.held.pop(expert, None)
            return None

    def _hold(self, id: str, expert: str, now: float) -> str:
        if (before := self.held.get(expert)) not in (None, id):
            self.items[before].leases.pop(expert, None)
        self.held[expert] = id
        self.items[id].leases[expert] = now + self.lease
        return id

    def release(self, expert: str) -> None:
        """Give back what is before this expert: she is shown an item of another file."""
        with self.lock:
            if held := self.held.pop(expert, None):
                self.items[held].leases.pop(expert, None)

    def last(self, expert: str) -> str | None:
        """The item that undo takes back: that of this expert's last judgement of this file."""
        given = self.given.get(expert)
        return given[-1][0] if given else None

    def last_time(self, expert: str) -> float:
        """When this expert last judged an item of this file; 0 for never."""
        return self.times.get(expert, 0.0)

    def take_over(self, before: Queue) -> None:
        """The leases of the queue of the same file before somebody wrote it."""
        with self.lock, before.lock:
            for expert, id in before.held.items():
                if id in self.items:
                    self._hold(id, expert, time.monotonic())

    def disagreements(self) -> list[str]:
        return [i for i, item in self.items.items() if len(item.votes) > 1 and item.state == "disputed"]

    def agreement(self) -> dict:
        """Cohen's kappa over the items that two experts scored, settlements apart."""
        pairs = []
        for id in self.twice:
            votes = self.items[id].votes
            if len(votes) == 2:
                pairs.append(tuple(votes[e]["value"] for e in sorted(votes)))
        return {"pairs": len(pairs), "kappa": cohen_kappa(pairs)}

    def progress(self) -> dict:
        """How far the file is, and the median seconds that a score took."""
        spent = round(median(self.seconds[-1000:]), 1) if self.seconds else None
        return {"done": len(self.final), "all": len(self.ids), "seconds": spent}


def _seconds(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return round(float(value), 1) if good and 0 <= value < 1e6 else None


def file_stamp(path: Path) -> tuple[int, int]:
    """What changes when somebody writes a file."""
    try:
        stat = path.stat()
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e
    return stat.st_mtime_ns, stat.st_size


def waiting_files(run: Path) -> list[Path]:
    """The run's waiting files: those that hold up a phase first, the oldest before the others."""

    def order(path: Path) -> tuple:
        at_once = path.name in AT_ONCE  # each judgement changes the file's time
        try:
            return at_once, 0.0 if at_once else path.stat().st_mtime, str(path)
        except FileNotFoundError:
            return at_once, 0.0, str(path)

    found = [Path(folder) / name for folder, _, names in os.walk(run) for name in names if name in WAITING]
    return sorted(found, key=order)
