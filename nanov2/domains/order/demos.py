"""Imperfect demonstrations for the base model: a weak prover, a weak critic, a weak meta-critic.

They stand for the uneven text that a language model is pretrained on. The weak prover skips steps,
changes relations, swaps terms, walks at random and takes facts backwards; the weak critic looks
things up wrongly at a stated rate and now and then gives a score that does not follow. So a base model
learns every form and every skill, and also every bad habit: what GRPO is there to put right.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from nanov2.domains.language import Demonstration
from nanov2.domains.order.world import (
    RELATIONS,
    SCORES,
    Critique,
    Finding,
    MetaCritique,
    Problem,
    Step,
    examine,
    meta_quality,
    rubric,
    verdict,
    write_critique,
    write_meta,
    write_proof,
)
from nanov2.settings import Rate, setting


@dataclass(frozen=True)
class Noise:
    """How imperfect the demonstrations are; every field is a rate in [0, 1]."""

    proof_right: Rate = setting(0.32, "share of first proofs that come from the right chain")
    revision_right: Rate = setting(0.75, "the same after a critique")
    lookup: Rate = setting(0.1, "findings whose relation is looked up wrongly")
    whole: Rate = setting(0.04, "wrong `ends`/`astray` and `strict`/`weak`")
    score: Rate = setting(0.16, "scores that do not follow from the findings")
    pile_on: Rate = setting(0.38, "issues invented in what follows a gap: the score is 0 anyway")
    meta: Rate = setting(0.5, "how noisy a meta-critique is: all rates of a critique times this")
    share_revision: Rate = setting(0.5, "share of the proofs found wanting that are shown being revised")


# How often the weak prover goes wrong in which way. All but the first leave gaps: that something is *not*
# among the facts is what a verifier learns last, and the error that a generator finds.
FAULTS = {"relation": 27, "skip": 21, "term": 21, "walk": 16, "backwards": 15}


PROOFS = 2  # at most so many in one demonstration: a draft and its revisions


def weak_proof(rng: random.Random, problem: Problem, right: float) -> tuple[Step, ...]:
    """A proof that is the right chain with probability `right`, and else has one or two faults."""
    steps = list(problem.solution)
    if rng.random() < right:
        return tuple(steps)
    for _ in range(1 + (rng.random() < 0.25)):
        (fault,) = rng.choices(list(FAULTS), weights=FAULTS.values())
        if fault == "relation":
            i = rng.randrange(len(steps))
            other = rng.choice([r for r in RELATIONS if r != steps[i].relation])
            steps[i] = steps[i]._replace(relation=other)
        elif fault == "skip" and len(steps) > 1:
            i = rng.randrange(len(steps) - 1)
            a, b = steps[i], steps[i + 1]
            steps[i : i + 2] = [Step(a.left, rng.choice((a.relation, b.relation)), b.right)]
        elif fault == "term" and len(steps) > 1:
            i = rng.randrange(len(steps) - 1)
            used = {steps[0].left, *(s.right for s in steps)}
            others = [t for fact in problem.facts for t in (fact.left, fact.right) if t not in used]
            if not others:
                continue
            term = rng.choice(others)
            steps[i], steps[i + 1] = steps[i]._replace(right=term), steps[i + 1]._replace(left=term)
        elif fault == "backwards":
            i = rng.randrange(len(steps))
            used = {steps[0].left, *(s.right for s in steps)}
            into = [
                f
                for f in problem.facts
                if f.right == steps[i].left and f.left not in used and f.relation != "="
            ]
            if into:
                term = rng.choice(into)
                last = Step(term.left, rng.choice(RELATIONS), problem.goal.right)
                steps[i:] = [Step(term.right, term.relation, term.left), last]
        elif fault == "walk":
            steps = _walk(rng, problem, len(steps))
    return tuple(steps)


def _walk(rng: random.Random, problem: Problem, length: int) -> list[Step]:
    """Follow facts at random from the goal's left side; sometimes jump to its right side at the end."""
    steps, here, seen = [], problem.goal.left, {problem.goal.left}
    for _ in range(length):
        onward = [(b, r) for (a, b), r in problem.table.items() if a == here and b not in seen]
        if not onward:
            break
        there, relation = rng.choice(onward)
        steps.append(Step(here, relation, there))
        here = there
        seen.add(here)
        if here == problem.goal.right:
            break
    if not steps or (here != problem.goal.right and rng.random() < 0.6):
        steps.append(Step(here, rng.choice(RELATIONS), problem.goal.right))
    return steps


def weak_revision(
    rng: random.Random, problem: Problem, steps: tuple[Step, ...], critique: Critique, right: float
) -> tuple[Step, ...]:
    """The right chain with probability `right`; else another weak proof, without the steps found at fault."""
    if rng.random() < right:
        return problem.solution
    faulty = {finding.step for finding in critique.findings if finding.verdict != "ok"}
    for _ in range(8):
        other = weak_proof(rng, problem, 0.0)
        if other != steps and not faulty.intersection(other):
            break
    return other


def _misread(rng: random.Random, given: str, rate: float) -> str:
    """What the facts say of a pair, or with probability `rate` something else."""
    if rng.random() >= rate:
        return given
    return rng.choice([r for r in (*RELATIONS, "none") if r != given])


def weak_critique(rng: random.Random, problem: Problem, steps: tuple[Step, ...], noise: Noise) -> Critique:
    """A critique whose findings are wrong at the stated rates; its score follows from them, mostly.

    After a gap it piles on: it invents further issues, which the score does not show. That is the loophole
    of a reward for the score alone (section 2.1.2 of the paper), and what R_meta is there to close.
    """
    truth = examine(problem, steps)
    findings, fatal = [], False
    for step, relation, _ in truth.findings:
        rate = max(noise.lookup, noise.pile_on) if fatal and relation == step.relation else noise.lookup
        given = _misread(rng, relation, rate)
        findings.append(Finding(step, given, verdict(step.relation, given)))
        fatal = fatal or given == "none"
    ends, strict = truth.ends, truth.strict
    if rng.random() < (noise.pile_on if fatal and ends == "ends" else noise.whole):
        ends = {"ends": "astray", "astray": "ends"}[ends]
    if rng.random() < (noise.pile_on if fatal and strict == "strict" else noise.whole):
        strict = {"strict": "weak", "weak": "strict"}[strict]
    score = rubric(tuple(findings), ends, strict)
    if rng.random() < noise.score:
        score = rng.choice([s for s in SCORES if s != score])
    return Critique(tuple(findings), ends, strict, score)


def weak_meta(
    rng: random.Random, problem: Problem, steps: tuple[Step, ...], critique: Critique, noise: Noise
) -> MetaCritique:
    """A meta-critique whose own look-ups and marks are wrong at the stated rates."""

    rates = {f: getattr(noise, f) * noise.meta for f in ("lookup", "whole", "score")}
    noise = replace(noise, pile_on=0.0, **rates)

    def mark(agree: bool) -> bool:
        return not agree if rng.random() < noise.whole else agree

    own = weak_critique(rng, problem, steps, noise)
    looks = tuple(
        (c.step, o.relation, mark(c == o)) for c, o in zip(critique.findings, own.findings, strict=True)
    )
    ends = (critique.ends, mark(critique.ends == own.ends))
    strict = (critique.strict, mark(critique.strict == own.strict))
    score = (own.score, own.score == critique.score)
    wrong = sum(not agree for agree in (*(a for *_, a in looks), ends[1], strict[1]))
    quality = meta_quality(wrong, score[1])
    if rng.random() < noise.score:
        quality = rng.choice([q for q in SCORES if q != quality])
    return MetaCritique(looks, ends, strict, score, quality)


def make_demonstration(rng: random.Random, problem: Problem, noise: Noise) -> Demonstration:
    """A proof and its critique; then a meta-critique, or, where it found issues, revisions and their own."""
    steps = weak_proof(rng, problem, noise.proof_right)
    critique = weak_critique(rng, problem, steps, noise)
    turns = [("prove", write_proof(steps)), ("verify", write_critique(critique))]
    if critique.score < 1 and rng.random() < noise.share_revision:
        while critique.score < 1 and len(turns) < 2 * PROOFS:
            steps = weak_revision(rng, problem, steps, critique, noise.revision_right)
            critique = weak_critique(rng, problem, steps, noise)
            turns += [("prove", write_proof(steps)), ("verify", write_critique(critique))]
    else:
        turns.append(("meta", write_meta(weak_meta(rng, problem, steps, critique, noise))))
    return Demonstration(problem.text, tuple(turns))
