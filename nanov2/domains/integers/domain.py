"""The integers world as a domain: problems made from a seed, exact truth, imperfect demonstrations.

Sizes of the sets are those of [world]; [integers] says how hard problems are, [integers_habits] how often a
demonstration follows which habit. A pretrained model (`pretrained.folder`) reads and writes the same texts
through its own tokenizer.
"""

from __future__ import annotations

import random
from functools import lru_cache

from nanov2.distributed.ranks import derive_rng
from nanov2.domains.domain import View
from nanov2.domains.integers.config import IntegersConfig
from nanov2.domains.integers.demos import make_demonstration
from nanov2.domains.integers.tokenizer import integers_tokenizer
from nanov2.domains.integers.world import (
    LEMMA,
    Difficulty,
    Problem,
    Proof,
    claims,
    examine,
    grade_critique,
    grade_proof,
    make_problem,
    parse_critique,
    parse_finding,
    parse_problem,
    parse_proof,
    parse_whole,
    rubric,
)
from nanov2.domains.language import Demonstration, TurnLanguage
from nanov2.domains.seeded import DRAWS, KEPT, RUBRIC_MV, ExactTruth, SeededDomain, lines_of
from nanov2.errors import InputError
from nanov2.hub.chat import ChatTokenizer
from nanov2.records import CritiqueRecord, ProblemRecord, ProofRecord

RUBRIC_V = """\
1: every line follows.
0.5: one slip of arithmetic, carried on, or a last expression that does not show the remainder yet.
0: an integer written as what it is not, or not at all; one letter for two integers; an example; a \
conclusion that does not follow or was not asked; two slips."""
FORM_V = """\
Write a line about each definition, in order, in one of these forms:
- $a = 2k + 1$: given to be odd, so this is right.
- $a = 2k + 1$: given to be even, but this says otherwise.
- $b = 2k$: given to be even, but this letter stands for another number already.
- $a = 3$: given to be odd, but this is only an example.
Then a line about each expression of the calculation, with the expression expanded in the letters:
- $3a + b$: that is $6k + 2m + 3$ by the definitions.
- $2(3k + m + 1) + 1$: that is $6k + 2m + 3$, so this step is justified.
- $2(3k + m + 2) + 1$: that is $6k + 2m + 5$, so this step is not justified.
Then one line of each of these three groups:
Every number is written out. | A number is not written out.
The last expression shows the claim. | The last expression does not show the claim yet. | The claim does not \
follow from the last expression.
This is what was asked. | This is not what was asked."""
RUBRIC_LEMMA = """
0, too: a lemma that is wrong, or used and not shown.
0.5, too: a lemma whose calculation does not show it yet."""
FORM_LEMMA = """
Where the proof shows what $u$ leaves first, a line about that stands before these three:
The lemma is shown. | The calculation of the lemma does not show it yet. | The lemma is wrong or does not \
follow.
The definition of $u$ is looked up among what the proof has shown:
- $u = 2n + 1$: shown to be odd, so this is right.
- $u = 2n + 1$: not shown, so this may not be used."""
FAULTS = {
    "other": "a wrong definition",
    "shared": "one letter for two integers",
    "example": "an example",
    "slip": "a slip of arithmetic",
    "hidden": "a remainder that is not shown",
    "false": "a conclusion that does not follow",
    "complete": "an integer not written out",
    "asked": "another claim",
    "unshown": "a lemma that is used and not shown",
    "lemma hidden": "a lemma whose calculation does not show it yet",
    "lemma false": "a lemma that is wrong",
}


class IntegersTruth(ExactTruth):
    """The exact expert."""

    parse_problem = staticmethod(parse_problem)
    grade_proof = staticmethod(grade_proof)
    grade_critique = staticmethod(grade_critique)


class IntegersLanguage(TurnLanguage):
    """The world's own models write proofs of its form, or none."""

    proof_form = "a proof in the form of this world"

    def is_proof(self, text: str | None) -> bool:
        return text is not None and parse_proof(text) is not None

    def claims_issue(self, critique: str) -> bool:
        """Any finding against the proof, or a score below 1."""
        parsed = parse_critique(critique)
        if parsed is None:
            return super().claims_issue(critique)
        against = parsed.claims or parsed.whole.claims
        return bool(against) or parsed.score < 1


class IntegersDomain(SeededDomain):
    """Remainders of expressions in integers whose remainders are given."""

    truth = IntegersTruth()
    own_language = IntegersLanguage

    def own_tokenizer(self) -> ChatTokenizer:
        return integers_tokenizer(self.config.integers.has_lemmas)

    # --- problems

    @property
    def difficulties(self) -> IntegersConfig:
        return self.config.integers

    def make(self, purpose: str, i: int, difficulty: Difficulty) -> Problem:
        return make_problem(derive_rng(self.config.seed, "integers", purpose, i), difficulty)

    def too_few(self, purpose: str, difficulty: Difficulty, drawn: int, n: int) -> str:
        return (
            f"integers: {n} problems are asked for {purpose}, {drawn} differ: lower "
            "world.held_out or world.problems, or raise integers.labelled_variables, _coefficient or _unused"
        )

    # --- demonstrations

    def demonstration(self, rng: random.Random, progress: float) -> Demonstration:
        """One variable modulo 2 first: calculating is learnt on short expressions."""
        c, _ = self.config.integers, self._sets
        begins = progress < c.first
        difficulty = c.beginning if begins else c.labelled
        if progress >= c.mixed:
            difficulty = rng.choice((c.labelled, c.hard))
        for _ in range(DRAWS):
            problem = make_problem(rng, difficulty)
            if begins or problem.form not in self._kept_out:
                made = make_demonstration(rng, problem, self.config.integers_habits)
                return self.shown(made, rng)
        raise InputError("integers: nearly all problems are held out: lower world.held_out")

    # --- pages

    def view(self, record: ProblemRecord | ProofRecord | CritiqueRecord) -> View:
        problem, critique = parse_problem(record.problem), getattr(record, "critique", None)
        proof = parse_proof(getattr(record, "proof", ""))
        steps = proof.steps if proof else ()
        lemma = bool(problem and problem.lemma)
        return View(
            statement=record.problem,
            facts=facts(problem) if problem else (),
            steps=tuple(f"${step}$" for step in steps),
            findings=findings(critique, steps) if critique is not None else (),
            rubric=(RUBRIC_V + RUBRIC_LEMMA * lemma) if critique is None else RUBRIC_MV,
            form=(FORM_V + FORM_LEMMA * lemma) if critique is None else "",
            kind=tuple(problem.kind.split(", ")) if problem else (),
            faults=faults(problem, proof) if problem and proof else (),
            errors=errors(problem, proof, critique) if problem and proof and critique else (),
        )


def facts(problem: Problem) -> tuple[str, ...]:
    """What is given, one a line."""
    given = tuple(f"${x}$ is {condition.words}" for x, condition in problem.given)
    return (*given, f"${LEMMA} = {problem.lemma}$") if problem.lemma else given


@lru_cache(maxsize=KEPT)
def faults(problem: Problem, proof: Proof) -> tuple[str, ...]:
    """The kinds of fault that a proof has."""
    truth = examine(problem, proof)
    names = {f.verdict for f in truth.claims}
    told = {"shown": "{1}", "lemma": "lemma {1}"}
    names |= {told.get(name, "{0}").format(name, value) for name, value in truth.whole.claims}
    return tuple(sorted(FAULTS[name] for name in names))


@lru_cache(maxsize=KEPT)
def errors(problem: Problem, proof: Proof, critique: str) -> tuple[str, ...]:
    """The kinds of error that a critique makes."""
    said, truth, lost, found = parse_critique(critique), examine(problem, proof), False, set()
    if said is None or len(said.findings) != len(truth.findings):
        return ("another form",)
    for claim, due in zip(said.findings, truth.findings, strict=True):
        if claim[:2] != due[:2]:
            found.add("works something out wrongly")
        elif due.claims and not claim.claims:
            found.add(f"passes over {FAULTS[due.verdict]}")
        elif claim.verdict != due.verdict:
            found.add("finds fault with what follows a fault" if lost else "blames a sound step")
        lost = lost or due.claims
    if said.whole != truth.whole:
        found.add("misjudges the whole")
    if said.score != rubric([f.verdict for f in said.findings], said.whole):
        found.add("a score that does not follow")
    return tuple(sorted(found))


def findings(critique: str, steps: tuple) -> tuple[tuple[int | None, str, bool], ...]:
    """A critique's lines without those of the form: (step it is about, text, whether it claims an issue)."""
    found = []
    for line in lines_of(critique):
        said, whole = parse_finding(line), parse_whole(line)
        at = steps.index(said.subject) if said and said.subject in steps else None
        claim = said.claims if said else bool(whole) and claims(*whole)
        found.append((at, line.removeprefix("- "), claim))
    return tuple(found)
