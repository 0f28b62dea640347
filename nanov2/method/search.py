"""Search at high compute (section 3.4.3 of the paper): a pool of proofs, judged, refined, judged again.

    pool: drafts → critiques until the sequential test gives a proof up → rank
    each round: the best proofs → a revision for each of a few of their critiques → judged → pool
    until one proof passes all its critiques, or the rounds are used up

Unlike in the released code, meta-verification weighs: a critique that reports an issue counts by the mean
quality that πη gives it, so an invented issue hardly hurts a proof. (`judge_rule` = "gate"; with "mean" or
"min", the pessimistic lowest, πη is not asked.) Every finished round of a problem is a
line in the state file: a search that is stopped goes on there, with the samples it would have had.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from nanov2 import journal
from nanov2.domains.language import Language, without_thinking
from nanov2.errors import InputError
from nanov2.hub.author import Answer, Author, Messages
from nanov2.method.config import SearchConfig
from nanov2.method.rewards import R_looks


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
    critiques: list[Weighed] = field(default_factory=list)  # those that say something of it
    drawn: int = 0  # critiques asked for, those that did not parse included
    rule: str = "gate"  # what the critiques come to (rewards.R_looks)

    def wants(self, n: int) -> int:
        """Critiques still to ask for: up to n that say something, of at most 2n."""
        return max(0, min(n - len(self.critiques), 2 * n - self.drawn))

    @property
    def score(self) -> float:
        """What the critiques come to; 0 without any that counts."""
        score = R_looks(self.rule, [c.score for c in self.critiques], [c.weight for c in self.critiques])
        return score if score == score else 0.0

    @property
    def rank(self) -> tuple[float, float]:
        return self.score, self.self_score

    def passes(self, n: int) -> bool:
        """It has all its n critiques (of 2n, at least half of n), and none that counts (half or more) is
        against it."""
        enough = len(self.critiques) >= (n if self.wants(n) else (n + 1) // 2)
        counting = [c for c in self.critiques if c.weight >= 0.5]
        return enough and bool(counting) and all(c.score == 1 for c in counting)

    def hopeless(self, config: SearchConfig) -> bool:
        """Whether the sequential test calls the proof wrong, or its score cannot rise again."""
        if self.rule == "min" and any(c.score == 0 for c in self.critiques):
            return True
        return config.test.wrong((c.score < 1, c.weight) for c in self.critiques)


LONGEST = 4000  # characters kept of an answer without a proof


@dataclass
class Pool:
    """All proofs of one problem so far."""

    problem: str
    candidates: list[Candidate] = field(default_factory=list)
    round: int = 0  # rounds finished, the drafts' included
    tokens: int = 0  # sampled so far, of all models
    wrote: str = ""  # the last answer that holds no proof
    missing: str = ""  # and why it does not

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
            "unread": best.drawn - len(best.critiques) if best else 0,
        } | ({} if best else {"missing": self.missing, "wrote": self.wrote})

    def passed(self, n: int) -> bool:
        return any(c.passes(n) for c in self.candidates)


class Search:
    """Searches many problems at once, so that every model's batches are large.

    `author` writes and revises, `verifier` judges, `meta` weighs. `covers(problem, proof, critique)` says
    whether a critique looks at all of a proof: one that finds nothing wrong and does not is no evidence.
    """

    def __init__(
        self,
        author: Author,
        verifier: Author,
        meta: Author,
        language: Language,
        config: SearchConfig,
        covers: Callable[[str, str, str], bool] = lambda problem, proof, critique: True,
    ):
        self.author, self.verifier, self.meta = author, verifier, meta
        self.language, self.config, self.covers = language, config, covers

    def run(self, problems: list[str], state: Path | None = None) -> list[Pool]:
        """A pool for each problem, in order. With `state`, goes on where that file ends."""
        who = [a.identity for a in (self.author, self.verifier, self.meta)]
        found = open_state(state, {"authors": who} | asdict(self.config)) if state else {}
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
        numbers = [pool.round << 16 | i for i, (pool, *_) in enumerate_within(flat)]
        new: list[tuple[Pool, Candidate]] = []
        drafts = write(self.author, self.language, [(p.problem, q) for p, _, q in flat], numbers)
        for (pool, parent, _), draft in zip(flat, drafts, strict=True):
            pool.tokens += draft.tokens
            if not draft.proof:
                pool.wrote, pool.missing = draft.text[:LONGEST], draft.missing
            elif all(c.proof != draft.proof for c in pool.candidates):
                candidate = Candidate(
                    draft.proof, draft.score or 0.0, parent, pool.round, rule=self.config.judge_rule
                )
                pool.candidates.append(candidate)
                new.append((pool, candidate))
        self._judge(new)
        for pool in pools:
            pool.round += 1

    def _questions(self, pool: Pool) -> list[tuple[int, Messages]]:
        """(parent, question) of each proof to write: drafts at first, then revisions of the best."""
        c, draft = self.config, self.language.prove(pool.problem)
        order = sorted(range(len(pool.candidates)), key=lambda i: pool.candidates[i].rank, reverse=True)
        if pool.round == 0 or not order:
            return [(-1, draft)] * c.pool
        out = []
        for parent in order[: c.keep]:
            candidate = pool.candidates[parent]
            # Issues first, those that πη believes first of all; a proof without any is written anew.
            issues = sorted((w for w in candidate.critiques if w.score < 1), key=lambda w: -w.weight)
            for i in range(c.children):
                question = draft
                if issues:
                    found = [issues[i % len(issues)].critique]
                    question = self.language.revise(pool.problem, candidate.proof, found)
                out.append((parent, question))
        return out

    def _judge(self, new: list[tuple[Pool, Candidate]]) -> None:
        """Critiques in chunks, until each proof has n that say something of it, the sequential test gives it
        up, or 2n are drawn."""
        c = self.config
        while new := [(p, x) for p, x in new if x.wants(c.n) and not x.hopeless(c)]:
            questions = [self.language.verify(p.problem, x.proof) for p, x in new]
            count = min(c.chunk, *(x.wants(c.n) for _, x in new))
            rows = self._ask(self.verifier, questions, count, [x.drawn for _, x in new], [p for p, _ in new])
            reports = []
            for (pool, candidate), texts in zip(new, rows, strict=True):
                candidate.drawn += count
                for text in texts:
                    score = self.language.claimed_score(text)
                    issue = score is not None and self.language.claims_issue(text)
                    if score is None or not (issue or self.covers(pool.problem, candidate.proof, text)):
                        continue  # it says nothing of the proof: another one is asked
                    weighed = Weighed(text, score, 1.0)
                    candidate.critiques.append(weighed)
                    if issue:
                        reports.append((pool, candidate, weighed))
            if c.judge_rule == "gate" and c.m and reports:
                questions = [self.language.meta(p.problem, x.proof, w.critique) for p, x, w in reports]
                looks = self._ask(self.meta, questions, c.m, 0, [p for p, _, _ in reports])
                for (_, _, weighed), texts in zip(reports, looks, strict=True):
                    good = [q for q in map(self.language.claimed_quality, texts) if q is not None]
                    weighed.weight = sum(good) / len(good) if good else 0.5

    def _ask(self, author: Author, questions, n: int, first, pools: list[Pool]) -> list[list[str | None]]:
        """n answers to each question; their tokens are charged to the pools."""
        rows = author.answers(questions, n, first)
        for pool, row in zip(pools, rows, strict=True):
            pool.tokens += sum(answer.tokens for answer in row)
        return [[a.text and without_thinking(a.text) for a in row] for row in rows]


@dataclass(frozen=True)
class Draft:
    """A proof as its author gave it, with the author's own evaluation."""

    proof: str | None  # None: no answer, or none with the form of a proof
    critique: str = ""
    score: float | None = None  # that the author gives it
    tokens: int = 0
    text: str = ""  # the answer as it was written
    missing: str = ""  # why there is no proof


def write(
    author: Author,
    language: Language,
    questions: list[tuple[str, Messages]],
    numbers: list[int],
    critic: Author | None = None,
) -> list[Draft]:
    """A proof for each (problem, question), each answer by its number. Where the answer holds no evaluation,
    the author is asked for one; a `critic`'s evaluation is taken in place of the author's."""
    rows = author.answers([q for _, q in questions], 1, numbers)
    drafts = [_read(language, answer) for (answer,) in rows]
    open_ = [i for i, d in enumerate(drafts) if d.proof and (critic or not d.critique)]
    asked = [language.verify(questions[i][0], drafts[i].proof) for i in open_]
    rows = (critic or author).answers(asked, 1, [numbers[i] for i in open_]) if asked else []
    for i, (answer,) in zip(open_, rows, strict=True):
        critique = (answer.text and without_thinking(answer.text)) or ""
        score, tokens = language.claimed_score(critique), drafts[i].tokens + answer.tokens
        drafts[i] = replace(drafts[i], critique=critique, score=score, tokens=tokens)
    return drafts


def _read(language: Language, answer: Answer) -> Draft:
    proof = language.read_proof(answer.text)
    text = answer.text or ""
    if proof is None or not language.is_proof(proof.text):
        why = "no proof in it" if proof is None else f"not {language.proof_form}"
        return Draft(None, tokens=answer.tokens, text=text, missing=answer.missing or why)
    score = language.claimed_score(proof.critique) if proof.critique else None
    return Draft(proof.text, proof.critique, score, answer.tokens, text)


def refine(
    author: Author,
    language: Language,
    problems: list[str],
    numbers: list[int],
    rounds: int,
    budget: int = 0,
    critic: Author | None = None,
    again: bool = False,
) -> list[list[Draft]]:
    """Draft → evaluation (the author's own, or the critic's) → revision → …, for each problem: until nothing
    wrong is found, `rounds` answers are written, or `budget` tokens (0: any number) are spent. An answer
    without a proof ends it; with `again`, one that has some text is asked for again."""
    found: list[list[Draft]] = [[] for _ in problems]
    for _ in range(rounds):
        open_ = [i for i, drafts in enumerate(found) if _goes_on(drafts, budget, again)]
        questions = []
        for i in open_:
            last = next((d for d in reversed(found[i]) if d.proof), None)
            critiques = [last.critique or "(no evaluation was written)"] if last else []
            ask = language.revise(problems[i], last.proof, critiques) if last else language.prove(problems[i])
            questions.append((problems[i], ask))
        numbered = [numbers[i] + (sum(not d.proof for d in found[i]) << 16) for i in open_]
        drafts = write(author, language, questions, numbered, critic) if open_ else []
        for i, draft in zip(open_, drafts, strict=True):
            found[i].append(draft)
    return found


def _goes_on(drafts: list[Draft], budget: int, again: bool) -> bool:
    if not drafts:
        return True
    last, spent = drafts[-1], sum(d.tokens for d in drafts)
    wanting = last.score != 1 if last.proof else again and bool(last.text)
    return wanting and not (budget and spent >= budget)


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
        raise InputError(f"{path} holds a search with other settings: name another --output")
    pools: dict[str, Pool] = {}
    for number, row in enumerate(rows[1:], 2):
        try:
            for c in row["candidates"]:
                c["critiques"] = [Weighed(**w) for w in c["critiques"]]
            row["candidates"] = [Candidate(**c) for c in row["candidates"]]
            pools[row["problem"]] = Pool(**row)
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise InputError(
                f"{path}, line {number}: not the state of a search; name another --output"
            ) from e
    return pools
