"""The integers world's expert against two oracles that share no code with it: sympy, and trying all numbers.

NANOV2_ORACLE_PROOFS says how many random proofs are compared (10,000 take a few minutes).
"""

import itertools
import os
import re

import pytest

from nanov2.distributed.ranks import derive_rng
from nanov2.domains.integers import polynomials
from nanov2.domains.integers.demos import Habits, weak_proof
from nanov2.domains.integers.world import (
    Difficulty,
    examine,
    grade_proof,
    make_problem,
    parse_problem,
    parse_proof,
    write_proof,
)

sympy = pytest.importorskip("sympy", reason="needs sympy")

PROOFS = int(os.environ.get("NANOV2_ORACLE_PROOFS", "250"))
DIFFICULTIES = (
    Difficulty(),
    Difficulty((2, 3, 4, 5), (1, 3), 2, 2, 4),
    Difficulty((2, 3, 4), (1, 2), 1, 2, 3, lemma=1.0),
)
MIXED = Habits(early=0.2, same_letter=0.2, stray=0.6)
CONDITION = re.compile(r"(even|odd)|divisible by (\d)|congruent to (\d) modulo (\d)")


def remainder(words):
    """(modulus, remainder) of "odd", "divisible by 3", …; None for anything else."""
    found = CONDITION.fullmatch(words)
    if not found:
        return None
    parity, whole, left, modulus = found.groups()
    if parity:
        return 2, int(parity == "odd")
    if whole:
        return (int(whole), 0) if whole in "345" else None
    return (int(modulus), int(left)) if modulus in "345" and 0 < int(left) < int(modulus) else None


def expression(text, cache={}):  # noqa: B006 (parsing is what takes the time)
    """A sympy expression, expanded, or None: products are spelt out, Python's own grammar reads the rest."""
    if text not in cache:
        spelt = re.sub(r"(?<=[0-9a-z)])(?=[a-z(])", "*", text.replace("^2", "**2"))
        spelt = re.sub(r"(?<=[a-z)])(?=[0-9])(?<!\*\*)", "?", spelt)  # a number after a letter is no product
        try:
            # Spacing is part of the form, and no powers but squares of letters and brackets
            clean = re.fullmatch(r"([0-9a-z()*]| \+ )+", spelt) and not re.search(
                r"[0-9]\^|\^(?!2)|\^2[0-9^]", text
            )
            cache[text] = sympy.expand(sympy.sympify(spelt, locals=LOCALS)) if clean else None
        except (SyntaxError, TypeError, sympy.SympifyError):
            cache[text] = None
    return cache[text]


LOCALS = {x: sympy.Symbol(x) for x in "abcdefghijklmnopqrstuvwxyz"}


def values_of(text, names, modulus, at):
    """The expression's values where the letters run through `at`, by Python's arithmetic alone."""
    spelt = re.sub(r"(?<=[0-9a-z)])(?=[a-z(])", "*", text.replace("^2", "**2"))
    code = compile(spelt, "expression", "eval")
    return [eval(code, {}, dict(zip(names, point))) % modulus for point in at]


PROOF = r"Write \$(.*)\$\. Then \$(.*)\$\. So \$(.*)\$ is (.*)\."
LEMMA = PROOF.replace(".*", ".*?").replace(r"So \$(.*?)\$", r"So \$(u)\$")


def letters_of(*texts):
    return {str(s) for t in texts for s in expression(t).free_symbols}


def leaves(form, modulus, left):
    """Whether an expression leaves `left` whatever its letters stand for."""
    names = sorted(str(s) for s in form.free_symbols)
    points = itertools.product(range(modulus), repeat=len(names))
    return all(form.subs(dict(zip(names, point))) % modulus == left for point in points)


def oracle_score(problem, proof):
    """The score by the rubric's words, from the texts alone. A lemma's letter is put in as what it stands
    for: (u - 1)/2 for u = 2n + 1."""
    given = dict(re.findall(r"et \$(\w)\$ be ([^,.]*?)(?= and let|, let|\.)", problem))
    part = re.search(r"let \$u = (.*?)\$\.", problem)
    goal, asked = re.search(r"Show that \$(.*)\$ is (.*)\.$", problem).groups()
    two, one = re.fullmatch(f"{LEMMA} {PROOF}", proof), re.fullmatch(PROOF, proof)
    if not two and not one:
        return 0.0
    groups = two.groups() if two else one.groups()
    if two and (not part or not groups[1].startswith("u = ")):
        return 0.0
    read = [groups[i : i + 4] for i in range(0, len(groups), 4)]
    steps = [step for _, chain, *_ in read for step in chain.split(" = ")]
    if len(set(steps)) < len(steps):
        return 0.0
    sides, stand, slips, shown, value = {}, {}, 0, None, None
    for written, chain, about, claim in read:
        chain, claimed = chain.split(" = "), remainder(claim)
        definitions = [d.split(" = ") for d in re.split(r"\$, \$|\$ and \$", written)]
        names = [d[0] for d in definitions]
        if len(chain) < 2 or not claimed or any(len(d) != 2 or d[0] not in "abcxyzu" for d in definitions):
            return 0.0
        if len({*names, *sides}) < len(names) + len(sides):
            return 0.0
        if any(expression(t) is None for t in [*chain, about, *(side for _, side in definitions)]):
            return 0.0
        for name, side in definitions:  # modulus times a new letter, plus the remainder that is known
            known = remainder(given[name]) if name in given else shown if name == "u" else None
            if not known:
                return 0.0
            modulus, left = known
            form = re.fullmatch(rf"{modulus}([a-z])(?: \+ {left})?" if left else rf"{modulus}([a-z])", side)
            letter = form and form[1]
            taken = {*"abcxyz", *("u" if part else ""), *letters_of(*sides.values())}
            if not form or (left and "+" not in side) or letter in taken:
                return 0.0
            sides[name] = side
            if name == "u":
                stand[LOCALS[letter]] = (value - left) / modulus
        if not letters_of(*chain) <= {*letters_of(*sides.values()), *sides, *("u" if part else "")}:
            return 0.0
        put_in = {LOCALS[x]: expression(side) for x, side in sides.items() if x != "u"}
        if part:
            value = expression(part[1]).subs(put_in, simultaneous=True)
            put_in[LOCALS["u"]] = value
        stand = {n: sympy.expand(v.subs(put_in, simultaneous=True)) for n, v in stand.items()}
        forms = [expression(t).subs(put_in, simultaneous=True) for t in chain]
        forms = [sympy.expand(form.subs(stand, simultaneous=True)) for form in forms]
        slips += sum(a != b for a, b in itertools.pairwise(forms))
        modulus, left = shown = claimed
        if not leaves(forms[-1], modulus, left):
            return 0.0
        if two and chain[0] == "u" and not leaves(sympy.expand(value), modulus, left):
            return 0.0
        bare = r"(?:\([^()]*\)|[a-z](?:\^2)?)"
        slips += not re.fullmatch(rf"{modulus}{bare}" + (rf" \+ {left}" if left else ""), chain[-1])
    if (chain[0], about, claimed) != (goal, goal, remainder(asked)):
        return 0.0
    if not letters_of(goal, *(part.groups() if part else ())) - {"u"} <= set(sides):
        return 0.0
    return {0: 1.0, 1: 0.5}.get(slips, 0.0)


def mutated(rng, text):
    """A text with one piece changed: a number, a letter, a part left out, doubled or moved."""
    pieces = re.findall(r"\d+|[a-z](?![a-z])|[A-Za-z]+|.", text)
    at = [i for i, p in enumerate(pieces) if re.fullmatch(r"\d+|[a-z]", p)]
    way = rng.random()
    if way < 0.4:
        i = rng.choice([i for i in at if pieces[i].isdigit()] or at)
        pieces[i] = str(rng.randrange(13))
    elif way < 0.6:
        i, j = rng.choice(at), rng.choice(at)
        pieces[i], pieces[j] = pieces[j], pieces[i]
    elif way < 0.7:
        del pieces[rng.randrange(len(pieces))]
    elif way < 0.8:
        i = rng.choice(at)
        pieces.insert(i, pieces[i])
    else:
        parts = "".join(pieces).split(" = ")
        i, j = rng.randrange(len(parts)), rng.randrange(len(parts))
        parts[i], parts[j] = parts[j], parts[i]
        return " = ".join(parts)
    return "".join(pieces)


def random_proofs(n):
    for i in range(n):
        rng = derive_rng("oracle", i)
        problem = make_problem(rng, rng.choice(DIFFICULTIES))
        text = write_proof(weak_proof(rng, problem, MIXED))
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            text = mutated(rng, text)
        yield problem, text


def test_the_expert_agrees_with_the_oracle_on_random_and_mutated_proofs():
    scores = {0.0: 0, 0.5: 0, 1.0: 0}
    for problem, text in random_proofs(PROOFS):
        score = grade_proof(problem, text)
        assert score == oracle_score(problem.text, text), (problem.text, text)
        scores[score] += 1
    assert min(scores.values()) > 0.05 * PROOFS  # all are met


def test_normal_forms_are_those_of_sympy_and_of_numbers():
    for i in range(max(PROOFS // 5, 40)):
        rng = derive_rng("forms", i)
        problem = make_problem(rng, DIFFICULTIES[1])
        for text in weak_proof(rng, problem, MIXED).chain:
            normal = polynomials.write(dict(polynomials.parse(text)))
            assert expression(text) == expression(normal)
            names = sorted(polynomials.letters(dict(polynomials.parse(text))))
            points = [[rng.randrange(50) for _ in names] for _ in range(5)]
            assert values_of(text, names, 10**9, points) == values_of(normal, names, 10**9, points)


def test_the_goal_of_every_problem_holds_for_all_numbers_and_its_given_ones():
    for i in range(max(PROOFS // 5, 40)):
        problem = make_problem(derive_rng("goals", i), DIFFICULTIES[i % 3])
        assert parse_problem(problem.text) == problem
        names = [x for x, _ in problem.given]
        numbers = [[c.remainder + c.modulus * k for k in range(3)] for _, c in problem.given]
        goal = problem.goal.replace("u", f"({problem.lemma})")
        values = values_of(goal, names, problem.modulus, itertools.product(*numbers))
        assert set(values) == {problem.claim.remainder}


def test_an_examination_says_of_each_expression_what_sympy_says():
    for problem, text in random_proofs(max(PROOFS // 5, 40)):
        if not (proof := parse_proof(text)):
            continue
        part = re.search(r"let \$u = (.*?)\$\.", problem.text)
        found = iter(f for f in examine(problem, proof).findings if " = " not in f.subject)
        sides = {}
        for calculation in proof.parts:
            sides |= dict(d.split(" = ") for d in calculation.definitions)
            put_in = {LOCALS[x]: expression(side) for x, side in sides.items()}
            if part and "u" not in sides:
                put_in[LOCALS["u"]] = expression(part[1]).subs(put_in, simultaneous=True)
            forms = [sympy.expand(expression(t).subs(put_in, simultaneous=True)) for t in calculation.chain]
            for i, (form, finding) in enumerate(zip(forms, found)):
                assert expression(finding.said) == form
                if i == 0:
                    assert finding.verdict == "start"
                elif form == forms[i - 1] or not proof.lemma:  # else the lemma's letter may make them equal
                    assert finding.verdict == ("ok" if form == forms[i - 1] else "slip")
