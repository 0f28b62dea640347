"""Frozen judges: a verifier or a meta-verifier that is sampled, parsed and averaged.

`Judge` is a model of a run; `ChatJudge` any model of natural language, behind an endpoint or local.

A judge's answers are drawn from seeds made of the question's own ids, so they depend neither on the
batch nor on the rank, and answers to the same question are kept. An answer that does not parse or is cut
off counts as such; where no sample parses, the judgement's score is NaN, never 0 (C11).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nanov2.distributed.ranks import derive_seed
from nanov2.domains import language as natural
from nanov2.hub.endpoint import Answer
from nanov2.model.decoder import Model
from nanov2.model.rollout import Sampling
from nanov2.model.sampler import sample


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
    """A frozen model as a reward model; `read` takes a score from an answer's text."""

    def __init__(
        self,
        model: Model,
        prompts: natural.Language,
        read: Callable[[str | None], float | None],
        samples: int = 1,
        temperature: float = 1.0,
        max_tokens: int = 64,
        seed: int = 0,
        batch_rows: int = 512,
    ):
        self.model = model.eval().requires_grad_(False)
        self.prompts, self.read, self.samples, self.seed = prompts, read, samples, seed
        self.sampling = Sampling(temperature, max_tokens, batch_rows)
        self.known: dict[tuple[int, ...], Judgement] = {}
        self.asked = self.unparsed = 0

    def ask(self, questions: list) -> list[Judgement]:
        """One judgement for each question of the language."""
        keys = [tuple(self.prompts.ids(q)) for q in questions]
        new = [k for k in dict.fromkeys(keys) if k not in self.known]
        seeds = [derive_seed(self.seed, list(k)) for k in new]
        rollouts = sample(
            self.model, self.prompts.tokenizer, [list(k) for k in new], self.samples, self.sampling, seeds
        )
        for i, key in enumerate(new):
            rows = rollouts[i * self.samples : (i + 1) * self.samples]
            answers = tuple(self.prompts.answer(r) for r in rows)
            scores = tuple(self.read(a) for a in answers)
            good = [s for s in scores if s is not None]
            self.known[key] = Judgement(sum(good) / len(good) if good else math.nan, answers, scores)
            self.asked += len(rows)
            self.unparsed += len(rows) - len(good)
        return [self.known[k] for k in keys]


def verifier_judge(model: Model, prompts: natural.Language, **options) -> Judge:
    """πφ as a judge of proofs: answers are critiques, scores are s'."""
    return Judge(model, prompts, prompts.claimed_score, **options)


def meta_judge(model: Model, prompts: natural.Language, **options) -> Judge:
    """πη as a judge of critiques: answers are meta-critiques, scores are R_meta."""
    return Judge(model, prompts, prompts.claimed_quality, **options)


class Chat(Protocol):
    """`Endpoint` or `LocalChat`: answers number first … first + n − 1 to each chat; `first` may be a list."""

    def ask(
        self, questions: list[natural.Messages], n: int = 1, first: int | list[int] = 0
    ) -> list[list[Answer]]: ...


class ChatJudge:
    """A verifier or meta-verifier of natural-language proofs, asked like a Judge; `prompts` make its chats.

    `states` counts what became of the answers: "read", "cut off", "too long", "empty", "no box", "other
    score", and of those read, how many are "in form".
    """

    def __init__(self, chat: Chat, samples: int = 1, first: int = 0, states: Counter | None = None):
        self.chat, self.samples, self.first, self.prompts = chat, samples, first, natural.Language()
        self.states = Counter() if states is None else states
        self.asked = self.unparsed = 0

    def ask(self, questions: list[natural.Messages]) -> list[Judgement]:
        """One judgement for each chat."""
        return [self._judgement(row) for row in self.chat.ask(questions, self.samples, self.first)]

    def _judgement(self, answers: list[Answer]) -> Judgement:
        texts, scores = [], []
        for a in answers:
            reading = natural.read_any(a.text)
            texts.append(natural.without_thinking(a.text) if a.text is not None else None)
            scores.append(reading.score)
            self.states[a.missing or reading.state] += 1
            self.states["in form"] += reading.in_form
        self.asked += len(answers)
        self.unparsed += scores.count(None)
        good = [s for s in scores if s is not None]
        return Judgement(sum(good) / len(good) if good else math.nan, tuple(texts), tuple(scores))
