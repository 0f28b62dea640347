"""The embedded proof world: chains of relations, in the words of mathematics, with an exact expert.

A *problem* lists facts of one family (real numbers, sets, divisibility, subgroups) and asks for one more:

    Suppose that real numbers satisfy $c < t$, $c = f$, $e = c$, $j \\le f$ and $f < q$. Show that $c < q$.

A *proof* is a chain of facts, read from left to right: `Indeed, $c = f < q$.` A *critique* looks every step
up among the facts, judges the whole chain, and ends with the score:

    Here is my evaluation of the solution:
    - $c = f$: given as $=$, so this step is justified.
    - $f < q$: given as $<$, so this step is justified.
    The chain has the ends of the goal.
    It is strong enough for the goal.
    Based on my evaluation, the final overall score should be: \\boxed{1}

A *meta-critique* looks every issue up again that a critique claims, says whether it is real and whether the
score follows from the findings, and ends with the quality of the critique. This one is of a critique that
finds fault with the second step:

    Here is my analysis of the "solution evaluation":
    - $f < q$: given as $<$, so this issue is invented.
    The score follows from the findings.
    Based on my analysis, I will rate the "solution evaluation" as: \\boxed{0}

Everything here is exact: it parses, grades proofs (`rubric`) and critiques (`meta_rubric`), and makes
problems of a given difficulty. Nothing is learnt and nothing is noisy; see demos.py. What is looked up
follows the pair at once, with no phrase between: a small model finds a pair among the facts by its distance.
"""

from __future__ import annotations

import random
import re
import string
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from nanov2.domains.domain import CritiqueGrade
from nanov2.domains.language import MV_END, MV_START, V_END, V_START, read
from nanov2.domains.seeded import BLANKS, BOXED, FOLLOWS, NO_CLAIM, REAL, meaning, meta_rubric

TERMS = tuple(string.ascii_lowercase)


@dataclass(frozen=True)
class Family:
    """A kind of mathematics with a strict relation, a weak one and equality."""

    name: str
    opening: str  # the words before the first fact
    strict: str
    weak: str
    equal: str = "="

    @property
    def relations(self) -> tuple[str, str, str]:
        return self.strict, self.weak, self.equal


FAMILIES = (
    Family("real numbers", "Suppose that real numbers satisfy", "<", "\\le"),
    Family("sets", "Suppose that sets satisfy", "\\subset", "\\subseteq"),
    Family(
        "divisibility",
        "Write $\\mid$ for divides and $\\mid_{\\ne}$ for divides properly. "
        "Suppose that positive integers satisfy",
        "\\mid_{\\ne}",
        "\\mid",
    ),
    Family(
        "subgroups",
        "Write $\\le$ for is a subgroup of and $<$ for is a proper subgroup of. Suppose that groups satisfy",
        "<",
        "\\le",
    ),
)
# What a relation's symbol says, whichever family uses it: "strict", "weak" or "equal".
STRENGTH = {getattr(f, strength): strength for f in FAMILIES for strength in ("strict", "weak", "equal")}
RELATIONS = tuple(STRENGTH)

# --- the words. Each phrase, with the dollar signs and line ends around it, is one token of tokenizer.py.

GIVEN = {relation: f": given as ${relation}$" for relation in RELATIONS} | {None: ": not given"}
VERDICTS = {
    "ok": ", so this step is justified.",
    "slip": ", but this step states it differently.",
    "gap": ", so this step is not justified.",
}
ENDS = {True: "The chain has the ends of the goal.", False: "The chain does not have the ends of the goal."}
STRONG = {True: "It is strong enough for the goal.", False: "It is too weak for the goal."}
ENDS_REAL = {
    True: "- The ends of the chain are wrong, as claimed.",
    False: "- The ends of the chain are right: this issue is invented.",
}
STRONG_REAL = {
    True: "- The chain is too weak, as claimed.",
    False: "- The chain is strong enough: this issue is invented.",
}


class Step(NamedTuple):
    """One relation between two terms: a fact, a goal, or a step of a proof."""

    left: str
    relation: str
    right: str


@dataclass(frozen=True)
class Problem:
    """Facts of one family, all true of some objects, and a goal that follows from them by a chain."""

    family: Family
    facts: tuple[Step, ...]
    goal: Step

    @cached_property
    def table(self) -> dict[tuple[str, str], str]:
        """What the facts say of each ordered pair; an equation holds both ways round."""
        table = {(f.left, f.right): f.relation for f in self.facts}
        table |= {(f.right, f.left): f.relation for f in self.facts if STRENGTH[f.relation] == "equal"}
        return table

    def says(self, left: str, right: str) -> str | None:
        """The relation that the facts give for the pair; None: they do not give it."""
        return self.table.get((left, right))

    def in_place(self, left: str, right: str) -> bool:
        """Whether each of the two is on its side of some fact, if not together."""
        lefts, rights = self._sides
        return left in lefts and right in rights

    @cached_property
    def _sides(self) -> tuple[set[str], set[str]]:
        return {left for left, _ in self.table}, {right for _, right in self.table}

    @cached_property
    def text(self) -> str:
        *facts, last = (f"${' '.join(fact)}$" for fact in self.facts)
        given = f"{', '.join(facts)} and {last}" if facts else last
        return f"{self.family.opening} {given}. Show that ${' '.join(self.goal)}$."

    @property
    def kind(self) -> str:
        """The type of a problem, for drawing diverse subsets: family and length of the shortest chain."""
        return f"{self.family.name}, {len(self.solution or ())} steps"

    @cached_property
    def solution(self) -> tuple[Step, ...] | None:
        """A shortest chain of facts from the goal's left side to its right side that yields the goal."""
        seen = {(self.goal.left, "equal")}
        frontier: list[tuple[str, str, tuple[Step, ...]]] = [(self.goal.left, "equal", ())]
        while frontier:
            following = []
            for term, strength, path in frontier:
                if term == self.goal.right and path and yields(strength, self.goal.relation):
                    return path
                for (left, right), relation in self.table.items():
                    state = (right, combined([strength, STRENGTH[relation]]))
                    if left == term and state not in seen:
                        seen.add(state)
                        following.append((*state, (*path, Step(left, relation, right))))
            frontier = following
        return None

    @cached_property
    def form(self) -> str:
        """The same for two problems just if renaming terms, reordering facts and changing the family (strict
        for strict, …) makes one of the other. For facts that form a forest, as those of `make_problem`."""
        near = defaultdict(set)
        for fact in self.facts:
            strength = STRENGTH[fact.relation]
            near[fact.left].add((">" if strength != "equal" else "-", strength, fact.right))
            near[fact.right].add(("<" if strength != "equal" else "-", strength, fact.left))
        components = _components({term: {other for *_, other in near[term]} for term in near})
        if any(sum(len(near[term]) for term in part) != 2 * len(part) - 2 for part in components):
            raise ValueError(f"the facts of this problem are no forest: {self.text}")
        ends = {self.goal.left: "L", self.goal.right: "R"}

        def tree(term: str, parent: str | None) -> str:
            branches = sorted(
                way + strength[0] + tree(other, term)
                for way, strength, other in near[term]
                if other != parent
            )
            return f"({ends.get(term, '')}{''.join(branches)})"

        # The component of the goal hangs from its left side; another one from the term that reads first.
        trees = sorted(
            tree(self.goal.left, None)
            if self.goal.left in component
            else min(tree(term, None) for term in component)
            for component in components
        )
        return f"{STRENGTH[self.goal.relation]} {' '.join(trees)}"


def _components(near: dict[str, set[str]]) -> list[set[str]]:
    """The connected components of a graph that is given by each node's neighbours."""
    components, left = [], set(near)
    while left:
        component, border = set(), {next(iter(left))}
        while border:
            component |= border
            border = {other for term in border for other in near[term]} - component
        components.append(component)
        left -= component
    return components


def combined(strengths: Iterable[str]) -> str:
    """What a chain yields: strict if any part is, else weak if any part is, else equal."""
    strengths = set(strengths)
    return next(strength for strength in ("strict", "weak", "equal") if strength in strengths)


def yields(chain: str, goal: str) -> bool:
    """Whether a chain of this strength proves the goal's relation: x < y and x = y both prove x <= y."""
    return STRENGTH[goal] in (chain, "weak")


def parse_step(text: str) -> Step | None:
    """A step from `c < t`, or None."""
    words = text.split(" ")
    good = len(words) == 3 and words[0] in TERMS and words[1] in STRENGTH and words[2] in TERMS
    return Step(*words) if good else None


def parse_problem(text: str) -> Problem | None:
    """A problem from its text, or None where the text is not of the world's form."""
    text = text.strip(BLANKS)
    family = next((f for f in FAMILIES if text.startswith(f"{f.opening} $")), None)
    if family is None:
        return None
    given, _, goal = text.removeprefix(f"{family.opening} $").partition("$. Show that $")
    facts = [parse_step(fact) for fact in re.split(r"\$, \$|\$ and \$", given)]
    steps = [*facts, parse_step(goal.removesuffix("$."))]
    if not all(step and step.relation in family.relations for step in steps):
        return None
    problem = Problem(family, tuple(facts), steps[-1])
    return problem if problem.text == text else None


# --- proofs ---------------------------------------------------------------------------------------


def write_proof(steps: Sequence[Step]) -> str:
    return f"Indeed, ${steps[0].left} {' '.join(f'{s.relation} {s.right}' for s in steps)}$."


def parse_proof(text: str) -> tuple[Step, ...] | None:
    """The steps of `Indeed, $a < b = c$.`; None where the text has another form or names a term twice."""
    words = text.strip(BLANKS).removeprefix("Indeed, $").removesuffix("$.").split(" ")
    terms = words[::2]
    if len(set(terms)) < len(terms):  # a chain that comes back to a term does not say which step is meant
        return None
    steps = [parse_step(" ".join(words[i : i + 3])) for i in range(0, len(words) - 1, 2)]
    return tuple(steps) if steps and all(steps) and write_proof(steps) == text.strip(BLANKS) else None


class Finding(NamedTuple):
    """What a critique says of one step: the relation that the facts give for its pair, and the verdict."""

    step: Step
    relation: str | None
    verdict: str  # of VERDICTS


class Critique(NamedTuple):
    """Findings for each step, then for the whole chain, then the score s'."""

    findings: tuple[Finding, ...]
    ends: bool  # the chain runs from the goal's left side to its right side
    strong: bool  # what the chain yields proves the goal
    score: float

    @property
    def claims(self) -> tuple[Finding, ...]:
        """The findings against steps."""
        return tuple(f for f in self.findings if f.verdict != "ok")


def verdict(stated: str, given: str | None) -> str:
    """ok: the facts say just that. slip: they give the pair another relation. gap: they do not give it."""
    return "ok" if given == stated else "gap" if given is None else "slip"


def rubric(verdicts: Iterable[str], ends: bool, strong: bool) -> float:
    """The score of a proof: 0 for a gap, a wrong end or two slips; 0.5 for one slip; 1 for none.

    A chain too weak for its goal counts as one slip. A gap is fatal on purpose: where one gap was worth
    half, a generator learnt to restate the goal in a single step.
    """
    verdicts = list(verdicts)
    slips = verdicts.count("slip") + (not strong)
    if "gap" in verdicts or not ends or slips >= 2:
        return 0.0
    return 0.5 if slips else 1.0


def examine(problem: Problem, steps: Sequence[Step]) -> Critique:
    """The exact critique of a proof."""
    given = [problem.says(step.left, step.right) for step in steps]
    findings = [Finding(step, g, verdict(step.relation, g)) for step, g in zip(steps, given, strict=True)]
    ends = (steps[0].left, steps[-1].right) == (problem.goal.left, problem.goal.right)
    strong = yields(combined(STRENGTH[step.relation] for step in steps), problem.goal.relation)
    return Critique(tuple(findings), ends, strong, rubric([f.verdict for f in findings], ends, strong))


def grade_proof(problem: Problem, proof: str) -> float:
    """The expert's score s ∈ {0, 0.5, 1} of a proof's text; a proof that does not parse scores 0."""
    steps = parse_proof(proof)
    return examine(problem, steps).score if steps else 0.0


# --- critiques ------------------------------------------------------------------------------------


def write_finding(finding: Finding) -> str:
    return f"- ${' '.join(finding.step)}${GIVEN[finding.relation]}{VERDICTS[finding.verdict]}"


def parse_finding(line: str) -> Finding | None:
    """What one line of a critique says of a step, or None."""
    pair, dollar, said = line.removeprefix("- $").partition("$")
    step = parse_step(pair)
    for relation, given in GIVEN.items():
        for name, words in VERDICTS.items():
            if step and said == given + words and line == f"- ${pair}{dollar}{said}":
                return Finding(step, relation, name)
    return None


def parse_whole(line: str) -> tuple[str, bool] | None:
    """What one line of a critique says of the whole chain: ("ends", True), or None."""
    for name, words in (("ends", ENDS), ("strong", STRONG)):
        if (fine := meaning(words, line)) is not None:
            return name, fine
    return None


def write_critique(critique: Critique) -> str:
    findings = [write_finding(f) for f in critique.findings]
    whole = [ENDS[critique.ends], STRONG[critique.strong]]
    return "\n".join([V_START, *findings, *whole, f"{V_END} {BOXED[critique.score]}"])


def parse_critique(text: str) -> Critique | None:
    """A critique from its text, or None where the text is not of the world's form."""
    lines = text.strip(BLANKS).split("\n")
    if len(lines) < 5:
        return None
    findings = [parse_finding(line) for line in lines[1:-3]]
    ends, strong = meaning(ENDS, lines[-3]), meaning(STRONG, lines[-2])
    score = meaning(BOXED, lines[-1].removeprefix(f"{V_END} "))
    if None in (*findings, ends, strong, score):
        return None
    critique = Critique(tuple(findings), ends, strong, score)
    return critique if write_critique(critique) == text.strip(BLANKS) else None


def grade_critique(problem: Problem, proof: str, critique: str) -> CritiqueGrade:
    """Grade a critique's text against the truth: are the claimed issues real, and does the score follow?

    An issue is real where its line is true: the facts give just the relation that it names, or none, and that
    is a fault of the step. The score is read as everywhere (`language.read`). A line that cannot be read, a
    step that the proof does not have, and a second line about one step are wrong findings; with an
    unreadable line nobody can say that the score follows. A critique without a score, or of a proof that does
    not parse, has quality 0.
    """
    steps, score = parse_proof(proof), read(critique).score
    if steps is None or score is None:
        return CritiqueGrade(0.0, (), 0, 0)
    truth = examine(problem, steps)
    found: dict[Step, Finding] = {}
    whole: dict[str, bool] = {}
    marks, real, unreadable = [], [], False
    for line in filter(None, map(str.strip, critique.split("\n"))):
        if line.lower().startswith(V_START.lower()) or "\\boxed" in line:
            continue
        finding, said = parse_finding(line), parse_whole(line)
        if finding:
            first, right, claims = (
                finding.step not in found,
                finding in truth.findings,
                finding.verdict != "ok",
            )
            found.setdefault(finding.step, finding)
        elif said:
            name, fine = said
            first, right, claims = name not in whole, fine == getattr(truth, name), not fine
            whole.setdefault(name, fine)
        else:
            first, right, claims, unreadable = False, False, False, True
        marks.append(right and first)
        if claims and first:
            real.append(right)
    verdicts = [f.verdict for f in found.values()]
    follows = score == rubric(verdicts, whole.get("ends", True), whole.get("strong", True)) and not unreadable
    against = {n for n in ("ends", "strong") if not getattr(truth, n)}
    missed = {f.step for f in truth.claims} - {f.step for f in found.values() if f.verdict != "ok"}
    passed_over = against - {name for name, fine in whole.items() if not fine}
    return CritiqueGrade(
        meta_rubric(real, follows), tuple(marks), real.count(False), len(missed) + len(passed_over)
    )


# --- meta-critiques -------------------------------------------------------------------------------


class MetaCritique(NamedTuple):
    """A second look at each claimed issue, whether the score follows, and the quality of the critique."""

    looks: tuple[tuple[Step, str | None, bool], ...]  # the step, what the facts give for it, real
    ends: bool | None  # whether the claim against the ends is real; None: there is none
    strong: bool | None
    follows: bool
    quality: float


def examine_critique(problem: Problem, steps: Sequence[Step], critique: Critique) -> MetaCritique:
    """The exact meta-critique."""
    truth = examine(problem, steps)
    looks = [
        (claim.step, problem.says(claim.step.left, claim.step.right), claim in truth.findings)
        for claim in critique.claims
    ]
    ends = None if critique.ends else not truth.ends
    strong = None if critique.strong else not truth.strong
    verdicts = [f.verdict for f in critique.findings]
    return conclude(looks, ends, strong, critique.score == rubric(verdicts, critique.ends, critique.strong))


def conclude(
    looks: Sequence[tuple[Step, str | None, bool]], ends: bool | None, strong: bool | None, follows: bool
) -> MetaCritique:
    """A meta-critique with the quality that its own findings give."""
    real = [*(real for *_, real in looks), *(claim for claim in (ends, strong) if claim is not None)]
    return MetaCritique(tuple(looks), ends, strong, follows, meta_rubric(real, follows))


def write_meta(meta: MetaCritique) -> str:
    lines = [f"- ${' '.join(step)}${GIVEN[relation]}{REAL[real]}" for step, relation, real in meta.looks]
    lines += [ENDS_REAL[meta.ends]] if meta.ends is not None else []
    lines += [STRONG_REAL[meta.strong]] if meta.strong is not None else []
    return "\n".join(
        [MV_START, *(lines or [NO_CLAIM]), FOLLOWS[meta.follows], f"{MV_END} {BOXED[meta.quality]}"]
    )


def parse_meta(text: str) -> MetaCritique | None:
    """A meta-critique from its text, or None where the text is not of the world's form."""
    lines = text.strip(BLANKS).split("\n")
    if len(lines) < 4:
        return None
    follows, quality = meaning(FOLLOWS, lines[-2]), meaning(BOXED, lines[-1].removeprefix(f"{MV_END} "))
    looks: list[tuple[Step, str | None, bool]] = []
    whole: dict[str, bool] = {}
    for line in lines[1:-2]:
        pair, _, said = line.removeprefix("- $").partition("$")
        step = parse_step(pair)
        found = [(r, real) for r in GIVEN for real in REAL if said == GIVEN[r] + REAL[real]]
        if step and found:
            looks.append((step, *found[0]))
        for name, words in (("ends", ENDS_REAL), ("strong", STRONG_REAL)):
            if (claim := meaning(words, line)) is not None:
                whole[name] = claim
    if None in (follows, quality):
        return None
    meta = MetaCritique(tuple(looks), whole.get("ends"), whole.get("strong"), follows, quality)
    return meta if write_meta(meta) == text.strip(BLANKS) else None


# --- problems -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difficulty:
    """The knobs of a problem: how long the chain is, how many facts there are in all, and how many of those
    that do not matter lead astray from the chain."""

    chain: tuple[int, int]  # steps of the shortest proof, from and to
    facts: tuple[int, int]  # facts in all, from and to (an equation, given both ways, counts once)
    dead_ends: float = 0.45  # share of the distractors that leave the chain: at each a prover must plan

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
    """A consistent random problem of any family with just one chain (the facts form a forest).

    Distractors hang off the chain: dead ends that leave it, facts that run into it, branches that go on,
    and pairs that have nothing to do with it.
    """
    family = rng.choice(FAMILIES)
    length = rng.randint(*difficulty.chain)
    count = max(length, rng.randint(*difficulty.facts))
    names = iter(rng.sample(TERMS, min(len(TERMS), 2 * count + 2)))
    chain = [next(names) for _ in range(length + 1)]

    def draw_relation() -> str:
        return rng.choices(family.relations, weights=(9, 6, 5))[0]

    steps = [Step(a, draw_relation(), b) for a, b in zip(chain, chain[1:], strict=False)]
    goal = Step(chain[0], getattr(family, combined(STRENGTH[s.relation] for s in steps)), chain[-1])
    facts, branches = list(steps), []
    while len(facts) < count:
        way = (rng.random() - difficulty.dead_ends) / (1 - difficulty.dead_ends)
        if way < 0:  # a dead end that leaves the chain (not from its end: that would not mislead)
            fact = Step(rng.choice(chain[:-1]), draw_relation(), next(names))
            branches.append(fact.right)
        elif way < 0.45:  # a fact that runs into the chain
            fact = Step(next(names), draw_relation(), rng.choice(chain[1:]))
        elif way < 0.8 and branches:  # a dead end that goes on
            fact = Step(rng.choice(branches), draw_relation(), next(names))
            branches.append(fact.right)
        else:  # a pair apart
            fact = Step(next(names), draw_relation(), next(names))
        facts.append(fact)
    # An equation holds both ways, and is given both ways: looking it up is then like any other look-up.
    facts += [Step(f.right, f.relation, f.left) for f in facts if f.relation == family.equal]
    rng.shuffle(facts)
    return Problem(family, tuple(facts), goal)
