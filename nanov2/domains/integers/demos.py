"""Imperfect demonstrations: authors with skills, and with habits that are wrong most of the time.

What the habits are for is said in order/demos.py; docs/domains.md says why a base must have some. Here:

- a prover stops one step early, before the last expression shows the claim, and takes the same letter for two
  integers, which proves a special case alone (what else goes wrong, lemmas included, is drawn from STRAYS);
- a critic passes over a letter that stands for two integers and, once the proof has failed, finds fault with
  every step of the calculation (the score does not show it: what R_meta is there to close);
- a meta-critic agrees with whatever it reads;
- a reviser hands the same proof in again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from nanov2.domains.integers import polynomials
from nanov2.domains.integers.config import Habits
from nanov2.domains.integers.world import (
    CONDITIONS,
    FATAL,
    LEMMA,
    SHOWN,
    WITNESSES,
    Condition,
    Critique,
    Finding,
    Look,
    MetaCritique,
    Problem,
    Proof,
    Whole,
    conclude,
    examine,
    examine_critique,
    quotient_form,
    recalculated,
    repeats,
    rubric,
    shortest,
    solve,
    write_critique,
    write_meta,
    write_proof,
)
from nanov2.domains.language import HEADING, Demonstration
from nanov2.records import LEVELS

OTHERS = {"early": 0.15, "same_letter": 0.2, "stray": 0.7}  # what somebody else's proofs are like


def weak_proof(rng: random.Random, problem: Problem, habits: Habits) -> Proof:
    """A proof with the faults of its author's habits."""
    n = len(problem.used) + bool(problem.lemma)
    shared = n > 1 and rng.random() < habits.same_letter
    letter = rng.choice(WITNESSES)
    proof = solve(problem, [letter] * n if shared else sorted(rng.sample(WITNESSES, n)))
    if rng.random() < habits.stray:
        proof = rng.choice(OF_LEMMAS if problem.lemma else STRAYS)(rng, problem, proof)
    if rng.random() < habits.early and len(proof.chain) > 2:
        proof = proof._replace(chain=proof.chain[:-1])
    if problem.lemma and repeats(proof.steps):  # a text that comes back cannot be read
        return solve(problem)
    return proof


def _slip(rng: random.Random, problem: Problem, proof: Proof) -> Proof:
    """One coefficient goes wrong in expanding or in taking the modulus out, and is carried on."""
    d = problem.modulus
    (at,) = rng.choices((1, 2), weights=(3, 2))
    if len(proof.chain) < 4:
        return proof
    polynomial = dict(polynomials.parse(proof.chain[2]))
    monomial = rng.choice(sorted(polynomial))
    size = d if rng.random() < 0.8 else 1  # a multiple of the modulus hides the slip from the conclusion
    polynomial[monomial] = max(polynomial[monomial] + rng.choice((size, -size)), 0)
    expanded, last = polynomials.write(polynomial), quotient_form(polynomial, d)
    chain = [*proof.chain[:2], expanded if at == 1 else proof.chain[2], last]
    return proof._replace(chain=shortest(chain))


def _wrong_definition(rng: random.Random, problem: Problem, proof: Proof) -> Proof:
    """An integer is written as what it is not given to be."""
    i = rng.randrange(len(proof.definitions))
    name, side = proof.definitions[i].split(" = ")
    (letter,) = polynomials.letters(dict(polynomials.parse(side)))
    remainder = (proof.lemma.claim if name == LEMMA else dict(problem.given)[name]).remainder
    other = rng.choice([r for r in range(problem.modulus) if r != remainder])
    wrong = polynomials.write({(letter,): problem.modulus, (): other})
    return recalculated(problem, _with_definition(proof, i, f"{name} = {wrong}"))


def _example(rng: random.Random, problem: Problem, proof: Proof) -> Proof:
    """Numbers for integers."""
    given = dict(problem.given)
    numbers = {x: problem.modulus * rng.randint(1, 3) + given[x].remainder for x in problem.used}
    return recalculated(problem, proof._replace(definitions=tuple(f"{x} = {n}" for x, n in numbers.items())))


def _with_definition(proof: Proof, i: int, definition: str) -> Proof:
    return proof._replace(definitions=(*proof.definitions[:i], definition, *proof.definitions[i + 1 :]))


def _left_out(rng: random.Random, problem: Problem, proof: Proof) -> Proof:
    """An integer is never written out, but used as if it were."""
    i = rng.randrange(len(proof.definitions))
    left = (*proof.definitions[:i], *proof.definitions[i + 1 :])
    return proof._replace(definitions=left) if left else proof


def _other_claim(rng: random.Random, problem: Problem, proof: Proof) -> Proof:
    """The conclusion is not what was asked."""
    if rng.random() < 0.5:
        others = [r for r in range(problem.modulus) if r != problem.claim.remainder]
        return proof._replace(claim=Condition(problem.modulus, rng.choice(others)))
    return proof._replace(about=problem.used[0] if problem.used[0] != problem.goal else problem.given[-1][0])


def _unreduced(rng: random.Random, problem: Problem, proof: Proof) -> Proof:
    """The remainder is left larger than it may be."""
    last = dict(polynomials.parse(proof.chain[-1]))
    return proof._replace(chain=shortest([*proof.chain[:-1], quotient_form(last, problem.modulus, 1)]))


def _wrong_lemma(rng: random.Random, problem: Problem, proof: Proof) -> Proof:
    """A lemma that is not true, or whose calculation stops before it shows it; it is used as it is stated."""
    if rng.random() < 0.4 and len(proof.lemma.chain) > 3:
        return proof._replace(lemma=proof.lemma._replace(chain=proof.lemma.chain[:-1]))
    name, side = proof.definitions[0].split(" = ")
    (letter,) = polynomials.letters(dict(polynomials.parse(side)))
    modulus, right = proof.lemma.claim
    claim = Condition(modulus, rng.choice([r for r in range(modulus) if r != right]))
    definition = f"{name} = {polynomials.write({(letter,): modulus, (): claim.remainder})}"
    stated = proof._replace(definitions=(definition,), lemma=proof.lemma._replace(claim=claim))
    return recalculated(problem, stated)


def _unshown(rng: random.Random, problem: Problem, proof: Proof) -> Proof:
    """The lemma is used and not shown."""
    return proof._replace(definitions=(*proof.lemma.definitions, *proof.definitions), lemma=None)


STRAYS: tuple[Callable, ...] = (
    _slip,
    _slip,
    _slip,
    _wrong_definition,
    _wrong_definition,
    _example,
    _left_out,
    _other_claim,
    _unreduced,
)
OF_LEMMAS: tuple[Callable, ...] = (  # the same of proofs that show a lemma first
    _slip,
    _slip,
    _wrong_lemma,
    _wrong_lemma,
    _unshown,
    _unshown,
    _other_claim,
    _unreduced,
)


def weak_revision(rng: random.Random, problem: Problem, proof: Proof, habits: Habits) -> Proof:
    """The same proof, a right one, or another weak one, at the stated rates."""
    mood = rng.random()
    if mood < habits.revision_same:
        return proof
    if mood - habits.revision_same < habits.revision_right:
        return solve(problem, sorted(rng.sample(WITNESSES, len(problem.used) + bool(problem.lemma))))
    return weak_proof(rng, problem, habits)


def weak_critique(rng: random.Random, problem: Problem, proof: Proof, habits: Habits) -> Critique:
    """A critique with its author's habits; its score follows from its findings, mostly.

    Habits are of judging, not of working out: what is given and what an expression comes to is found rightly.
    """
    truth = examine(problem, proof)
    lenient, piles_on = rng.random() < habits.lenient, rng.random() < habits.pile_on
    findings, lost = [], False
    for finding in truth.findings:
        if rng.random() < habits.slip:
            finding = mistaken(rng, problem, finding)
        if finding.verdict == "shared" and lenient:
            finding = finding._replace(verdict="ok")
        if lost and piles_on and finding.verdict == "ok" and " = " not in finding.subject:
            finding = finding._replace(verdict="slip")
        findings.append(finding)
        lost = lost or finding.verdict in FATAL
    whole = wrong(rng, truth.whole, habits.whole)
    score = rubric([f.verdict for f in findings], whole)
    if rng.random() < habits.score:
        score = rng.choice([s for s in LEVELS if s != score])
    return Critique(tuple(findings), whole, score)


def mistaken(rng: random.Random, problem: Problem, finding: Finding) -> Finding:
    """A finding that is worked out wrongly."""
    if " = " in finding.subject:
        same = [w for w, c in CONDITIONS.items() if c.modulus == problem.modulus and w != finding.said]
        return finding._replace(said=rng.choice(same), verdict="other" if finding.verdict == "ok" else "ok")
    polynomial = dict(polynomials.parse(finding.said))
    monomial = rng.choice(sorted(polynomial)) if polynomial else ()
    polynomial[monomial] = polynomial.get(monomial, 0) + rng.choice((1, problem.modulus))
    verdict = {"ok": "slip", "slip": "ok"}.get(finding.verdict, finding.verdict)
    return finding._replace(said=polynomials.write(polynomial), verdict=verdict)


def wrong(rng: random.Random, whole: Whole, rate: float) -> Whole:
    """Findings about the whole, each at this rate another."""
    complete = whole.complete != (rng.random() < rate)
    shown = rng.choice([v for v in SHOWN if v != whole.shown]) if rng.random() < rate else whole.shown
    return whole._replace(complete=complete, shown=shown, asked=whole.asked != (rng.random() < rate))


def weak_meta(
    rng: random.Random, problem: Problem, proof: Proof, critique: Critique, habits: Habits
) -> MetaCritique:
    """A meta-critique that agrees with the critique, or looks its claims up."""
    exact = examine_critique(problem, proof, critique)
    if rng.random() < habits.agree:
        looks = [Look(look.subject, look.said, look.before, True) for look in exact.looks]
        return conclude(looks, [(n, v, True) for n, v in critique.whole.claims], True)

    def seen(real: bool) -> bool:
        return real != (rng.random() < habits.whole)

    looks = [look._replace(real=seen(look.real)) for look in exact.looks]
    return conclude(looks, [(n, v, seen(real)) for n, v, real in exact.whole], seen(exact.follows))


def make_demonstration(rng: random.Random, problem: Problem, habits: Habits) -> Demonstration:
    """A proof and its critique; then a meta-critique, or, where it found issues, a revision and its own.

    Where the first proof is somebody else's it is read, not learnt.
    """
    read = rng.random() < habits.others
    proof = weak_proof(rng, problem, replace(habits, **OTHERS) if read else habits)
    critique = weak_critique(rng, problem, proof, habits)
    turns = [("prove", HEADING + write_proof(proof)), ("verify", write_critique(critique))]
    if critique.score < 1 and rng.random() < habits.share_revision:
        proof = weak_revision(rng, problem, proof, habits)
        critique = weak_critique(rng, problem, proof, habits)
        turns += [("prove", HEADING + write_proof(proof)), ("verify", write_critique(critique))]
    else:
        turns.append(("meta", write_meta(weak_meta(rng, problem, proof, critique, habits))))
    return Demonstration(problem.text, tuple(turns), (not read, *[True] * (len(turns) - 1)))
