"""The embedded world as a domain: problems made from a seed, exact truth, imperfect demonstrations.

Its own small models have tokens for its phrases and read turns of one growing sequence. A pretrained model
(`pretrained.folder`) reads and writes the same texts through its own tokenizer and chat template.
"""

from __future__ import annotations

import dataclasses
import random
from functools import lru_cache

from nanov2.distributed.ranks import derive_rng
from nanov2.domains.domain import View
from nanov2.domains.language import (
    V_END,
    V_START,
    Demonstration,
    Finding,
    TurnLanguage,
)
from nanov2.domains.order.config import WorldConfig
from nanov2.domains.order.demos import make_demonstration, make_practice
from nanov2.domains.order.tokenizer import order_tokenizer
from nanov2.domains.order.world import (
    ENDS,
    STRONG,
    Difficulty,
    Problem,
    Step,
    examine,
    grade_critique,
    grade_proof,
    make_problem,
    parse_critique,
    parse_finding,
    parse_problem,
    parse_proof,
    rubric,
    write_critique,
    write_proof,
)
from nanov2.domains.seeded import BLANKS, DRAWS, KEPT, RUBRIC_MV, ExactTruth, SeededDomain, lines_of
from nanov2.errors import InputError
from nanov2.hub.chat import ChatTokenizer
from nanov2.model.rollout import Rollout
from nanov2.records import CritiqueRecord, ProblemRecord, ProofRecord

RUBRIC_V = """\
1: every step is a given fact, and the chain proves the goal.
0.5: one slip: a step states another relation than the given one, or the chain is too weak for the goal.
0: a step that is not given, a wrong end, or two slips."""
FORM_V = """\
Write a line about each step of the chain, in order, in one of these forms; it names the relation that the
facts give for just this pair of terms:
- $a < b$: given as $<$, so this step is justified.
- $a < b$: given as $=$, but this step states it differently.
- $a < b$: not given, so this step is not justified.
Then one of these two lines:
The chain has the ends of the goal.
The chain does not have the ends of the goal.
And one of these two:
It is strong enough for the goal.
It is too weak for the goal."""


class OrderTruth(ExactTruth):
    """The exact expert."""

    parse_problem = staticmethod(parse_problem)
    grade_proof = staticmethod(grade_proof)
    grade_critique = staticmethod(grade_critique)

    def findings(self, problem: str, proof: str) -> frozenset[str]:
        """The findings of the exact critique of a proof, as texts; empty where it cannot be judged."""
        parsed, steps = parse_problem(problem), parse_proof(proof)
        if parsed is None or steps is None:
            return frozenset()
        return frozenset(write_critique(examine(parsed, steps)).split("\n")[1:-1])


class OrderLanguage(TurnLanguage):
    """The world's own models write proofs that can be read as chains, or none."""

    proof_form = "a chain of relations in which no term comes twice"

    def is_proof(self, text: str | None) -> bool:
        return text is not None and parse_proof(text) is not None

    def claims_issue(self, critique: str) -> bool:
        """Any finding against the proof, or a score below 1."""
        parsed = parse_critique(critique)
        if parsed is None:
            return super().claims_issue(critique)
        return bool(parsed.claims) or not (parsed.ends and parsed.strong and parsed.score == 1)

    def findings(self, rollout: Rollout) -> list[Finding]:
        """The lines between those of the form."""
        found, start, text = [], 0, ""
        for i, token in enumerate(rollout.ids):
            text += self.tokenizer.decode([token])
            if text.endswith("\n") or i + 1 == len(rollout.ids):
                line = text.strip(BLANKS)
                if line and not line.startswith(V_START) and V_END not in line:
                    found.append(Finding(start, i + 1, line))
                start, text = i + 1, ""
        return found


class OrderDomain(SeededDomain):
    """Chains of relations in four families. Problems have one form also where only the family differs."""

    truth = OrderTruth()
    own_language = OrderLanguage

    def own_tokenizer(self) -> ChatTokenizer:
        return order_tokenizer()

    # --- problems

    @property
    def difficulties(self) -> WorldConfig:
        return self.config.world

    def make(self, purpose: str, i: int, difficulty: Difficulty) -> Problem:
        return make_problem(derive_rng(self.config.seed, purpose, i), difficulty)

    def too_few(self, purpose: str, difficulty: Difficulty, drawn: int, n: int) -> str:
        return (
            f"world: there are too few different problems of {difficulty.chain} steps among "
            f"{difficulty.facts} facts ({drawn} of {n} for {purpose}): raise facts or chain, or "
            "ask for fewer"
        )

    def solution(self, problem: str) -> str | None:
        """A reference solution of a problem; None where the problem is not of this world."""
        parsed = parse_problem(problem)
        return write_proof(parsed.solution) if parsed and parsed.solution else None

    # --- demonstrations

    def demonstration(self, rng: random.Random, progress: float) -> Demonstration:
        """Short chains first, and much reading: a look-up is learnt on few facts and many faults."""
        w, _ = self.config.world, self._sets
        everything = Difficulty(
            (w.labelled_chain[0], w.hard_chain[1]),
            (w.labelled_facts[0], w.hard_facts[1]),
            (w.labelled_dead_ends + w.hard_dead_ends) / 2,
        )
        stages = ((0.12, Difficulty((2, 2), (3, 4))), (0.28, Difficulty((2, 3), (3, 6))))
        difficulty = next((d for share, d in stages if progress < share), everything)
        noise = self.config.noise
        practice = noise.practice if progress < 0.5 else noise.practice_later
        if self.config.pretrained.folder:  # which has learnt to read
            practice = 0.0
        practises = rng.random() < practice
        for _ in range(DRAWS):
            problem = make_problem(rng, difficulty)
            if problem.form not in self._kept_out:
                made = (make_practice if practises else make_demonstration)(rng, problem, noise)
                return self.shown(made, rng)
        raise InputError("world: nearly all problems are held out: lower held_out, or raise chain or facts")

    # --- pages

    def view(self, record: ProblemRecord | ProofRecord | CritiqueRecord) -> View:
        problem, critique = parse_problem(record.problem), getattr(record, "critique", None)
        steps = parse_proof(getattr(record, "proof", "")) or ()
        pairs, given = {(s.left, s.right) for s in steps}, problem.facts if problem else ()
        return View(
            statement=record.problem,
            opening=problem.family.opening if problem else "",
            facts=tuple(f"${' '.join(fact)}$" for fact in given),
            used=tuple((fact.left, fact.right) in pairs for fact in given),
            goal=f"Show that ${' '.join(problem.goal)}$." if problem else "",
            steps=tuple(f"${' '.join(step)}$" for step in steps),
            findings=findings(critique, steps) if critique is not None else (),
            rubric=RUBRIC_V if critique is None else RUBRIC_MV,
            form=FORM_V if critique is None else "",
            kind=tuple(problem.kind.split(", ")) if problem else (),
            faults=faults(problem, steps) if problem and steps else (),
            errors=errors(problem, steps, critique) if problem and steps and critique else (),
        )


@lru_cache(maxsize=KEPT)
def faults(problem: Problem, steps: tuple[Step, ...]) -> tuple[str, ...]:
    """The kinds of fault that a chain has."""
    truth = examine(problem, steps)
    found = [] if truth.ends else ["wrong ends"]
    found += [] if truth.strong else ["too weak for the goal"]
    for finding in truth.claims:
        if finding.verdict == "slip":
            found.append("another relation than the given one")
        else:
            follows = dataclasses.replace(problem, goal=finding.step).solution
            found.append("a step that jumps" if follows else "a step that does not follow")
    return tuple(sorted(set(found)))


@lru_cache(maxsize=KEPT)
def errors(problem: Problem, steps: tuple[Step, ...], critique: str) -> tuple[str, ...]:
    """The kinds of error that a critique makes."""
    said, truth, lost, found = parse_critique(critique), examine(problem, steps), False, set()
    if said is None or len(said.findings) != len(truth.findings):
        return ("another form",)
    for claim, due in zip(said.findings, truth.findings, strict=True):
        if claim.step != due.step or claim.relation != due.relation:
            found.add("looks a relation up wrongly")
        elif claim.verdict == "ok" and due.verdict != "ok":
            found.add(f"passes over {'a gap' if due.verdict == 'gap' else 'another relation'}")
        elif claim.verdict != due.verdict:
            found.add("finds fault with what follows a gap" if lost else "blames a sound step")
        lost = lost or due.verdict == "gap"
    if said.strong != truth.strong:
        found.add(
            "finds fault with what follows a gap" if lost and not said.strong else "misjudges the whole"
        )
    if said.ends != truth.ends:
        found.add("blames the ends of the chain" if truth.ends else "misjudges the whole")
    if said.score != rubric([f.verdict for f in said.findings], said.ends, said.strong):
        found.add("a score that does not follow")
    return tuple(sorted(found))


def findings(critique: str, steps: tuple) -> tuple[tuple[int | None, str, bool], ...]:
    """A critique's lines without those of the form: (step it is about, text, whether it claims an issue)."""
    found = []
    for line in lines_of(critique):
        said = parse_finding(line)
        at = steps.index(said.step) if said and said.step in steps else None
        claims = said.verdict != "ok" if said else line in (ENDS[False], STRONG[False])
        found.append((at, line.removeprefix("- "), claims))
    return tuple(found)
