"""Search at high compute (section 3.4.3 of the paper): a pool of proofs, judged, refined, judged again.

    pool: drafts → critiques until the sequential test gives a proof up → rank
    each round: the best proofs → a revision for each of a few of their critiques → judged → pool
    until one proof passes all its critiques, or the rounds are used up

Unlike in the released code, meta-verification weighs: a critique that reports an issue counts by the mean
quality that πη gives it, so an invented issue hardly hurts a proof. Every finished round of a problem is a
line in the state file: a search that is stopped goes on there, with the samples it would have had.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from nanov2 import journal
from nanov2.distributed.ranks import derive_seed
from nanov2.domains.language import Language
from nanov2.errors import InputError
from nanov2.method.config import SearchConfig
from nanov2.method.tasks import judged_proofs
from nanov2.model.decoder import Model
from nanov2.model.rollout import Sampling
from nanov2.model.sampler import sample


@dataclass
class Weighed:
    """A critique, its score, and how much it counts."""

    critique: str
    score: float
    weight: float  # 1 for one without issues; else the mean quality that πη gives it


@dataclass
class Candidate:
    """A proof in the pool, with the evidence for and against it."""

    proof: str
    self_score: float = 0.0  # of the generator's own critique; 0 where it wrote none that parses
    parent: int = -1  # place in the pool of the proof that it revises; −1: a draft
    round: int = 0
    critiques: list[Weighed] = field(default_factory=list)

    @property
    def score(self) -> float:
        """Mean score over critiques, weighed; 0 without any that counts."""
        total = sum(c.weight for c in self.critiques)
        return sum(c.weight * c.score for c in self.critiques) / total if total else 0.0

    @property
    def rank(self) -> tuple[float, float]:
        return self.score, self.self_score

    def passes(self, n: int) -> bool:
        """It has all its n critiques, and none that counts (half or more) is against it."""
        counting = [c for c in self.critiques if c.weight >= 0.5]
        return len(self.critiques) >= n and bool(counting) and all(c.score == 1 for c in counting)

    def hopeless(self, config: SearchConfig) -> bool:
        """Wald's sequential test (1945): are issues as frequent as in wrong proofs rather than right ones?"""
        p0, p1 = config.issues_if_right, config.issues_if_wrong
        evidence = sum(
            c.weight * (math.log(p1 / p0) if c.score < 1 else math.log((1 - p1) / (1 - p0)))
            for c in self.critiques
        )
        return evidence >= math.log((1 - config.missed) / config.given_up)


@dataclass
class Pool:
    """All proofs of one problem so far."""

    problem: str
    candidates: list[Candidate] = field(default_factory=list)
    round: int = 0  # rounds finished, the drafts' included
    tokens: int = 0  # sampled so far, of all models

    def best(self) -> Candidate | None:
        return max(self.candidates, key=lambda c: c.rank, default=None)

    def found(self, n: int) -> dict:
        """The best proof with its evidence, as a search reports it."""
        best = self.best()
        return {
            "problem": self.problem,
            "proof": best.proof if best else "",
            "score": best.score if best else 0.0,
            "passes": bool(best) and best.passes(n),
            "rounds": self.round,
            "proofs": len(self.candidates),
            "tokens": self.tokens,
            "critiques": [asdict(c) for c in best.critiques] if best else [],
        }

    def passed(self, n: int) -> bool:
        return any(c.passes(n) for c in self.candidates)


@dataclass(frozen=True)
class Written:
    """A proof as its author gave it."""

    proof: str | None  # None: cut off, or without the form of a proof
    self_score: float | None  # that the author gives it
    tokens: int


class Voices(Protocol):
    """Who writes and who judges: models of a run, or a chat model."""

    prompts: Language
    names: dict  # what a state file must agree with

    def write(self, questions: list, keys: list[tuple[str, int, int]]) -> list[Written]:
        """A proof for each question; `keys` (problem, round, number in it) draw the samples."""

    def critiques(self, questions: list, n: int, first: int, meta: bool) -> list[list[tuple]]:
        """Answers first … first + n − 1 of the verifier (or meta-verifier) to each question, as
        (text or None, tokens)."""


class RunVoices:
    """`generator` writes and revises (a self-verifying one), `verifier` judges, `meta` weighs."""

    def __init__(
        self, generator: Model, verifier: Model, meta: Model, prompts: Language, how: Sampling, seed: int
    ):
        self.generator, self.judges, self.prompts = generator, (verifier, meta), prompts
        self.sampling, self.seed, self.names = how, seed, {"seed": seed}

    def write(self, questions: list, keys: list[tuple[str, int, int]]) -> list[Written]:
        p = self.prompts
        how = replace(self.sampling, max_given=p.max_given)
        seeds = [derive_seed(self.seed, *key) for key in keys]
        prompts = [p.ids(q) for q in questions]
        rollouts = sample(self.generator, p.tokenizer, prompts, 1, how, seeds, p.follow, p.turns_per_proof)
        out = []
        for rollout in rollouts:
            proof, critique = judged_proofs(p.turns(rollout))[0]
            out.append(
                Written(proof if p.is_proof(proof) else None, p.claimed_score(critique), len(rollout.ids))
            )
        return out

    def critiques(self, questions: list, n: int, first: int, meta: bool) -> list[list[tuple]]:
        questions = [self.prompts.ids(q) for q in questions]
        seeds = [derive_seed(self.seed, first, q) for q in questions]
        model = self.judges[meta]
        rollouts = sample(model, self.prompts.tokenizer, questions, n, self.sampling, seeds)
        answers = [(self.prompts.answer(r), len(r.ids)) for r in rollouts]
        return [answers[i * n : (i + 1) * n] for i in range(len(questions))]


class Search:
    """Searches many problems at once, so that every model's batches are large."""

    def __init__(self, voices: Voices, config: SearchConfig):
        self.voices, self.prompts, self.config = voices, voices.prompts, config

    def run(self, problems: list[str], state: Path | None = None) -> list[Pool]:
        """A pool for each problem, in order. With `state`, goes on where that file ends."""
        settings = self.voices.names | asdict(self.config)
        found = open_state(state, settings) if state else {}
        pools = [found.get(p) or Pool(p) for p in problems]
        while True:
            active = [p for p in pools if p.round <= self.config.rounds and not p.passed(self.config.n)]
            if not active:
                return pools
            self._round(active)
            if state:
                append_state(state, active)

    def _round(self, pools: list[Pool]) -> None:
        """One round of every given pool: new proofs, then their critiques."""
        asked = [self._questions(pool) for pool in pools]
        flat = [
            (pool, *question) for pool, questions in zip(pools, asked, strict=True) for question in questions
        ]
        keys = [(pool.problem, pool.round, i) for i, (pool, *_) in enumerate_within(flat)]
        new: list[tuple[Pool, Candidate]] = []
        written = self.voices.write([question for _, _, question in flat], keys)
        for (pool, parent, _), w in zip(flat, written, strict=True):
            pool.tokens += w.tokens
            if w.proof is not None and all(c.proof != w.proof for c in pool.candidates):
                candidate = Candidate(w.proof, w.self_score or 0.0, parent, pool.round)
                pool.candidates.append(candidate)
                new.append((pool, candidate))
        self._judge(new)
        for pool in pools:
            pool.round += 1

    def _questions(self, pool: Pool) -> list[tuple[int, Any]]:
        """(parent, prompt) of each proof to write: drafts at first, then revisions of the best."""
        c, draft = self.config, self.prompts.prove(pool.problem)
        order = sorted(range(len(pool.candidates)), key=lambda i: pool.candidates[i].rank, reverse=True)
        if pool.round == 0 or not order:
            return [(-1, draft)] * c.pool
        out = []
        for parent in order[: c.keep]:
            candidate = pool.candidates[parent]
            # Issues first, those that πη believes first of all; a proof without any is written anew.
            issues = sorted((w for w in candidate.critiques if w.score < 1), key=lambda w: -w.weight)
            for i in range(c.children):
                prompt = draft
                if issues:
                    prompt = self.prompts.revise(
                        pool.problem, candidate.proof, [issues[i % len(issues)].critique]
                    )
                out.append((parent, prompt))
        return out

    def _judge(self, new: list[tuple[Pool, Candidate]]) -> None:
        """Critiques in chunks, until each proof has n of them or the sequential test gives it up."""
        for at in range(0, self.config.n, self.config.chunk):
            new = [(p, c) for p, c in new if not c.hopeless(self.config)]
            if not new:
                return
            count = min(self.config.chunk, self.config.n - at)
            questions = [self.prompts.verify(p.problem, c.proof) for p, c in new]
            critiques = self._ask(questions, count, at, [p for p, _ in new])
            reports = []
            for (pool, candidate), texts in zip(new, critiques, strict=True):
                for text in texts:
                    score = self.prompts.claimed_score(text)
                    if score is None:  # it did not parse: it says nothing of the proof
                        continue
                    weighed = Weighed(text, score, 1.0)
                    candidate.critiques.append(weighed)
                    if self.prompts.claims_issue(text):
                        reports.append((pool, candidate, weighed))
            if self.config.m:
                questions = [self.prompts.meta(p.problem, c.proof, w.critique) for p, c, w in reports]
                looks = self._ask(questions, self.config.m, 0, [p for p, _, _ in reports], meta=True)
                for (_, _, weighed), texts in zip(reports, looks, strict=True):
                    good = [q for q in map(self.prompts.claimed_quality, texts) if q is not None]
                    weighed.weight = sum(good) / len(good) if good else 0.5

    def _ask(self, questions, n: int, at: int, pools: list[Pool], meta=False) -> list[list[str | None]]:
        """n answers to each question; their tokens are charged to the pools."""
        rows = self.voices.critiques(questions, n, at, meta)
        for pool, row in zip(pools, rows, strict=True):
            pool.tokens += sum(tokens for _, tokens in row)
        return [[text for text, _ in row] for row in rows]


def enumerate_within(flat: list[tuple]) -> Iterable[tuple[int, tuple]]:
    """Each item with its number among those of the same pool."""
    seen: dict[int, int] = {}
    for item in flat:
        number = seen.get(id(item[0]), 0)
        seen[id(item[0])] = number + 1
        yield number, item


def append_state(path: Path, pools: list[Pool]) -> None:
    """One line per pool and round, whole pools: the last line of a problem is its state."""
    journal.append(path, map(asdict, pools))


def open_state(path: Path, settings: dict) -> dict[str, Pool]:
    """Pools by problem of an earlier search with the same settings, its first line; a new file otherwise."""
    rows, settings = journal.read(path), json.loads(json.dumps(settings))
    if not rows:
        journal.append(path, [settings])
    elif rows[0] != settings:
        raise InputError(f"{path} holds a search with other settings: delete it, or name another --output")
    pools: dict[str, Pool] = {}
    for number, row in enumerate(rows[1:], 2):
        try:
            for c in row["candidates"]:
                c["critiques"] = [Weighed(**w) for w in c["critiques"]]
            row["candidates"] = [Candidate(**c) for c in row["candidates"]]
            pools[row["problem"]] = Pool(**row)
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise InputError(f"{path}, line {number}: not the state of a search; delete the file") from e
    return pools
