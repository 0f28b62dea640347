"""Answers that are kept, so that a run that is stopped asks nothing twice."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from nanov2 import journal
from nanov2.errors import InputError
from nanov2.hub.author import Answer, Messages


def question_keys(
    identity: dict, questions: list[Messages], n: int, first: int | list[int]
) -> list[list[str]]:
    """The keys of answers first … first + n − 1 to each question; `first` may be one for each."""
    firsts = first if isinstance(first, list) else [first] * len(questions)
    return [
        [question_key(identity, q, i) for i in range(f, f + n)]
        for q, f in zip(questions, firsts, strict=True)
    ]


def question_key(identity: dict, messages: Messages, number: int) -> str:
    """What an answer hangs on, as a hash: who is asked and how, what, and which of the answers it is."""
    parts = [identity, [[m["role"], m["content"]] for m in messages], number]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Cache:
    """Answers by key: in memory, and a line each in a file that is only appended to."""

    def __init__(self, path: str | Path = ""):
        self.path, self.known = Path(path) if path else None, {}
        if self.path and self.path.is_file():
            journal.append(self.path, [])  # removes a last line that was cut off in writing
        for number, row in enumerate(journal.read(self.path) if self.path else [], 1):
            try:
                key, answer = row.pop("key"), Answer(**row)
                told = isinstance(answer.text, str | None) and type(answer.tokens) is int
                if not told or not isinstance(key, str) or not isinstance(answer.missing, str):
                    raise TypeError
            except (TypeError, KeyError) as e:
                raise InputError(
                    f"{self.path}, line {number}: not a kept answer; mend it, or set another endpoint.cache"
                ) from e
            self.known[key] = answer

    def __contains__(self, key: str) -> bool:
        return key in self.known

    def __getitem__(self, key: str) -> Answer:
        return self.known[key]

    def __setitem__(self, key: str, answer: Answer) -> None:
        self.known[key] = answer
        if self.path:
            journal.append(self.path, [{"key": key, **asdict(answer)}])
