"""The embedded proof world: inequality chains, with an exact expert.

A *problem* lists facts and asks for one more:   given c < t ; c = f ; f < q ; show c < q
A *proof* is a chain from left to right:         c = f < q qed
A *critique* goes step by step (the step, what the facts say of that pair, the verdict), judges the
whole, and ends with the score:                  c = f = ok f < q < ok ends strict \\boxed{1}
A *meta-critique* looks every finding of a critique up again, says `agree` or `wrong`, gives the score
that the proof deserves, and ends with the quality of the critique:
    c = f = agree f < q < agree ends agree strict agree 1 agree \\boxed{1}

Everything here is exact: it parses, grades proofs (the rubric below), grades critiques, and makes
problems of a given difficulty. Nothing here is learnt and nothing is noisy; see demos.py for that.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from nanov2.domains.domain import CritiqueGrade

RELATIONS = ("<", "<=", "=")
TERMS = tuple(string.ascii_lowercase)
SCORES = (0.0, 0.5, 1.0)
BOXED = {0.0: "\\boxed{0}", 0.5: "\\boxed{0.5}", 1.0: "\\boxed{1}"}
UNBOXED = {text: score for score, text in BOXED.items()}
PLAIN = {0.0: "0", 0.5: "0.5", 1.0: "1"}
UNPLAIN = {text: score for score, text in PLAIN.items()}
WORDS = (
    ("given", "show", ";", "qed", "none", "ok", "slip", "gap", "ends", "astray", "strict", "weak")
    + ("agree", "wrong")
    + RELATIONS
    + tuple(PLAIN.values())
    + tuple(BOXED.values())
    + TERMS
)


class Step(NamedTuple):
    """One relation between two terms: a fact, a goal, or a step of a proof."""

    left: str
    relation: str
    right: str


@dataclass(frozen=True)
class Problem:
    """Facts (all true of some order of the terms) and a goal that follows from them by a chain."""

    facts: tuple[Step, ...]
    goal: Step

    @cached_property
    def table(self) -> dict[tuple[str, str], str]:
        """What the facts say of each ordered pair; an equation holds both ways round."""
        table = {(f.left, f.right): f.relation for f in self.facts}
        table |= {(f.right, f.left): "=" for f in self.facts if f.relation == "="}
        return table

    def says(self, left: str, right: str) -> str:
        """The relation that the facts give for the pair, or `none`."""
        return self.table.get((left, right), "none")

    @cached_property
    def text(self) -> str:
        facts = " ".join(f"{f.left} {f.relation} {f.right} ;" for f in self.facts)
        return f"given {facts} show {self.goal.left} {self.goal.relation} {self.goal.right}"

    @property
    def kind(self) -> str:
        """The type of a problem, for drawing diverse subsets: goal relation and chain length."""
        return f"{self.goal.relation} in {len(self.solution or ())}"

    @cached_property
    def solution(self) -> tuple[Step, ...] | None:
        """A shortest chain of facts from the goal's left side to its right side that yields the goal."""
        seen = {(self.goal.left, "=")}
        frontier: list[tuple[str, str, tuple[Step, ...]]] = [(self.goal.left, "=", ())]
        while frontier:
            following = []
            for term, strength, path in frontier:
                if term == self.goal.right and path and yields(strength, self.goal.relation):
                    return path
                for (left, right), relation in self.table.items():
                    state = (right, weakest([strength, relation]))
                    if left == term and state not in seen:
                        seen.add(state)
                        following.append((*state, (*path, Step(left, relation, right))))
            frontier = following
        return None


def weakest(relations: list[str] | tuple[str, ...]) -> str:
    """The relation that a chain of relations yields: `<` if any is strict, `=` if all are equations."""
    if "<" in relations:
        return "<"
    return "<=" if "<=" in relations else "="


def yields(chain: str, goal: str) -> bool:
    """Whether a chain's relation proves the goal's: x < y and x = y both prove x <= y."""
    return chain == goal or goal == "<="


def parse_problem(text: str) -> Problem | None:
    """A problem from its text, or None where the text is not of the world's form."""
    words = text.split()
    if len(words) < 9 or words[0] != "given" or words[-4] != "show":
        return None
    body, goal = words[1:-4], Step(*words[-3:])
    if len(body) % 4 or any(body[i + 3] != ";" for i in range(0, len(body), 4)):
        return None
    facts = tuple(Step(*body[i : i + 3]) for i in range(0, len(body), 4))
    if not all(_is_step(step) for step in (*facts, goal)):
        return None
    return Problem(facts, goal)


def _is_step(step: Step) -> bool:
    return step.left in TERMS and step.relation in RELATIONS and step.right in TERMS


# --- proofs ---------------------------------------------------------------------------------------


def write_proof(steps: list[Step] | tuple[Step, ...]) -> str:
    return " ".join([steps[0].left, *(f"{s.relation} {s.right}" for s in steps), "qed"])


def parse_proof(text: str) -> tuple[Step, ...] | None:
    """The steps of `a < b = c qed`, or None where the text is not of that form or names a term twice."""
    words = text.split()
    if len(words) < 4 or len(words) % 2 or words[-1] != "qed":
        return None
    terms = words[:-1:2]
    if len(set(terms)) < len(terms):  # a chain that comes back to a term does not say which step is meant
        return None
    steps = tuple(Step(words[i], words[i + 1], words[i + 2]) for i in range(0, len(words) - 3, 2))
    return steps if all(_is_step(step) for step in steps) else None


class Finding(NamedTuple):
    """What a critique says of one step: the relation that the facts give for its pair, and the verdict."""

    step: Step
    relation: str
    verdict: str


class Critique(NamedTuple):
    """Findings for each step, then for the whole chain, then the score s'."""

    findings: tuple[Finding, ...]
    ends: str  # "ends" or "astray"
    strict: str  # "strict" or "weak"
    score: float

    @property
    def issues(self) -> int:
        """How many issues the critique claims."""
        verdicts = [f.verdict for f in self.findings]
        return sum(v != "ok" for v in verdicts) + (self.ends == "astray") + (self.strict == "weak")


def verdict(stated: str, given: str) -> str:
    """ok: the facts say just that. slip: they give the pair another relation. gap: they do not give it."""
    return "ok" if given == stated else "gap" if given == "none" else "slip"


def rubric(findings: tuple[Finding, ...], ends: str, strict: str) -> float:
    """The score of a proof: 0 for a gap, a wrong end or two slips; 0.5 for one slip; 1 for none.

    A chain too weak for its goal counts as one slip. A gap is fatal on purpose: where one gap was worth
    half, a generator learnt to restate the goal in a single step.
    """
    verdicts = [f.verdict for f in findings]
    slips = verdicts.count("slip") + (strict == "weak")
    if "gap" in verdicts or ends == "astray" or slips >= 2:
        return 0.0
    return 0.5 if slips else 1.0


def examine(problem: Problem, steps: tuple[Step, ...]) -> Critique:
    """The exact critique of a proof."""
    findings = []
    for step in steps:
        given = problem.says(step.left, step.right)
        findings.append(Finding(step, given, verdict(step.relation, given)))
    on_goal = steps[0].left == problem.goal.left and steps[-1].right == problem.goal.right
    ends = "ends" if on_goal else "astray"
    chain = weakest([step.relation for step in steps])
    strict = "strict" if yields(chain, problem.goal.relation) else "weak"
    return Critique(tuple(findings), ends, strict, rubric(tuple(findings), ends, strict))


def grade_proof(problem: Problem, proof: str) -> float:
    """The expert's score s ∈ {0, 0.5, 1} of a proof's text; a proof that does not parse scores 0."""
    steps = parse_proof(proof)
    return examine(problem, steps).score if steps else 0.0


# --- critiques ------------------------------------------------------------------------------------


def write_critique(critique: Critique) -> str:
    parts = [f"{' '.join(f.step)} {f.relation} {f.verdict}" for f in critique.findings]
    return " ".join([*parts, critique.ends, critique.strict, BOXED[critique.score]])


def parse_critique(text: str) -> Critique | None:
    """A critique from its text, or None where the text is not of the form (R_format = 0)."""
    words = text.split()
    if len(words) < 8 or (len(words) - 3) % 5:
        return None
    *body, ends, strict, boxed = words
    findings = tuple(Finding(Step(*body[i : i + 3]), *body[i + 3 : i + 5]) for i in range(0, len(body), 5))
    good = all(
        _is_step(f.step) and f.relation in (*RELATIONS, "none") and f.verdict in ("ok", "slip", "gap")
        for f in findings
    )
    if not good or ends not in ("ends", "astray") or strict not in ("strict", "weak") or boxed not in UNBOXED:
        return None
    return Critique(findings, ends, strict, UNBOXED[boxed])


def grade_critique(problem: Problem, proof: str, critique: str) -> CritiqueGrade:
    """Grade a critique's text against the truth: are the findings real, and does the score follow?

    A critique that does not parse, or of a proof that does not parse, has quality 0.
    """
    steps, claimed = parse_proof(proof), parse_critique(critique)
    if steps is None or claimed is None:
        return CritiqueGrade(0.0, (), 0, 0)
    truth = examine(problem, steps)
    pairs = list(zip(claimed.findings, truth.findings, strict=False))
    marks = [c == t for c, t in pairs] + [claimed.ends == truth.ends, claimed.strict == truth.strict]
    invented = sum(c.verdict != "ok" and t.verdict == "ok" for c, t in pairs)
    invented += claimed.ends == "astray" and truth.ends == "ends"
    invented += claimed.strict == "weak" and truth.strict == "strict"
    missed = sum(c.verdict == "ok" and t.verdict != "ok" for c, t in pairs)
    missed += claimed.ends == "ends" and truth.ends == "astray"
    missed += claimed.strict == "strict" and truth.strict == "weak"
    # Steps left out of, or added to, the critique are wrong findings too.
    wrong = marks.count(False) + abs(len(claimed.findings) - len(truth.findings))
    follows = claimed.score == rubric(claimed.findings, claimed.ends, claimed.strict)
    if wrong == 0 and follows:
        quality = 1.0
    elif wrong == 1 and claimed.score == truth.score:
        quality = 0.5
    else:
        quality = 0.0
    return CritiqueGrade(quality, tuple(marks), invented, missed)


# --- meta-critiques -------------------------------------------------------------------------------


class MetaCritique(NamedTuple):
    """A second look at each finding (own relation, agreement), at the score, and the quality."""

    looks: tuple[tuple[Step, str, bool], ...]  # step as the critique has it, relation looked up, agree
    ends: tuple[str, bool]  # the critique's word, agree
    strict: tuple[str, bool]
    score: tuple[float, bool]  # the score that the proof deserves, agree
    quality: float


def meta_quality(wrong: int, score_agrees: bool) -> float:
    """Quality from the marks: 1 nothing wrong; 0.5 one finding wrong and the score right; 0 otherwise."""
    if not score_agrees or wrong > 1:
        return 0.0
    return 1.0 if wrong == 0 else 0.5


def write_meta(meta: MetaCritique) -> str:
    said = {True: "agree", False: "wrong"}
    parts = [f"{' '.join(step)} {relation} {said[agree]}" for step, relation, agree in meta.looks]
    parts += [f"{word} {said[agree]}" for word, agree in (meta.ends, meta.strict)]
    parts += [PLAIN[meta.score[0]], said[meta.score[1]], BOXED[meta.quality]]
    return " ".join(parts)


def parse_meta(text: str) -> MetaCritique | None:
    """A meta-critique from its text, or None where the text is not of the form."""
    words = text.split()
    if len(words) < 12 or (len(words) - 7) % 5:
        return None
    body, tail = words[:-7], words[-7:]
    looks = tuple((Step(*body[i : i + 3]), *body[i + 3 : i + 5]) for i in range(0, len(body), 5))
    ends, ends_said, strict, strict_said, score, score_said, boxed = tail
    said = {"agree": True, "wrong": False}
    good = all(_is_step(s) and r in (*RELATIONS, "none") and a in said for s, r, a in looks)
    good = good and ends in ("ends", "astray") and strict in ("strict", "weak") and score in UNPLAIN
    if not good or boxed not in UNBOXED or not {ends_said, strict_said, score_said} <= said.keys():
        return None
    return MetaCritique(
        tuple((s, r, said[a]) for s, r, a in looks),
        (ends, said[ends_said]),
        (strict, said[strict_said]),
        (UNPLAIN[score], said[score_said]),
        UNBOXED[boxed],
    )


# --- problems -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difficulty:
    """The knobs of a problem: how long the chain is, and how many facts there are in all."""

    chain: tuple[int, int]  # steps of the shortest proof, from and to
    facts: tuple[int, int]  # facts in all, from and to (an equation, given both ways, counts once)

    def __post_init__(self):
        for name, (low, high) in (("chain", self.chain), ("facts", self.facts)):
            if not 1 <= low <= high:
                raise ValueError(
                    f"difficulty: {name} must be [from, to] with 1 <= from <= to, got {low, high}"
                )
        # Each distractor can bring two terms of its own.
        length, most = self.chain[0], max(self.chain[1], self.facts[1])
        if length + 1 + 2 * (most - length) > len(TERMS) or self.chain[1] + 1 > len(TERMS):
            raise ValueError(
                f"difficulty: {most} facts around a chain of {length} can need more than {len(TERMS)} terms; "
                " lower facts or raise chain"
            )


def make_problem(rng: random.Random, difficulty: Difficulty) -> Problem:
    """A consistent random problem with just one chain (the facts form a forest, `=` aside).

    Distractors hang off the chain: dead ends that leave it, facts that run into it, branches that go on,
    and pairs that have nothing to do with it.
    """
    length = rng.randint(*difficulty.chain)
    count = max(length, rng.randint(*difficulty.facts))
    names = iter(rng.sample(TERMS, min(len(TERMS), 2 * count + 2)))
    chain = [next(names) for _ in range(length + 1)]

    def draw_relation() -> str:
        return rng.choices(RELATIONS, weights=(9, 6, 5))[0]

    steps = [Step(a, draw_relation(), b) for a, b in zip(chain, chain[1:], strict=False)]
    goal = Step(chain[0], weakest([s.relation for s in steps]), chain[-1])
    facts, branches = list(steps), []
    while len(facts) < count:
        way = rng.random()
        if way < 0.45:  # a dead end that leaves the chain (not from its end: that would not mislead)
            fact = Step(rng.choice(chain[:-1]), draw_relation(), next(names))
            branches.append(fact.right)
        elif way < 0.7:  # a fact that runs into the chain
            fact = Step(next(names), draw_relation(), rng.choice(chain[1:]))
        elif way < 0.9 and branches:  # a dead end that goes on
            fact = Step(rng.choice(branches), draw_relation(), next(names))
            branches.append(fact.right)
        else:  # a pair apart
            fact = Step(next(names), draw_relation(), next(names))
        facts.append(fact)
    # An equation holds both ways, and is given both ways: looking it up is then like any other look-up.
    facts += [Step(f.right, "=", f.left) for f in facts if f.relation == "="]
    rng.shuffle(facts)
    return Problem(tuple(facts), goal)
