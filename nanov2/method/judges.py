"""Frozen judges: a verifier or a meta-verifier that looks several times, is read, and comes to a score.

An answer that does not parse or is cut off counts as such; where none parses, the judgement's score is NaN,
never 0 (C11).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from nanov2.domains.language import Language, without_thinking
from nanov2.domains.language import read_any as read_form
from nanov2.hub.author import Answer, Author, Messages
from nanov2.hub.local import OwnAuthor
from nanov2.method.rewards import R_looks
from nanov2.method.sequential import SequentialTest
from nanov2.model.decoder import Model
from nanov2.model.rollout import Rollout, Sampling
from nanov2.model.sampler import next_logprobs, sample


@dataclass(frozen=True)
class Judgement:
    """What a judge said of one item."""

    score: float  # what its looks come to by the judge's rule; NaN if none can be read
    answers: tuple[str | None, ...]  # texts; None: cut off or unreadable
    scores: tuple[float | None, ...]  # None: the answer has no score of the required form

    @property
    def unparsed(self) -> int:
        return self.scores.count(None)

    @property
    def spread(self) -> float:
        """How far the looks disagree: highest score less lowest; NaN of fewer than two."""
        good = [s for s in self.scores if s is not None]
        return max(good) - min(good) if len(good) > 1 else math.nan


@dataclass
class Looks:
    """The looks at one item so far."""

    answers: list[Answer] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)  # 1, or of a claimed issue the meta-verifier's score

    def counted(self) -> tuple[list[float], list[float]]:
        """Scores and weights of the looks that can be read."""
        read = [(s, w) for s, w in zip(self.scores, self.weights, strict=True) if s is not None]
        return [s for s, _ in read], [w for _, w in read]


class Judge:
    """An author as a reward model; `read` takes a score from an answer's text.

    `rule` says what `samples` looks come to (rewards.R_looks); for "gate", `meta` weighs those that claim an
    issue. With `error` above 0 looks are taken one by one, until a sequential test with that error on either
    side calls the item right or wrong, or, under "min", one look gives 0, which nothing can lower.

    `step` is the training step that asks: each step draws answers of its own, so that a judge's noise is not
    that of one draw for a whole phase, and a step that is done again draws the same. `states` counts what
    became of the answers: "read", or why there is no score. `tokens` counts what this judge sampled.
    """

    def __init__(
        self,
        author: Author,
        language: Language,
        read: Callable[[str | None], float | None],
        samples: int = 1,
        first: int = 0,
        states: Counter | None = None,
        rule: str = "mean",
        error: float = 0.0,
        meta: Judge | None = None,
    ):
        if (rule == "gate") != (meta is not None):
            raise ValueError('a meta-verifier is for rule "gate", and that rule needs one')
        self.author, self.language, self.read = author, language, read
        self.samples, self.first, self.step = samples, first, 0
        self.rule, self.meta = rule, meta
        self.test = SequentialTest(given_up=error, missed=error) if error else None
        self.states = Counter() if states is None else states
        self.asked = self.unparsed = self.tokens = 0

    @property
    def model(self) -> Model | None:
        """The judge's model, where it is in this process."""
        return self.author.model if isinstance(self.author, OwnAuthor) else None

    @property
    def weights(self) -> str:
        """What tells a judge that is served elsewhere from another: the hash of its weights, or, where nobody
        tells that, the model's name and how it is sampled. A server may move: its URL does not count."""
        who = self.author.identity
        if who.get("weights") or "url" not in who:
            return who.get("weights", "")
        return json.dumps({name: value for name, value in who.items() if name != "url"}, sort_keys=True)

    def ask(self, questions: list[Messages]) -> list[Judgement]:
        """One judgement for each question; one that is asked twice has one."""
        keys = [json.dumps(q) for q in questions]
        new = dict(zip(keys, questions, strict=True))
        looks, first = {key: Looks() for key in new}, self.first + self.step * self.samples
        chunk = 1 if self.test else self.samples
        for taken in range(0, self.samples, chunk):
            open_ = [key for key, found in looks.items() if not self._settled(found)]
            rows = self.author.answers([new[key] for key in open_], chunk, first + taken) if open_ else []
            self._add([looks[key] for key in open_], [new[key] for key in open_], rows)
        found = {key: self._judgement(row) for key, row in looks.items()}
        return [found[key] for key in keys]

    def _add(self, looks: list[Looks], questions: list[Messages], rows: list[list[Answer]]) -> None:
        """Read new answers; under "gate", have those that claim an issue weighed."""
        claims = []
        for found, question, row in zip(looks, questions, rows, strict=True):
            for answer in row:
                text = without_thinking(answer.text) if answer.text is not None else None
                score = self.read(text)
                self.states["read" if score is not None else answer.missing or _why(answer.text)] += 1
                self.tokens += answer.tokens
                if self.meta and score is not None and self.language.claims_issue(text):
                    claims.append((found, len(found.weights), self._about(question, text)))
                found.answers.append(answer)
                found.texts.append(text)
                found.scores.append(score)
                found.weights.append(1.0)
        weighed = self.meta.ask([question for *_, question in claims]) if claims else []
        for (found, i, _), judgement in zip(claims, weighed, strict=True):
            found.weights[i] = judgement.score

    def _about(self, question: Messages, critique: str) -> Messages:
        """What the meta-verifier is asked about a critique."""
        (message,) = question
        return self.language.meta(message["problem"], message["proof"], critique)

    def _settled(self, looks: Looks) -> bool:
        """Whether further looks are not worth their cost."""
        if not self.test:
            return False
        scores, weights = looks.counted()
        if self.rule == "min" and 0.0 in scores:
            return True
        evidence = [(s < 1, w) for s, w in zip(scores, weights, strict=True) if w == w]
        return self.test.wrong(evidence) or self.test.right(evidence)

    def _judgement(self, looks: Looks) -> Judgement:
        scores, weights = looks.counted()
        self.asked += len(looks.scores)
        self.unparsed += looks.scores.count(None)
        score = R_looks(self.rule, scores, weights)
        return Judgement(score, tuple(looks.texts), tuple(looks.scores))


def _why(text: str | None) -> str:
    """Why an answer has no score."""
    state = read_form(text).state
    return "not in form" if state == "read" else state


def verifier_judge(
    model: Model,
    language: Language,
    samples: int = 1,
    rule: str = "mean",
    error: float = 0.0,
    meta: Judge | None = None,
    **how,
) -> Judge:
    """πφ as a judge of proofs: answers are critiques, scores are s'."""
    author = own_author(model, language, **how)
    return Judge(author, language, language.claimed_score, samples, rule=rule, error=error, meta=meta)


def meta_judge(
    model: Model, language: Language, samples: int = 1, rule: str = "mean", error: float = 0.0, **how
) -> Judge:
    """πη as a judge of critiques: answers are meta-critiques, scores are R_meta."""
    author = own_author(model, language, **how)
    return Judge(author, language, language.claimed_quality, samples, rule=rule, error=error)


class OwnScores:
    """What a model in training says of proofs, one greedy critique each: for figures, never for a reward.

    Where each score is one token, a proof's score is the expected one: the mean by the probabilities of the
    score tokens where its critique has the score. It moves before the likeliest score does. With other
    tokenizers, and where an engine samples for the model, it is the critique's score.
    """

    def __init__(self, model: Model, language: Language, max_tokens: int, batch_rows: int = 512):
        self.model, self.language = model, language
        self.how = Sampling(0.0, max_tokens, batch_rows)

    def __call__(self, questions: list[Messages]) -> list[float]:
        """The score that the model gives to each; NaN where its critique cannot be read."""
        prompts = [self.language.ids(q) for q in questions]
        rollouts = sample(self.model, self.language.tokenizer, prompts, 1, self.how, 0)
        scores = [self.language.claimed_score(self.language.answer(r)) for r in rollouts]
        found = [math.nan if s is None else s for s in scores]
        read = [i for i, s in enumerate(scores) if s is not None]
        if read and self.model.engine is None and self.language.score_tokens:
            for i, score in zip(read, self._expected([rollouts[i] for i in read]), strict=True):
                found[i] = score
        return found

    def _expected(self, rollouts: list[Rollout]) -> list[float]:
        """The expected score of each critique that has one, at the place of its last score token."""
        levels = self.language.score_tokens
        begun = []
        for r in rollouts:
            place = max(i for i, token in enumerate(r.ids) if token in levels)
            begun.append([*r.prompt, *r.ids[:place]])
        chances = next_logprobs(self.model, begun)[:, list(levels)].softmax(dim=-1)
        return (chances @ chances.new_tensor(list(levels.values()))).tolist()


def own_author(
    model: Model,
    language: Language,
    temperature: float = 1.0,
    max_tokens: int = 64,
    seed: int = 0,
    batch_rows: int = 512,
) -> OwnAuthor[Language]:
    """A model in this process as an author."""
    return OwnAuthor(model, language, Sampling(temperature, max_tokens, batch_rows), seed)
