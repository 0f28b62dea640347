"""Frozen judges: a verifier or a meta-verifier that is asked, parsed and averaged.

An answer that does not parse or is cut off counts as such; where none parses, the judgement's score is NaN,
never 0 (C11).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from nanov2.domains.language import Language, without_thinking
from nanov2.domains.language import read_any as read_form
from nanov2.hub.author import Answer, Author, Messages
from nanov2.hub.local import OwnAuthor
from nanov2.model.decoder import Model
from nanov2.model.rollout import Sampling


@dataclass(frozen=True)
class Judgement:
    """What a judge said of one item."""

    score: float  # mean of the parsed scores; NaN if none parsed
    answers: tuple[str | None, ...]  # texts; None: cut off or unreadable
    scores: tuple[float | None, ...]  # None: the answer has no score of the required form

    @property
    def unparsed(self) -> int:
        return self.scores.count(None)


class Judge:
    """An author as a reward model; `read` takes a score from an answer's text.

    `step` is the training step that asks: each step draws answers of its own, so that a judge's noise is not
    that of one draw for a whole phase, and a step that is done again draws the same. `states` counts what
    became of the answers: "read", or why there is no score.
    """

    def __init__(
        self,
        author: Author,
        language: Language,
        read: Callable[[str | None], float | None],
        samples: int = 1,
        first: int = 0,
        states: Counter | None = None,
    ):
        self.author, self.language, self.read = author, language, read
        self.samples, self.first, self.step = samples, first, 0
        self.states = Counter() if states is None else states
        self.asked = self.unparsed = 0

    @property
    def model(self) -> Model:
        """The judge's model, where it is in this process; else there is no such attribute."""
        return self.author.model

    def ask(self, questions: list[Messages]) -> list[Judgement]:
        """One judgement for each question; one that is asked twice has one."""
        keys = [json.dumps(q) for q in questions]
        new = dict(zip(keys, questions, strict=True))
        rows = self.author.answers([*new.values()], self.samples, self.first + self.step * self.samples)
        found = {key: self._judgement(row) for key, row in zip(new, rows, strict=True)}
        return [found[key] for key in keys]

    def _judgement(self, row: list[Answer]) -> Judgement:
        texts = tuple(without_thinking(a.text) if a.text is not None else None for a in row)
        scores = tuple(self.read(text) for text in texts)
        for answer, score in zip(row, scores, strict=True):
            self.states["read" if score is not None else answer.missing or _why(answer.text)] += 1
        good = [s for s in scores if s is not None]
        self.asked += len(row)
        self.unparsed += len(row) - len(good)
        return Judgement(sum(good) / len(good) if good else math.nan, texts, scores)


def _why(text: str | None) -> str:
    """Why an answer has no score."""
    state = read_form(text).state
    return "not in form" if state == "read" else state


def verifier_judge(model: Model, language: Language, samples: int = 1, **how) -> Judge:
    """πφ as a judge of proofs: answers are critiques, scores are s'."""
    return Judge(own_author(model, language, **how), language, language.claimed_score, samples)


def meta_judge(model: Model, language: Language, samples: int = 1, **how) -> Judge:
    """πη as a judge of critiques: answers are meta-critiques, scores are R_meta."""
    return Judge(own_author(model, language, **how), language, language.claimed_quality, samples)


def own_author(
    model: Model,
    language: Language,
    temperature: float = 1.0,
    max_tokens: int = 64,
    seed: int = 0,
    batch_rows: int = 512,
) -> OwnAuthor:
    """A model in this process as an author."""
    return OwnAuthor(model, language, Sampling(temperature, max_tokens, batch_rows), seed)
