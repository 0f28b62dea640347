r"""Parity and divisibility in plain English, with an exact expert.

A *problem* gives the remainders of some integers and asks for that of an expression:

    Let $a$ be odd and let $b$ be even. Show that $3a + b$ is odd.

A *proof* writes the integers out, calculates, and concludes:

    Write $a = 2k + 1$ and $b = 2m$. Then $3a + b = 3(2k + 1) + 2m = 6k + 2m + 3 = 2(3k + m + 1) + 1$. So
    $3a + b$ is odd.

Some problems name a part of the goal. A proof may show what it leaves first, and then use that, a lemma:

    Let $a$ be odd, let $b$ be even and let $u = 3a + b$. Show that $2u + b$ is even.

    Write $a = 2k + 1$ and $b = 2m$. Then $u = 3a + b = 3(2k + 1) + 2m = 6k + 2m + 3 = 2(3k + m + 1) + 1$. So
    $u$ is odd. Write $u = 2n + 1$. Then $2u + b = 2(2n + 1) + 2m = 4n + 2m + 2 = 2(2n + m + 1)$. So
    $2u + b$ is even.

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
A lemma's letter stands for the integer that the lemma yields: above, $n$ for $3k + m + 1$.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from nanov2.domains.domain import CritiqueGrade
from nanov2.domains.integers import polynomials
from nanov2.domains.integers.polynomials import Polynomial
from nanov2.domains.language import MV_END, MV_START, V_END, V_START, read
from nanov2.domains.seeded import BLANKS, BOXED, FOLLOWS, NO_CLAIM, REAL, meaning, meta_rubric

VARIABLES = ("a", "b", "c", "x", "y", "z")
WITNESSES = ("k", "m", "n", "p", "q", "r", "s", "t")
LEMMA = "u"  # the name of a part of the goal
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
# Of a part of the goal: what the proof has shown of it.
PROVED = {words: f": shown to be {words}" for words in CONDITIONS} | {None: ": not shown"}
DEFINED = {
    "ok": ", so this is right.",
    "other": ", but this says otherwise.",
    "shared": ", but this letter stands for another number already.",
    "example": ", but this is only an example.",
    "unshown": ", so this may not be used.",
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
LEMMAS = {
    "shown": "The lemma is shown.",
    "hidden": "The calculation of the lemma does not show it yet.",
    "false": "The lemma is wrong or does not follow.",
}
ASKED = {True: "This is what was asked.", False: "This is not what was asked."}
WHOLE: dict[str, dict[Any, str]] = {"lemma": LEMMAS, "complete": COMPLETE, "shown": SHOWN, "asked": ASKED}
CLAIMED = {  # how a meta-critique names a claim about the whole
    ("complete", False): "- A number is not written out, as claimed",
    ("shown", "hidden"): "- The last expression hides the claim, as claimed",
    ("shown", "false"): "- The claim does not follow, as claimed",
    ("asked", False): "- Another thing was asked, as claimed",
    ("lemma", "hidden"): "- The lemma is not shown yet, as claimed",
    ("lemma", "false"): "- The lemma is wrong or does not follow, as claimed",
}


@dataclass(frozen=True)
class Problem:
    """Integers whose remainders are given, and an expression whose remainder is to be shown."""

    given: tuple[tuple[str, Condition], ...]
    goal: str  # an expression in the given integers
    claim: Condition
    lemma: str = ""  # an expression in them that the goal calls LEMMA; "": it has no such part

    @property
    def modulus(self) -> int:
        return self.claim.modulus

    @cached_property
    def text(self) -> str:
        each = [f"let ${x}$ be {condition.words}" for x, condition in self.given]
        each += [f"let ${LEMMA} = {self.lemma}$"] if self.lemma else []
        listed = ", ".join(each[:-1]) + " and " + each[-1] if len(each) > 1 else each[0]
        return f"L{listed[1:]}. Show that ${self.goal}$ is {self.claim.words}."

    @property
    def used(self) -> list[str]:
        """The given integers that the goal speaks of."""
        known = polynomials.letters(dict(polynomials.parse(self.goal)))
        if self.lemma:
            known |= polynomials.letters(dict(polynomials.parse(self.lemma)))
        return [x for x, _ in self.given if x in known]

    @cached_property
    def part(self) -> dict[str, Polynomial]:
        """LEMMA in the given integers; empty where the goal has no such part."""
        return {LEMMA: dict(polynomials.parse(self.lemma))} if self.lemma else {}

    @property
    def kind(self) -> str:
        """The type of a problem, for drawing diverse subsets."""
        n = len(self.used)
        return f"modulo {self.modulus}, {n} variable{'s' * (n > 1)}{', a lemma' if self.lemma else ''}"

    @cached_property
    def form(self) -> str:
        """The same for two problems just if they differ by the names of their integers and the order of what
        is given (of goals with products some such pairs are told apart)."""
        goals = [dict(polynomials.parse(self.goal)), *self.part.values()]

        def part(x: str) -> list:
            return [sorted((m.count(x), len(m), c) for m, c in goal.items() if x in m) for goal in goals]

        order = sorted(self.given, key=lambda g: (part(g[0]), g[1]))
        names: dict[str, Polynomial] = {x: {(f"v{i}",): 1} for i, (x, _) in enumerate(order)}
        told = ", ".join(condition.words for _, condition in order)
        parts = " of ".join(str(sorted(polynomials.substitute(goal, names).items())) for goal in goals)
        return f"{told}: {parts} {self.claim.words}"

    @property
    def truth(self) -> Condition:
        """What the goal's expression leaves, where the given remainders settle it."""
        return self.leaves(dict(polynomials.parse(self.goal)))

    def leaves(self, expression: Polynomial) -> Condition:
        """What an expression in the given integers leaves, where their remainders settle it."""
        values: dict[str, Polynomial] = {x: {(x,): c.modulus, (): c.remainder} for x, c in self.given}
        written = polynomials.substitute(polynomials.substitute(expression, self.part), values)
        (remainder,) = polynomials.residues(written, self.modulus)
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
    told, _, lemma = told.partition(f" and let ${LEMMA} = ")
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
    part = lemma.removesuffix("$")
    if lemma and not polynomials.parse(part):
        return None
    problem = Problem(tuple(given), goal, claim, part)
    letters = [polynomials.letters(dict(polynomial)), *map(polynomials.letters, problem.part.values())]
    allowed = [{*names, LEMMA} if lemma else set(names), set(names)]
    fits = all(used and used <= known for used, known in zip(letters, allowed, strict=False))
    return problem if fits and problem.text == text else None


# --- proofs ---------------------------------------------------------------------------------------


class Proof(NamedTuple):
    """Definitions (`a = 2k + 1`), a chain of expressions that are said to be equal, and the conclusion."""

    definitions: tuple[str, ...]
    chain: tuple[str, ...]
    about: str  # the expression that the conclusion is about
    claim: Condition
    lemma: Any = None  # the Proof before it that shows what LEMMA leaves, or None

    @property
    def parts(self) -> tuple[Proof, ...]:
        return (self.lemma, self._replace(lemma=None)) if self.lemma else (self,)

    @property
    def steps(self) -> tuple[str, ...]:
        """All definitions and expressions, in order."""
        return tuple(step for part in self.parts for step in (*part.definitions, *part.chain))


def write_proof(proof: Proof) -> str:
    if proof.lemma:
        return " ".join(map(write_proof, proof.parts))
    *first, last = proof.definitions
    written = f"{'$, $'.join(first)}$ and ${last}" if first else last
    chain = " = ".join(proof.chain)
    return f"Write ${written}$. Then ${chain}$. So ${proof.about}$ is {proof.claim.words}."


def parse_proof(text: str) -> Proof | None:
    """A proof from its text; None where the text has another form, writes a number or an expression twice."""
    text = text.strip(BLANKS)
    first, then, last = text.partition(f". So ${LEMMA}$ is ")
    if then and ". Write $" in last:
        words, _, last = last.partition(". ")
        lemma, proof = _parse_part(f"{first}{then}{words}."), _parse_part(last)
        if not lemma or not proof or lemma.chain[0] != LEMMA:
            return None
        proof = proof._replace(lemma=lemma)
    else:
        proof = _parse_part(text)
    # A text that comes back does not say which is meant
    twice = proof and (repeats(proof.steps) or repeats([d.partition(" = ")[0] for d in defined(proof)]))
    return None if twice or not proof or write_proof(proof) != text else proof


def repeats(items: Sequence[str]) -> bool:
    return len(set(items)) < len(items)


def defined(proof: Proof) -> list[str]:
    """All definitions."""
    return [definition for part in proof.parts for definition in part.definitions]


def _parse_part(text: str) -> Proof | None:
    """`Write …. Then …. So … is ….`"""
    written, _, rest = text.removeprefix("Write $").partition("$. Then $")
    chain, _, end = rest.partition("$. So $")
    about, _, words = end.partition("$ is ")
    definitions = tuple(re.split(r"\$, \$|\$ and \$", written))
    expressions = tuple(chain.split(" = "))
    names, sides = zip(*(d.partition(" = ")[::2] for d in definitions), strict=True)
    claim = CONDITIONS.get(words.removesuffix("."))
    if not claim or not set(names) <= {*VARIABLES, LEMMA} or len(expressions) < 2:
        return None
    if None in map(polynomials.parse, (*sides, *expressions, about)):
        return None
    return Proof(definitions, expressions, about, claim)


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
    """A right proof; `letters` name the witnesses: one for each integer in use, then one for LEMMA."""
    d, conditions, names = problem.modulus, dict(problem.given), iter(letters)
    written = {x: polynomials.write({(next(names),): d, (): conditions[x].remainder}) for x in problem.used}
    proof = Proof(tuple(f"{x} = {side}" for x, side in written.items()), (), problem.goal, problem.claim)
    if problem.lemma:
        left = problem.leaves(problem.part[LEMMA])
        lemma = proof._replace(about=LEMMA, claim=left)
        written[LEMMA] = polynomials.write({(next(names),): d, (): left.remainder})
        proof = proof._replace(definitions=(f"{LEMMA} = {written[LEMMA]}",), lemma=lemma)
    return recalculated(problem, proof)


def recalculated(problem: Problem, proof: Proof) -> Proof:
    """The same definitions with the calculations that follow from them."""
    written = dict(d.split(" = ") for d in defined(proof))
    lemma = proof.lemma
    if lemma:
        own = dict(d.split(" = ") for d in lemma.definitions)
        chain = [LEMMA, problem.lemma, *worked(problem.lemma, problem.modulus, own)]
        lemma = lemma._replace(chain=shortest(chain))
    chain = [problem.goal, *worked(problem.goal, problem.modulus, written)]
    return proof._replace(chain=shortest(chain), lemma=lemma)


def shortest(chain: Sequence[str]) -> tuple[str, ...]:
    """The expressions without repetition, ending where the last one stands first."""
    return tuple(dict.fromkeys(chain[: chain.index(chain[-1]) + 1]))


def worked(goal: str, modulus: int, written: dict[str, str]) -> list[str]:
    """An expression with the integers written out, expanded, and with the modulus taken out."""
    put_in = insert(goal, written)
    expanded = dict(polynomials.parse(put_in))
    return [put_in, polynomials.write(expanded), quotient_form(expanded, modulus)]


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
    lemma: str = "shown"  # of LEMMAS; of a proof without a lemma nothing is said

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


FATAL = {"other", "shared", "example", "unshown"}  # verdicts


def rubric(verdicts: Sequence[str], whole: Whole) -> float:
    """0: a wrong or incomplete definition, a letter for two numbers, an example, a claim that does not follow
    or was not asked, a lemma that is wrong or not shown, or two slips; 0.5: one slip of arithmetic, or a
    remainder that is not shown; else 1."""
    slips = list(verdicts).count("slip") + (whole.shown == "hidden") + (whole.lemma == "hidden")
    fatal = FATAL & {*verdicts} or "false" in (whole.shown, whole.lemma)
    if fatal or not whole.complete or not whole.asked or slips >= 2:
        return 0.0
    return 0.5 if slips else 1.0


def definition_finding(
    problem: Problem, definition: str, taken: set[str], shown: Condition | None
) -> Finding:
    """The exact finding about `a = 2k + 1`; `taken` are the letters of the definitions before it, `shown` is
    what the proof has shown of LEMMA."""
    name, _, side = definition.partition(" = ")
    condition, polynomial = dict(problem.given).get(name), dict(polynomials.parse(side))
    if name == LEMMA:
        condition = shown
    words, used = condition and condition.words, polynomials.letters(polynomial)
    if condition is None:
        return Finding(definition, None, "unshown" if name == LEMMA else "other")
    if (
        name != LEMMA
        and not used
        and polynomials.residues(polynomial, problem.modulus) == {condition.remainder}
    ):
        return Finding(definition, words, "example")
    due = {(x,): problem.modulus for x in used} | ({(): condition.remainder} if condition.remainder else {})
    if len(used) != 1 or polynomial != due or used & {*VARIABLES, *problem.part}:
        return Finding(definition, words, "other")
    return Finding(definition, words, "shared" if used & taken else "ok")


def examine(problem: Problem, proof: Proof) -> Critique:
    """The exact critique of a proof."""
    findings, complete, lemma, shown, part_is = [], True, "shown", None, {}
    values, meant = (
        {},
        {},
    )  # of integers, by the definitions; of the letter that a lemma yields, in the others
    taken: set[str] = set()
    for at, part in enumerate(proof.parts):
        for definition in part.definitions:
            findings.append(definition_finding(problem, definition, taken, shown))
            name, _, side = definition.partition(" = ")
            values[name] = dict(polynomials.parse(side))
            letters = polynomials.letters(values[name])
            if name == LEMMA and findings[-1].verdict == "ok" and lemma != "false":
                (letter,) = letters
                meant = yielded(letter, part_is, shown)
            taken |= letters
        said = [expanded(problem, expression, values) for expression in part.chain]
        stands = {n: polynomials.substitute(p, values) or {} for n, p in meant.items()}
        forms = [None if p is None else polynomials.substitute(p, stands) for p in said]
        for i, (expression, form) in enumerate(zip(part.chain, said, strict=True)):
            same = "start" if i == 0 else "ok" if forms[i] == forms[i - 1] else "slip"
            findings.append(Finding(expression, "" if form is None else polynomials.write(form), same))
        used = {x for e in part.chain for x in polynomials.letters(dict(polynomials.parse(e)))}
        complete = complete and used <= {*taken, *values, *problem.part}
        follows = polynomials.residues(forms[-1] or {}, part.claim.modulus) == {part.claim.remainder}
        ends = "false" if not follows else "shown" if shows(part.chain[-1], part.claim) else "hidden"
        if at == 0 and proof.lemma:
            true = problem.part and part.claim == problem.leaves(problem.part[LEMMA])
            lemma, shown, part_is = ends if true else "false", part.claim, forms[0] or {}
    asked = proof.chain[0] == proof.about == problem.goal and proof.claim == problem.claim
    asked = asked and bool(problem.part or not proof.lemma)
    whole = Whole(complete and set(problem.used) <= set(values), ends, asked, lemma)
    return Critique(tuple(findings), whole, rubric([f.verdict for f in findings], whole))


def expanded(problem: Problem, expression: str, values: dict[str, Polynomial]) -> Polynomial | None:
    """An expression with the definitions put in, and with what LEMMA stands for where no definition says how
    to write it. None where that is too large."""
    polynomial: Polynomial | None = dict(polynomials.parse(expression))
    if problem.part and LEMMA not in values:
        polynomial = polynomials.substitute(polynomial, problem.part)
    return None if polynomial is None else polynomials.substitute(polynomial, values)


def yielded(letter: str, part: Polynomial, shown: Condition) -> dict[str, Polynomial]:
    """What the letter of `u = 2n + 1` stands for, by what u is: n = (u - 1)/2. Empty where that is no
    polynomial with whole coefficients, as after a wrong definition."""
    above = part | {(): part.get((), 0) - shown.remainder}
    if any(c % shown.modulus for c in above.values()):
        return {}
    return {letter: {m: c // shown.modulus for m, c in above.items() if c}}


def grade_proof(problem: Problem, proof: str) -> float:
    """The expert's score s ∈ {0, 0.5, 1} of a proof's text; a proof that does not parse scores 0."""
    parsed = parse_proof(proof)
    return examine(problem, parsed).score if parsed else 0.0


def told(subject: str) -> dict[str | None, str]:
    """The words for what is known of the integer that a definition writes out."""
    return PROVED if subject.startswith(f"{LEMMA} = ") else GIVEN


def write_finding(finding: Finding) -> str:
    if " = " in finding.subject:
        return f"- ${finding.subject}${told(finding.subject)[finding.said]}{DEFINED[finding.verdict]}"
    return f"- ${finding.subject}{THAT_IS}{finding.said}{EXPANDED[finding.verdict]}"


def parse_finding(line: str) -> Finding | None:
    """What one line of a critique says of a definition or an expression, or None."""
    subject, _, rest = line.removeprefix("- $").partition("$")
    if " = " in subject:
        known = told(subject)
        pairs = itertools.product(known, DEFINED)
        found = [(given, v) for given, v in pairs if rest == known[given] + DEFINED[v]]
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
    left_out = () if LEMMA in [f.subject for f in critique.findings] else ("lemma",)
    whole = [words[getattr(critique.whole, n)] for n, words in WHOLE.items() if n not in left_out]
    return "\n".join([V_START, *findings, *whole, f"{V_END} {BOXED[critique.score]}"])


def parse_critique(text: str) -> Critique | None:
    """A critique from its text, or None where the text is not of the world's form."""
    lines = text.strip(BLANKS).split("\n")
    if len(lines) < 6:
        return None
    lemma = meaning(LEMMAS, lines[-5])  # its line is there where the proof shows one
    findings = [parse_finding(line) for line in lines[1 : -5 if lemma else -4]]
    complete, shown = meaning(COMPLETE, lines[-4]), meaning(SHOWN, lines[-3])
    asked, score = meaning(ASKED, lines[-2]), meaning(BOXED, lines[-1].removeprefix(f"{V_END} "))
    if None in (*findings, complete, shown, asked, score):
        return None
    critique = Critique(tuple(findings), Whole(complete, shown, asked, lemma or "shown"), score)
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
            right = value == getattr(truth.whole, name) and (name != "lemma" or bool(parsed.lemma))
            first, against = name not in said, claims(name, value)
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
    findings = examine(problem, proof).findings
    truth = {f.subject: f for f in findings}
    steps = itertools.pairwise(f for f in findings if " = " not in f.subject)
    forms = {f.subject: before.said for before, f in steps if f.verdict != "start"}
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
            lines.append(f"- ${subject}${told(subject)[said]}{REAL[real]}")
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
    lemma: float = 0.0  # share of the goals that have a part with a name of its own

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
    lemma = ""
    if d.lemma and rng.random() < d.lemma:  # the sum becomes a part of the goal
        lemma, known = polynomials.write(goal), [*names[:n], LEMMA]
        goal = {(x,): rng.randint(1, d.coefficient) for x in (LEMMA, rng.choice(names[:n]))}
    else:
        known = names[:n]
    if d.degree > 1 and rng.random() < 0.6:
        x, y = LEMMA if lemma else rng.choice(known), rng.choice(known)
        del goal[x,]
        goal[tuple(sorted((x, y)))] = rng.randint(1, d.coefficient)
        if x != y and rng.random() < 0.5:
            goal.pop((y,), None)
    if rng.random() < 0.4:
        goal[()] = rng.randint(1, d.coefficient)
    order = sorted(given, key=lambda g: g[0])
    problem = Problem(tuple(order), polynomials.write(goal), Condition(modulus, 0), lemma)
    return replace(problem, claim=problem.truth)
