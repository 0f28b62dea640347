"""Imperfect demonstrations for the base model: it has the skills, and habits that are wrong most of the time.

They stand for what a language model is pretrained on. An author writes either by habit, at the rate that
`Noise` states, above one half, or rightly. So the likeliest answer is wrong where a phase is to teach, greedy
decoding does not help, and the right answer is there to be found by sampling:

- a prover jumps to the conclusion a step or more early, or states a relation stronger than it is given;
  at times it ends its chain a step before the goal;
- a critic passes over steps that state another relation than the given one; in a short proof with a gap it
  goes on finding fault where there is none, and of a long one it excuses the gap and blames the ends of the
  chain (the score shows neither: what R_meta is there to close);
- a meta-critic agrees with whatever it reads;
- a reviser hands the same proof in again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nanov2.domains.language import HEADING, Demonstration
from nanov2.domains.order.world import (
    STRENGTH,
    Critique,
    Finding,
    MetaCritique,
    Problem,
    Step,
    conclude,
    examine,
    examine_critique,
    rubric,
    verdict,
    write_critique,
    write_meta,
    write_proof,
)
from nanov2.records import LEVELS
from nanov2.settings import Rate, setting


@dataclass(frozen=True)
class Noise:
    """How imperfect the demonstrations are; every field is a rate in [0, 1]."""

    jump: Rate = setting(0.75, "first proofs that jump to the conclusion, a step or more early")
    overstate: Rate = setting(0.65, "first proofs that state every weak relation as a strict one")
    stop: Rate = setting(0.15, "first proofs that end a step before the goal, all steps given")
    stray: Rate = setting(
        0.1, "first proofs with another fault: a wrong relation or a step that is not given"
    )
    revision_same: Rate = setting(0.5, "revisions that hand the same proof in again")
    revision_right: Rate = setting(0.35, "revisions that are the right chain")
    lenient: Rate = setting(0.62, "critiques that pass over relations that are not the given ones")
    pile_on: Rate = setting(0.62, "critiques of short proofs that find fault with all that follows a gap")
    blame_ends: Rate = setting(
        0.62, "critiques of long proofs that excuse gaps, and blame the ends of the chain"
    )
    excuse: Rate = setting(0.0, "critiques that let every step pass that is not given")
    agree: Rate = setting(0.62, "meta-critiques that agree with whatever they read")
    lookup: Rate = setting(0.03, "findings whose relation is looked up wrongly, habit or not")
    whole: Rate = setting(0.03, "findings about the ends and the strength of a chain that are wrong")
    score: Rate = setting(0.08, "scores that do not follow from the findings")
    others: Rate = setting(0.3, "first proofs that are somebody else's, of all kinds: read, not learnt")
    share_revision: Rate = setting(0.4, "proofs found wanting that are shown being revised")
    practice: Rate = setting(
        0.8, "demonstrations of the first half that practise reading: a proof full of faults is judged"
    )
    practice_later: Rate = setting(0.2, "and of the second half")


# How a stray proof gets a step that is not given; weights. That something is *not* among the facts is what a
# verifier learns last, and the error that a generator finds.
GAPS = {"skip": 25, "term": 30, "walk": 20, "backwards": 25}
OTHERS = {"jump": 0.15, "overstate": 0.15, "stop": 0.15, "stray": 0.75}  # somebody else's proofs
LONG = 3  # steps of a long proof
CARELESS = 0.3  # look-ups of somebody else's critique that are wrong
PROOFS = 2  # at most this many in one demonstration: a draft and its revisions


def weak_proof(rng: random.Random, problem: Problem, noise: Noise) -> tuple[Step, ...]:
    """The right chain, with the faults of its author's habits."""
    steps = list(problem.solution)
    if rng.random() < noise.stray:
        steps = (_slip if rng.random() < 0.55 else _gap)(rng, problem, steps)
    if rng.random() < noise.overstate:
        strict = problem.family.strict
        steps = [s._replace(relation=strict) if STRENGTH[s.relation] == "weak" else s for s in steps]
    if rng.random() < noise.jump:
        steps = _jump(rng, problem, steps)
    if rng.random() < noise.stop and len(steps) > 1:
        steps = steps[:-1]
    return tuple(steps)


def _jump(rng: random.Random, problem: Problem, steps: list[Step]) -> list[Step]:
    """The steps from some place on as one, after the first step where there are three or more: a reader of a
    few steps cannot tell how many are left, so at any place a jump is the likeliest way on."""
    if len(steps) < 2:
        return steps
    i = rng.randrange(1, len(steps) - 1) if len(steps) > 2 else 0
    relation = problem.goal.relation if rng.random() < 0.7 else rng.choice(problem.family.relations)
    return [*steps[:i], Step(steps[i].left, relation, steps[-1].right)]


def _slip(rng: random.Random, problem: Problem, steps: list[Step]) -> list[Step]:
    """A relation that is not the given one."""
    i = rng.randrange(len(steps))
    other = rng.choice([r for r in problem.family.relations if r != steps[i].relation])
    return [*steps[:i], steps[i]._replace(relation=other), *steps[i + 1 :]]


def _gap(rng: random.Random, problem: Problem, steps: list[Step]) -> list[Step]:
    """A step that is not given."""
    (fault,) = rng.choices(list(GAPS), weights=[*GAPS.values()])
    used = {steps[0].left, *(s.right for s in steps)}
    i = rng.randrange(max(len(steps) - 1, 1))
    here = steps[i]
    if fault == "walk":
        return _walk(rng, problem, len(steps))
    if fault == "skip" and len(steps) > 1:
        after = steps[i + 1]
        relation = rng.choice((here.relation, after.relation))
        return [*steps[:i], Step(here.left, relation, after.right), *steps[i + 2 :]]
    if fault == "term" and len(steps) > 1:
        others = sorted({t for fact in problem.facts for t in (fact.left, fact.right)} - used)
        if others:
            term, after = rng.choice(others), steps[i + 1]
            return [*steps[:i], here._replace(right=term), after._replace(left=term), *steps[i + 2 :]]
    into = [
        f
        for f in problem.facts
        if f.right == here.left and f.left not in used and STRENGTH[f.relation] != "equal"
    ]
    if into:  # a fact taken backwards
        fact = rng.choice(into)
        last = Step(fact.left, rng.choice(problem.family.relations), problem.goal.right)
        return [*steps[:i], Step(fact.right, fact.relation, fact.left), last]
    return _walk(rng, problem, len(steps))


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
        steps.append(Step(here, rng.choice(problem.family.relations), problem.goal.right))
    return steps


def weak_revision(
    rng: random.Random, problem: Problem, steps: tuple[Step, ...], noise: Noise
) -> tuple[Step, ...]:
    """The same proof, the right chain, or another weak proof, at the stated rates."""
    mood = rng.random()
    if mood < noise.revision_same:
        return steps
    if mood - noise.revision_same < noise.revision_right:
        return problem.solution
    return weak_proof(rng, problem, noise)


def _misread(rng: random.Random, problem: Problem, relation: str | None, noise: Noise) -> str | None:
    """What the facts say of a pair, or at the rate `lookup` something else."""
    if rng.random() >= noise.lookup:
        return relation
    return rng.choice([r for r in (*problem.family.relations, None) if r != relation])


def weak_critique(rng: random.Random, problem: Problem, steps: Sequence[Step], noise: Noise) -> Critique:
    """A critique with its author's habits; its score follows from its findings, mostly.

    Habits are of judging, not of reading: what the facts say is looked up rightly, and then passed over.
    """
    truth = examine(problem, steps)
    lenient, mood, long = rng.random() < noise.lenient, rng.random(), len(steps) >= LONG
    piles_on, blames_ends = not long and mood < noise.pile_on, long and mood < noise.blame_ends
    excuses = noise.excuse > 0 and rng.random() < noise.excuse  # at 0 nothing is drawn: others' draws stay
    findings, lost = [], False
    for step, relation, _ in truth.findings:
        relation = _misread(rng, problem, relation, noise)
        said = verdict(step.relation, relation)
        if (said == "slip" and lenient) or (said == "gap" and excuses):
            said = "ok"
        if lost and piles_on:
            said = "gap"
        lost = lost or said == "gap"
        if said == "gap" and blames_ends:
            said = "ok"
        findings.append(Finding(step, relation, said))
    ends = truth.ends != (rng.random() < noise.whole)
    if lost and blames_ends:
        ends = False
    strong = truth.strong != (rng.random() < noise.whole)
    if lost and piles_on:
        strong = False
    score = rubric([f.verdict for f in findings], ends, strong)
    if rng.random() < noise.score:
        score = rng.choice([s for s in LEVELS if s != score])
    return Critique(tuple(findings), ends, strong, score)


def weak_meta(
    rng: random.Random, problem: Problem, steps: Sequence[Step], critique: Critique, noise: Noise
) -> MetaCritique:
    """A meta-critique that agrees with the critique, or looks its claims up."""
    if rng.random() < noise.agree:
        looks = [(claim.step, claim.relation, True) for claim in critique.claims]
        return conclude(looks, None if critique.ends else True, None if critique.strong else True, True)
    exact = examine_critique(problem, steps, critique)
    looks = []
    for (step, relation, _), claim in zip(exact.looks, critique.claims, strict=True):
        relation = _misread(rng, problem, relation, noise)
        looks.append((step, relation, claim == (step, relation, verdict(step.relation, relation))))

    def mistaken(real: bool | None) -> bool | None:
        return real if real is None or rng.random() >= noise.whole else not real

    return conclude(looks, mistaken(exact.ends), mistaken(exact.strong), mistaken(exact.follows))


def scrambled_proof(rng: random.Random, problem: Problem) -> tuple[Step, ...]:
    """A chain of which about a quarter of the steps are given, a quarter state another relation, and half are
    not given: nothing but reading the facts tells which.

    About half of the steps that are not given join a term on the left of some fact to one on the right of
    another: a model that asks of each term alone whether a fact has it on that side passes them. Some chains
    are longer than any right one: a critic that never saw such a list ends its own before the fault.
    """
    terms = sorted({t for fact in problem.facts for t in (fact.left, fact.right)})
    here = problem.goal.left if rng.random() < 0.5 else rng.choice(terms)
    steps, seen = [], {here}
    for _ in range(rng.randint(2, 8)):
        onward = [(b, r) for (a, b), r in problem.table.items() if a == here and b not in seen]
        backward = [a for a, b in problem.table if b == here and a not in seen]
        elsewhere = [t for t in terms if t not in seen]
        alike = [t for t in elsewhere if problem.in_place(here, t) and (here, t) not in problem.table]
        relation = rng.choice(problem.family.relations)
        if onward and rng.random() < 0.8:
            there, given = rng.choice(onward)
            relation = given if rng.random() < 0.3 else relation
        elif alike and rng.random() < 0.8:
            there = rng.choice(alike)
        elif backward and rng.random() < 0.4:
            there = rng.choice(backward)
        elif elsewhere:
            there = rng.choice(elsewhere)
        else:
            break
        steps.append(Step(here, relation, there))
        seen.add(there)
        here = there
    return tuple(steps)


def make_practice(rng: random.Random, problem: Problem, noise: Noise) -> Demonstration:
    """A scrambled proof, its critique, and the meta-critique of that.

    The proof is read, not learnt; so are some critiques, by somebody who looks up carelessly: a meta-critic
    who saw sound look-ups alone would copy them.
    """
    steps, careless = scrambled_proof(rng, problem), rng.random() < 0.3
    critique = weak_critique(rng, problem, steps, replace(noise, lookup=CARELESS) if careless else noise)
    meta = weak_meta(rng, problem, steps, critique, noise)
    turns = (
        ("prove", HEADING + write_proof(steps)),
        ("verify", write_critique(critique)),
        ("meta", write_meta(meta)),
    )
    return Demonstration(problem.text, turns, (False, not careless, True))


def make_demonstration(rng: random.Random, problem: Problem, noise: Noise) -> Demonstration:
    """A proof and its critique; then a meta-critique, or, where it found issues, revisions and their own.

    Where the first proof is somebody else's it is read, not learnt: a critic who saw the prover's habit alone
    would know where the gaps are without looking anything up.
    """
    read = rng.random() < noise.others
    steps = weak_proof(rng, problem, replace(noise, **OTHERS) if read else noise)
    critique = weak_critique(rng, problem, steps, noise)
    turns = [("prove", HEADING + write_proof(steps)), ("verify", write_critique(critique))]
    if critique.score < 1 and rng.random() < noise.share_revision:
        while critique.score < 1 and len(turns) < 2 * PROOFS:
            steps = weak_revision(rng, problem, steps, noise)
            critique = weak_critique(rng, problem, steps, noise)
            turns += [("prove", HEADING + write_proof(steps)), ("verify", write_critique(critique))]
    else:
        turns.append(("meta", write_meta(weak_meta(rng, problem, steps, critique, noise))))
    return Demonstration(problem.text, tuple(turns), (not read, *[True] * (len(turns) - 1)))
