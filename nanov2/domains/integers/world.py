r"""Parity and divisibility in plain English, with an exact expert.

A *problem* gives the remainders of some integers and asks for that of an expression:

    Let $a$ be odd and let $b$ be even. Show that $3a + b$ is odd.

A *proof* writes the integers out, calculates, and concludes:

    Write $a = 2k + 1$ and $b = 2m$. Then $3a + b = 3(2k + 1) + 2m = 6k + 2m + 3 = 2(3k + m + 1) + 1$. So
    $3a + b$ is odd.

A *critique* looks every definition up, expands every expression, judges the whole, and ends with the score:

    Here is my evaluation of the solution:
    - $a = 2k + 1$: given to be odd, so this is right.
    - $b = 2k$: given to be even, but this letter stands for another number already.
    - $3a + b$: that is $8k + 3$ by the definitions.
    - $8k + 3$: that is $8k + 3$, so this step is justified.
    Every number is written out.
    The last expression does not show the claim yet.
    This is what was asked.
    Based on my evaluation, the final overall score should be: \boxed{0}

A *meta-critique* looks every claimed issue up again. Everything here is exact: expressions are compared as
polynomials, and what an expression leaves on division is decided by trying all residues. Nothing is learnt.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from nanov2.domains.domain import CritiqueGrade
from nanov2.domains.integers import polynomials
from nanov2.domains.integers.polynomials import Polynomial
from nanov2.domains.language import MV_END, MV_START, V_END, V_START, read
from nanov2.domains.seeded import BLANKS, BOXED, FOLLOWS, NO_CLAIM, REAL, meaning, meta_rubric

VARIABLES = ("a", "b", "c", "x", "y", "z")
WITNESSES = ("k", "m", "n", "p", "q", "r", "s", "t")
MODULI = (2, 3, 4, 5)


class Condition(NamedTuple):
    """What an integer leaves on division."""

    modulus: int
    remainder: int

    @property
    def words(self) -> str:
        if self.modulus == 2:
            return ("even", "odd")[self.remainder]
        if self.remainder == 0:
            return f"divisible by {self.modulus}"
        return f"congruent to {self.remainder} modulo {self.modulus}"


CONDITIONS = {c.words: c for d in MODULI for r in range(d) for c in (Condition(d, r),)}

# --- the words. Each phrase, with the dollar signs and line ends around it, is one token of tokenizer.py.

GIVEN = {words: f": given to be {words}" for words in CONDITIONS} | {None: ": not given"}
DEFINED = {
    "ok": ", so this is right.",
    "other": ", but this says otherwise.",
    "shared": ", but this letter stands for another number already.",
    "example": ", but this is only an example.",
}
EXPANDED = {
    "start": "$ by the definitions.",
    "ok": "$, so this step is justified.",
    "slip": "$, so this step is not justified.",
}
THAT_IS, AFTER = "$: that is $", "$, after $"
COMPLETE = {True: "Every number is written out.", False: "A number is not written out."}
SHOWN = {
    "shown": "The last expression shows the claim.",
    "hidden": "The last expression does not show the claim yet.",
    "false": "The claim does not follow from the last expression.",
}
ASKED = {True: "This is what was asked.", False: "This is not what was asked."}
WHOLE: dict[str, dict[Any, str]] = {"complete": COMPLETE, "shown": SHOWN, "asked": ASKED}
CLAIMED = {  # how a meta-critique names a claim about the whole
    ("complete", False): "- A number is not written out, as claimed",
    ("shown", "hidden"): "- The last expression hides the claim, as claimed",
    ("shown", "false"): "- The claim does not follow, as claimed",
    ("asked", False): "- Another thing was asked, as claimed",
}


@dataclass(frozen=True)
class Problem:
    """Integers whose remainders are given, and an expression whose remainder is to be shown."""

    given: tuple[tuple[str, Condition], ...]
    goal: str  # an expression in the given integers
    claim: Condition

    @property
    def modulus(self) -> int:
        return self.claim.modulus

    @cached_property
    def text(self) -> str:
        each = [f"let ${x}$ be {condition.words}" for x, condition in self.given]
        listed = ", ".join(each[:-1]) + " and " + each[-1] if len(each) > 1 else each[0]
        return f"L{listed[1:]}. Show that ${self.goal}$ is {self.claim.words}."

    @property
    def used(self) -> list[str]:
        """The given integers that the goal speaks of."""
        known = polynomials.letters(dict(polynomials.parse(self.goal)))
        return [x for x, _ in self.given if x in known]

    @property
    def kind(self) -> str:
        """The type of a problem, for drawing diverse subsets."""
        n = len(self.used)
        return f"modulo {self.modulus}, {n} variable{'s' * (n > 1)}"

    @cached_property
    def form(self) -> str:
        """The same for two problems just if they differ by the names of their integers and the order of what
        is given (of goals with products some such pairs are told apart)."""
        goal = dict(polynomials.parse(self.goal))

        def part(x: str) -> list:
            return sorted((m.count(x), len(m), c) for m, c in goal.items() if x in m)

        order = sorted(self.given, key=lambda g: (part(g[0]), g[1]))
        names: dict[str, Polynomial] = {x: {(f"v{i}",): 1} for i, (x, _) in enumerate(order)}
        told = ", ".join(condition.words for _, condition in order)
        return f"{told}: {sorted(polynomials.substitute(goal, names).items())} {self.claim.words}"

    @property
    def truth(self) -> Condition:
        """What the goal's expression leaves, where the given remainders settle it."""
        values: dict[str, Polynomial] = {x: {(x,): c.modulus, (): c.remainder} for x, c in self.given}
        goal = polynomials.substitute(dict(polynomials.parse(self.goal)), values)
        (remainder,) = polynomials.residues(goal, self.modulus)
        return Condition(self.modulus, remainder)


def _sentence(text: str, before: str, between: str) -> list[str] | None:
    """The parts of `before A, A and A`, or None."""
    if not text.startswith(before):
        return None
    return re.split(f", {between}| and {between}", text.removeprefix(before))


def parse_problem(text: str) -> Problem | None:
    """A problem from its text, or None where the text is not of the world's form."""
    text = text.strip(BLANKS)
    told, _, asked = text.partition(". Show that $")
    given = []
    for part in _sentence(told, "Let ", "let ") or ():
        x, _, words = part.removeprefix("$").partition("$ be ")
        given.append((x, CONDITIONS.get(words)))
    goal, _, words = asked.partition("$ is ")
    claim, names = CONDITIONS.get(words.removesuffix(".")), [x for x, _ in given]
    polynomial = polynomials.parse(goal)
    if not given or not claim or not polynomial or len(set(names)) < len(names):
        return None
    if not all(x in VARIABLES and c and c.modulus == claim.modulus for x, c in given):
        return None
    used = polynomials.letters(dict(polynomial))
    problem = Problem(tuple(given), goal, claim)
    return problem if used and used <= set(names) and problem.text == text else None


# --- proofs ---------------------------------------------------------------------------------------


class Proof(NamedTuple):
    """Definitions (`a = 2k + 1`), a chain of expressions that are said to be equal, and the conclusion."""

    definitions: tuple[str, ...]
    chain: tuple[str, ...]
    about: str  # the expression that the conclusion is about
    claim: Condition


def write_proof(proof: Proof) -> str:
    *first, last = proof.definitions
    written = f"{'$, $'.join(first)}$ and ${last}" if first else last
    chain = " = ".join(proof.chain)
    return f"Write ${written}$. Then ${chain}$. So ${proof.about}$ is {proof.claim.words}."


def parse_proof(text: str) -> Proof | None:
    """A proof from its text; None where the text has another form, writes a number or an expression twice."""
    text = text.strip(BLANKS)
    written, _, rest = text.removeprefix("Write $").partition("$. Then $")
    chain, _, end = rest.partition("$. So $")
    about, _, words = end.partition("$ is ")
    definitions = tuple(re.split(r"\$, \$|\$ and \$", written))
    expressions = tuple(chain.split(" = "))
    names = [d.partition(" = ")[0] for d in definitions]
    claim = CONDITIONS.get(words.removesuffix("."))
    sides = [d.partition(" = ")[2] for d in definitions]
    if not claim or not set(names) <= set(VARIABLES) or len(set(names)) < len(names):
        return None
    if None in map(polynomials.parse, (*sides, *expressions, about)):
        return None
    if len(set(expressions)) < len(expressions):  # a text that comes back does not say which is meant
        return None
    proof = Proof(definitions, expressions, about, claim)
    return proof if len(expressions) > 1 and write_proof(proof) == text else None


def quotient_form(polynomial: Polynomial, modulus: int, borrow: int = 0) -> str:
    """$2(3k + m + 1) + 1$; `borrow` leaves so many times the modulus in the remainder."""
    whole = {m: c // modulus for m, c in polynomial.items() if c // modulus}
    left = {m: c % modulus for m, c in polynomial.items() if c % modulus}
    borrow = min(borrow, whole.get((), 0))
    if borrow:
        whole[()] -= borrow
        left[()] = left.get((), 0) + borrow * modulus
    inside = polynomials.write(whole)
    rest = polynomials.write(left)
    front = f"{modulus}{inside}" if re.fullmatch("[a-z]", inside) else f"{modulus}({inside})"
    return front if rest == "0" else f"{front} + {rest}"


def shows(expression: str, claim: Condition) -> bool:
    """Whether an expression shows what it leaves: the modulus times something, plus a reduced remainder."""
    front, plus, rest = expression.rpartition(" + ")
    if not plus:
        front, rest = expression, "0"
    if not rest.isdigit():
        front, rest = expression, "0"
    factor = front.removeprefix(str(claim.modulus))
    one = re.fullmatch(r"[a-z](?:\^2)?|\([^()]*\)", factor)
    return bool(one) and factor != front and int(rest) == claim.remainder and rest == str(int(rest))


def solve(problem: Problem, letters: Sequence[str] = WITNESSES) -> Proof:
    """A right proof; `letters` name the witnesses."""
    modulus, conditions = problem.modulus, dict(problem.given)
    written = {}
    for x, letter in zip(problem.used, letters, strict=False):
        written[x] = polynomials.write({(letter,): modulus, (): conditions[x].remainder})
    chain = [problem.goal, *worked(problem, written)]
    definitions = tuple(f"{x} = {side}" for x, side in written.items())
    return Proof(definitions, shortest(chain), problem.goal, problem.claim)


def shortest(chain: Sequence[str]) -> tuple[str, ...]:
    """The expressions without repetition, ending where the last one stands first."""
    return tuple(dict.fromkeys(chain[: chain.index(chain[-1]) + 1]))


def worked(problem: Problem, written: dict[str, str]) -> list[str]:
    """The goal's expression with the integers written out, expanded, and with the modulus taken out."""
    put_in = insert(problem.goal, written)
    expanded = dict(polynomials.parse(put_in))
    return [put_in, polynomials.write(expanded), quotient_form(expanded, problem.modulus)]


def insert(expression: str, written: dict[str, str]) -> str:
    """An expression with each integer written out, in brackets where it takes them."""
    terms = []
    for term in expression.split(" + "):
        number, rest = re.fullmatch(r"([0-9]*)(.*)", term).groups()
        if rest in written and not number:
            terms.append(written[rest])
        else:
            terms.append(number + re.sub("[a-z]", lambda m: f"({written[m[0]]})", rest))
    return " + ".join(terms)


# --- critiques ------------------------------------------------------------------------------------


class Finding(NamedTuple):
    """What a critique says of one definition or expression: what is looked up or worked out, the verdict."""

    subject: str
    said: str | None  # of a definition: the words of the given condition; of an expression: its normal form
    verdict: str  # of DEFINED or EXPANDED

    @property
    def claims(self) -> bool:
        return self.verdict not in ("ok", "start")


class Whole(NamedTuple):
    """What a critique says of the whole proof; where nothing is said, all is well."""

    complete: bool = True  # every integer of the goal, and every letter, is written out
    shown: str = "shown"  # of SHOWN
    asked: bool = True

    @property
    def claims(self) -> tuple[tuple[str, bool | str], ...]:
        """The findings that claim an issue, by name."""
        return tuple((name, value) for name, value in self._asdict().items() if claims(name, value))


FINE = Whole()


class Critique(NamedTuple):
    """Findings about definitions and expressions, three about the whole, then the score s'."""

    findings: tuple[Finding, ...]
    whole: Whole
    score: float

    @property
    def claims(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.claims)


def rubric(verdicts: Sequence[str], whole: Whole) -> float:
    """0: a wrong or incomplete definition, a letter for two numbers, an example, a claim that does not follow
    or was not asked, or two slips; 0.5: one slip of arithmetic, or a remainder that is not shown; else 1."""
    slips = list(verdicts).count("slip") + (whole.shown == "hidden")
    fatal = {"other", "shared", "example"} & {*verdicts}
    if fatal or not whole.complete or whole.shown == "false" or not whole.asked or slips >= 2:
        return 0.0
    return 0.5 if slips else 1.0


def definition_finding(problem: Problem, definition: str, taken: set[str]) -> Finding:
    """The exact finding about `a = 2k + 1`; `taken` are the letters of the definitions before it."""
    name, _, side = definition.partition(" = ")
    condition, polynomial = dict(problem.given).get(name), dict(polynomials.parse(side))
    words, used = condition and condition.words, polynomials.letters(polynomial)
    if condition is None:
        return Finding(definition, None, "other")
    if not used and polynomials.residues(polynomial, problem.modulus) == {condition.remainder}:
        return Finding(definition, words, "example")
    due = {(x,): problem.modulus for x in used} | ({(): condition.remainder} if condition.remainder else {})
    if len(used) != 1 or polynomial != due or used & set(VARIABLES):
        return Finding(definition, words, "other")
    return Finding(definition, words, "shared" if used & taken else "ok")


def examine(problem: Problem, proof: Proof) -> Critique:
    """The exact critique of a proof."""
    findings, taken, values = [], set(), {}
    for definition in proof.definitions:
        findings.append(definition_finding(problem, definition, taken))
        name, _, side = definition.partition(" = ")
        values[name] = dict(polynomials.parse(side))
        taken |= polynomials.letters(values[name])
    forms = normal_forms(proof)
    for i, (expression, form) in enumerate(zip(proof.chain, forms, strict=True)):
        same = "start" if i == 0 else "ok" if form == forms[i - 1] else "slip"
        findings.append(Finding(expression, form, same))
    known = taken | set(values)
    used = {x for e in proof.chain for x in polynomials.letters(dict(polynomials.parse(e)))}
    complete = used <= known and set(problem.used) <= set(values)
    last = dict(polynomials.parse(forms[-1])) if forms[-1] else {}
    follows = polynomials.residues(last, proof.claim.modulus) == {proof.claim.remainder}
    shown = "false" if not follows else "shown" if shows(proof.chain[-1], proof.claim) else "hidden"
    asked = proof.chain[0] == proof.about == problem.goal and proof.claim == problem.claim
    whole = Whole(complete, shown, asked)
    return Critique(tuple(findings), whole, rubric([f.verdict for f in findings], whole))


def normal_forms(proof: Proof) -> list[str]:
    """Each expression of the chain, with the definitions put in, expanded. "" where that is too large."""
    values = {}
    for definition in proof.definitions:
        name, _, side = definition.partition(" = ")
        values[name] = dict(polynomials.parse(side))
    expanded = [polynomials.substitute(dict(polynomials.parse(e)), values) for e in proof.chain]
    return ["" if p is None else polynomials.write(p) for p in expanded]


def grade_proof(problem: Problem, proof: str) -> float:
    """The expert's score s ∈ {0, 0.5, 1} of a proof's text; a proof that does not parse scores 0."""
    parsed = parse_proof(proof)
    return examine(problem, parsed).score if parsed else 0.0


def write_finding(finding: Finding) -> str:
    if " = " in finding.subject:
        return f"- ${finding.subject}${GIVEN[finding.said]}{DEFINED[finding.verdict]}"
    return f"- ${finding.subject}{THAT_IS}{finding.said}{EXPANDED[finding.verdict]}"


def parse_finding(line: str) -> Finding | None:
    """What one line of a critique says of a definition or an expression, or None."""
    subject, _, rest = line.removeprefix("- $").partition("$")
    if " = " in subject:
        pairs = itertools.product(GIVEN, DEFINED)
        found = [(given, v) for given, v in pairs if rest == GIVEN[given] + DEFINED[v]]
    else:
        said, dollar, words = rest.removeprefix(": that is $").partition("$")
        found = [(said, v) for v, ending in EXPANDED.items() if dollar + words == ending]
        found = found if polynomials.parse(said) is not None else []
    finding = Finding(subject, *found[0]) if found else None
    return finding if finding and write_finding(finding) == line else None


def parse_whole(line: str) -> tuple[str, bool | str] | None:
    """What a line says of the whole proof: ("shown", "hidden"), or None."""
    for name, words in WHOLE.items():
        if (value := meaning(words, line)) is not None:
            return name, value
    return None


def write_critique(critique: Critique) -> str:
    findings = [write_finding(f) for f in critique.findings]
    whole = [WHOLE[name][value] for name, value in critique.whole._asdict().items()]
    return "\n".join([V_START, *findings, *whole, f"{V_END} {BOXED[critique.score]}"])


def parse_critique(text: str) -> Critique | None:
    """A critique from its text, or None where the text is not of the world's form."""
    lines = text.strip(BLANKS).split("\n")
    if len(lines) < 6:
        return None
    findings = [parse_finding(line) for line in lines[1:-4]]
    complete, shown = meaning(COMPLETE, lines[-4]), meaning(SHOWN, lines[-3])
    asked, score = meaning(ASKED, lines[-2]), meaning(BOXED, lines[-1].removeprefix(f"{V_END} "))
    if None in (*findings, complete, shown, asked, score):
        return None
    critique = Critique(tuple(findings), Whole(complete, shown, asked), score)
    return critique if write_critique(critique) == text.strip(BLANKS) else None


def grade_critique(problem: Problem, proof: str, critique: str) -> CritiqueGrade:
    """Grade a critique's text against the truth: are the claimed issues real, and does the score follow?

    Read line by line, as in the order world: an issue is real where its line is true; a line that cannot be
    read, a subject that the proof does not have, and a second line about one subject are wrong findings. A
    critique without a score, or of a proof that does not parse, has quality 0.
    """
    parsed, score = parse_proof(proof), read(critique).score
    if parsed is None or score is None:
        return CritiqueGrade(0.0, (), 0, 0)
    truth = examine(problem, parsed)
    found: dict[str, Finding] = {}
    said: dict[str, Any] = {}
    marks, real, unreadable = [], [], False
    for line in filter(None, map(str.strip, critique.split("\n"))):
        if line.lower().startswith(V_START.lower()) or "\\boxed" in line:
            continue
        finding, of_whole = parse_finding(line), parse_whole(line)
        if finding:
            first, right, against = finding.subject not in found, finding in truth.findings, finding.claims
            found.setdefault(finding.subject, finding)
        elif of_whole:
            name, value = of_whole
            first, right, against = name not in said, value == getattr(truth.whole, name), claims(name, value)
            said.setdefault(name, value)
        else:
            first, right, against, unreadable = False, False, False, True
        marks.append(right and first)
        if against and first:
            real.append(right)
    whole = Whole(**said)
    follows = score == rubric([f.verdict for f in found.values()], whole)
    missed = {f.subject for f in truth.claims} - {f.subject for f in found.values() if f.claims}
    passed_over = {name for name, _ in truth.whole.claims} - {name for name, _ in whole.claims}
    quality = meta_rubric(real, follows and not unreadable)
    return CritiqueGrade(quality, tuple(marks), real.count(False), len(missed) + len(passed_over))


def claims(name: str, value: bool | str) -> bool:
    """Whether a finding about the whole claims an issue."""
    return value != getattr(FINE, name)


# --- meta-critiques -------------------------------------------------------------------------------


class Look(NamedTuple):
    """A second look at a claimed issue: what is given, or the expression's normal form and the one before."""

    subject: str
    said: str | None
    before: str
    real: bool


class MetaCritique(NamedTuple):
    """A look at each claimed issue, whether the score follows, and the quality of the critique."""

    looks: tuple[Look, ...]
    whole: tuple[tuple[str, bool | str, bool], ...]  # (name, what was claimed, real)
    follows: bool
    quality: float


def look_up(problem: Problem, proof: Proof, critique: Critique) -> list[Look]:
    """The exact looks at what a critique claims of definitions and expressions."""
    truth = {f.subject: f for f in examine(problem, proof).findings}
    forms = dict(zip(proof.chain[1:], normal_forms(proof), strict=False))  # expression → the form before it
    looks = []
    for claim in critique.claims:
        due = truth.get(claim.subject)
        looks.append(Look(claim.subject, due and due.said, forms.get(claim.subject, ""), claim == due))
    return looks


def examine_critique(problem: Problem, proof: Proof, critique: Critique) -> MetaCritique:
    """The exact meta-critique."""
    truth = examine(problem, proof)
    claimed = [(n, v, getattr(truth.whole, n) == v) for n, v in critique.whole.claims]
    verdicts = [f.verdict for f in critique.findings]
    follows = critique.score == rubric(verdicts, critique.whole)
    return conclude(look_up(problem, proof, critique), claimed, follows)


def conclude(looks: Sequence[Look], whole: Sequence[tuple], follows: bool) -> MetaCritique:
    """A meta-critique with the quality that its own findings give."""
    real = [*(look.real for look in looks), *(real for *_, real in whole)]
    return MetaCritique(tuple(looks), tuple(whole), follows, meta_rubric(real, follows))


def write_meta(meta: MetaCritique) -> str:
    lines = []
    for subject, said, before, real in meta.looks:
        if " = " in subject:
            lines.append(f"- ${subject}${GIVEN[said]}{REAL[real]}")
        else:
            lines.append(f"- ${subject}{THAT_IS}{said}{AFTER}{before}${REAL[real]}")
    lines += [f"{CLAIMED[name, value]}{REAL[real]}" for name, value, real in meta.whole]
    lines = [MV_START, *(lines or [NO_CLAIM]), FOLLOWS[meta.follows], f"{MV_END} {BOXED[meta.quality]}"]
    return "\n".join(lines)


# --- problems -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difficulty:
    """The knobs of a problem; config.py has those of a run."""

    moduli: tuple[int, ...] = (2, 3)
    variables: tuple[int, int] = (1, 2)  # integers in the goal, from and to
    unused: int = 1  # at most this many that are given and not needed
    degree: int = 1
    coefficient: int = 3  # the largest of the goal

    def __post_init__(self):
        (low, high), most = self.variables, len(VARIABLES)
        if not 1 <= low <= high:
            raise ValueError(
                f"integers: variables must be [from, to] with 1 <= from <= to, got {[low, high]}"
            )
        if high + self.unused > most:
            raise ValueError(
                f"integers: {high} variables and {self.unused} unused ones are more than the {most} names "
                "that there are: lower variables, unused or lap_variables"
            )


def make_problem(rng: random.Random, difficulty: Difficulty) -> Problem:
    """A random problem: every one can be proved by writing the integers out."""
    d = difficulty
    modulus, n = rng.choice(d.moduli), rng.randint(*d.variables)
    names = rng.sample(VARIABLES, n + rng.randint(0, d.unused))
    given = tuple((x, Condition(modulus, rng.randrange(modulus))) for x in names)
    goal: Polynomial = {(x,): rng.randint(1, d.coefficient) for x in names[:n]}
    if d.degree > 1 and rng.random() < 0.6:
        x, y = rng.choice(names[:n]), rng.choice(names[:n])
        del goal[x,]
        goal[tuple(sorted((x, y)))] = rng.randint(1, d.coefficient)
        if x != y and rng.random() < 0.5:
            goal.pop((y,), None)
    if rng.random() < 0.4:
        goal[()] = rng.randint(1, d.coefficient)
    order = sorted(given, key=lambda g: g[0])
    problem = Problem(tuple(order), polynomials.write(goal), Condition(modulus, 0))
    return Problem(problem.given, problem.goal, problem.truth)
