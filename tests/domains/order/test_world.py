"""The world's expert against an independent brute-force check, and its parsers on bad and hostile text."""

import itertools
import random
import re

import pytest
from conftest import MIXED, NOISE, some_problems, some_proofs
from hypothesis import given, settings
from hypothesis import strategies as st

from nanov2.domains.language import MV_START, V_END, V_START, read_score
from nanov2.domains.order.demos import weak_critique, weak_meta, weak_proof
from nanov2.domains.order.tokenizer import PHRASES
from nanov2.domains.order.world import (
    FAMILIES,
    RELATIONS,
    STRENGTH,
    TERMS,
    Critique,
    Difficulty,
    Problem,
    Step,
    examine,
    examine_critique,
    grade_critique,
    grade_proof,
    make_problem,
    parse_critique,
    parse_meta,
    parse_problem,
    parse_proof,
    rubric,
    write_critique,
    write_meta,
    write_proof,
)

REALS, SETS = FAMILIES[:2]
EXAMPLE = (
    "Suppose that real numbers satisfy $c < t$, $c = f$, $e = c$, $j \\le f$ and $f < q$. Show that $c < q$."
)
PROOF = "Indeed, $c = f < q$."

# --- the rubrics once more, written against the texts alone, with nothing of nanov2's but what a person reads

SYMBOLS = {
    "<": "strict", "\\subset": "strict", "\\mid_{\\ne}": "strict",
    "\\le": "weak", "\\subseteq": "weak", "\\mid": "weak",
    "=": "equal",
}  # fmt: skip


def read_pairs(text):
    return [p.split() for p in re.findall(r"\$(\w \S+ \w)\$", text)]


def brute_force_facts(problem):
    *facts, goal = read_pairs(problem)
    said = {(a, b): r for a, r, b in facts}
    for a, r, b in facts:
        if r == "=":
            said[b, a] = r
    return said, goal


def brute_force_issues(problem, proof):
    """Faults of a proof: (place, kind, relation given), where place is a step, "ends" or "strength"."""
    said, goal = brute_force_facts(problem)
    words = re.fullmatch(r"Indeed, \$(.*)\$\.", proof)[1].split(" ")
    terms, relations = words[0::2], words[1::2]
    issues = []
    for left, relation, right in zip(terms, relations, terms[1:], strict=False):
        fact = said.get((left, right))
        if fact != relation:
            issues.append((f"{left} {relation} {right}", "slip" if fact else "gap", fact))
    if [terms[0], terms[-1]] != [goal[0], goal[2]]:
        issues.append(("ends", "gap", None))
    strengths = [SYMBOLS[r] for r in relations]
    chain = "strict" if "strict" in strengths else "weak" if "weak" in strengths else "equal"
    if SYMBOLS[goal[1]] not in (chain, "weak"):
        issues.append(("strength", "slip", None))
    return issues


def score_of(kinds):
    return 0.0 if "gap" in kinds or kinds.count("slip") > 1 else 0.5 if "slip" in kinds else 1.0


def brute_force_score(problem, proof):
    match = re.fullmatch(r"Indeed, \$(\w( \S+ \w)+)\$\.", proof)
    words = match[1].split(" ") if match else []
    if not match or not set(words[1::2]) <= SYMBOLS.keys() or len(set(words[::2])) < len(words[::2]):
        return 0.0
    return score_of([kind for _, kind, _ in brute_force_issues(problem, proof)])


def brute_force_grade(problem, proof, critique):
    """(quality, invented, missed) of a critique in the world's words."""
    issues = brute_force_issues(problem, proof)
    claims, kinds = [], []
    for line in critique.split("\n"):
        if found := re.fullmatch(r"- \$(.*)\$: (?:given as \$(.*)\$|not given), (.*)", line):
            kind = "slip" if "differently" in found[3] else "gap" if "not justified" in found[3] else "ok"
            if kind != "ok":
                claims.append((found[1], kind, found[2]))
                kinds.append(kind)
        elif "does not have the ends" in line:
            claims.append(("ends", "gap", None))
            kinds.append("gap")
        elif "too weak" in line:
            claims.append(("strength", "slip", None))
            kinds.append("slip")
    real = [c in issues for c in claims]
    follows = float(re.search(r"\\boxed\{(.*)\}", critique)[1]) == score_of(kinds)
    quality = 0.0 if claims and not any(real) else 1.0 if all(real) and follows else 0.5
    places = {place for place, _, _ in claims}
    return quality, real.count(False), sum(place not in places for place, _, _ in issues)


def test_the_grader_agrees_with_brute_force_on_weak_and_random_proofs():
    rng, scores = random.Random(0), []
    for problem, proof in some_proofs(600, seed=1):
        terms = [t for f in problem.facts for t in (f.left, f.right)]
        walk = [problem.goal.left]
        for _ in range(rng.randint(1, 4)):
            walk += [rng.choice(RELATIONS), rng.choice(terms)]
        for text in (proof, f"Indeed, ${' '.join(walk)}$."):
            scores.append(grade_proof(problem, text))
            assert scores[-1] == brute_force_score(problem.text, text), (problem.text, text)
    assert {0.0, 0.5, 1.0} <= set(scores)


def test_the_grader_agrees_with_brute_force_on_every_short_proof_of_one_problem():
    problem = parse_problem(
        "Suppose that sets satisfy $a \\subset b$, $b = c$ and $d \\subseteq b$. Show that $a \\subset c$."
    )
    best = 0.0
    for n in (1, 2, 3):
        for terms in itertools.product("abcd", repeat=n + 1):
            for relations in itertools.product(SETS.relations, repeat=n):
                words = [terms[0]] + [w for r, t in zip(relations, terms[1:], strict=True) for w in (r, t)]
                text = f"Indeed, ${' '.join(words)}$."
                assert grade_proof(problem, text) == brute_force_score(problem.text, text), text
                best = max(best, grade_proof(problem, text))
    assert best == 1.0


def test_a_critique_is_graded_as_by_brute_force():
    """Critiques with every habit, and critiques of another proof, whose findings are about its steps."""
    rng, seen = random.Random(6), set()
    for problem, proof in some_proofs(500, seed=6):
        steps = parse_proof(proof)
        for noise in (NOISE, MIXED):
            critique = write_critique(weak_critique(rng, problem, steps, noise))
            other = write_critique(weak_critique(rng, problem, weak_proof(rng, problem, MIXED), noise))
            for text in (critique, other):
                grade = grade_critique(problem, proof, text)
                assert (grade.quality, grade.invented, grade.missed) == brute_force_grade(
                    problem.text, proof, text
                ), (problem.text, proof, text)
                seen.add((grade.quality, grade.invented > 0, grade.missed > 0))
    assert len(seen) >= 8


def test_what_a_critique_misses_does_not_lower_its_quality():
    problem = parse_problem(EXAMPLE)
    blind = examine(problem, parse_proof(PROOF))
    slip = parse_proof("Indeed, $c < f < q$.")
    findings = tuple(f._replace(step=s) for f, s in zip(blind.findings, slip, strict=True))
    grade = grade_critique(problem, write_proof(slip), write_critique(Critique(findings, True, True, 1.0)))
    assert (grade.quality, grade.invented, grade.missed) == (1.0, 0, 1) and False in grade.marks


def test_the_meta_critique_gives_the_quality_that_the_grade_has():
    rng = random.Random(7)
    for problem, proof in some_proofs(400, seed=7):
        critique = weak_critique(rng, problem, parse_proof(proof), NOISE)
        exact = examine_critique(problem, parse_proof(proof), critique)
        assert exact.quality == grade_critique(problem, proof, write_critique(critique)).quality


def orders(terms):
    """Every way to put terms on levels: the numbers that they can stand for, up to a scale."""
    for levels in itertools.product(range(len(terms)), repeat=len(terms)):
        yield dict(zip(terms, levels, strict=True))


def holds(step, at):
    a, b = at[step.left], at[step.right]
    return {"strict": a < b, "weak": a <= b, "equal": a == b}[STRENGTH[step.relation]]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_the_facts_entail_the_goal_and_no_steps_worth_full_marks_are_false(family):
    """By all orders of a few terms: total orders are models of each family's axioms."""
    problems = [p for p in some_problems(600, seed=8, chain=(2, 3), facts=(2, 4)) if p.family == family]
    checked = 0
    for problem in problems:
        terms = sorted({t for f in problem.facts for t in (f.left, f.right)})
        if len(terms) > 5:
            continue
        checked += 1
        models = [at for at in orders(terms) if all(holds(f, at) for f in problem.facts)]
        assert models and all(holds(problem.goal, at) for at in models)
        assert all(holds(step, at) for step in problem.solution for at in models)
        backwards = Step(problem.goal.right, problem.goal.relation, problem.goal.left)
        if STRENGTH[problem.goal.relation] == "strict":
            assert not any(holds(backwards, at) for at in models)
    assert checked > 10


def test_every_problem_has_a_full_proof_and_round_trips_in_all_families():
    problems = some_problems(200, seed=2, chain=(4, 6), facts=(8, 13))
    for problem in problems:
        assert parse_problem(problem.text) == problem
        assert grade_proof(problem, write_proof(problem.solution)) == 1.0
        assert 4 <= len(problem.solution) <= 6
    assert all(sum(p.family == f for p in problems) > 30 for f in FAMILIES)


@pytest.mark.parametrize(
    "proof, score",
    [
        (PROOF, 1.0),
        ("Indeed, $c < f < q$.", 0.5),  # one slip
        ("Indeed, $c < f \\le q$.", 0.0),  # two slips
        ("Indeed, $c = f \\le q$.", 0.0),  # a slip, and then too weak for the goal
        ("Indeed, $c = f \\subset q$.", 0.5),  # another family's relation is a slip
        ("Indeed, $c < q$.", 0.0),  # a gap: restating the goal is worth nothing
        ("Indeed, $c = f$.", 0.0),  # astray
        ("Indeed, $c = f < q$", 0.0),  # no end
        ("Indeed, $c = f < q$. $c = f < q$.", 0.0),
        ("Indeed, $c  = f < q$.", 0.0),
        ("## Solution\nIndeed, $c = f < q$.", 0.0),  # the heading is not part of a stored proof
        ("", 0.0),
        (" \nIndeed, $c = f < q$.\n", 1.0),  # whitespace at the ends alone is forgiven
        ("Indeed, $c = f < q$.<end><verify>\\boxed{1}", 0.0),
        ("Indeed, $𝓒 = f < q$.", 0.0),
    ],
)
def test_rubric_on_good_bad_and_hostile_proofs(proof, score):
    assert grade_proof(parse_problem(EXAMPLE), proof) == score


GOOD = f"""\
{V_START}
- $c = f$: given as $=$, so this step is justified.
- $f < q$: given as $<$, so this step is justified.
The chain has the ends of the goal.
It is strong enough for the goal.
{V_END} \\boxed{{1}}"""
SLIP = ("- $c = f$: given as $=$, so", "- $c = f$: given as $<$, but this step states it differently.")


def changed(*pairs):
    text = GOOD
    for old, new in pairs:
        line = next(x for x in text.split("\n") if x.startswith(old))
        text = text.replace(line, new) if new else text.replace(line + "\n", "")
    return text


ONE, HALF, NONE = ("Based", f"{V_END} \\boxed{{1}}"), ("Based", f"{V_END} \\boxed{{0.5}}"), (
    "Based", f"{V_END} \\boxed{{0}}",
)  # fmt: skip
GAP = ("- $f < q$", "- $f < q$: not given, so this step is not justified.")
ASTRAY = ("The chain", "The chain does not have the ends of the goal.")


@pytest.mark.parametrize(
    "critique, quality, invented, wrong",
    [
        (GOOD, 1.0, 0, 0),
        (changed(HALF), 0.5, 0, 0),  # it claims no issue, and the score does not follow
        (changed(SLIP, HALF), 0.0, 1, 1),  # all that it claims is invented
        (changed(SLIP, ONE), 0.0, 1, 1),
        (changed(GAP, ASTRAY, NONE), 0.0, 2, 2),
        (changed(("- $c = f$", "")), 1.0, 0, 0),  # a step left out claims nothing
        (changed(("- $c = f$", "- $c = q$: not given, so this step is not justified."), NONE), 0.0, 1, 1),
        (changed(("- $c = f$", "The first step is fine.")), 0.5, 0, 1),  # nobody can read that finding
        (f"{V_START}\nAll is well.\n{V_END} $\\boxed{{1}}$", 0.5, 0, 1),  # a pretrained model's words
        (f"{V_START}\n{V_END} \\boxed{{1}}", 1.0, 0, 0),
        (f"<think>hm</think>{GOOD}", 0.5, 0, 1),  # the thought is on the first line
        ("no score", 0.0, 0, 0),
        ("", 0.0, 0, 0),
    ],
)
def test_quality_of_critiques_of_a_right_proof(critique, quality, invented, wrong):
    grade = grade_critique(parse_problem(EXAMPLE), PROOF, critique)
    assert (grade.quality, grade.invented, grade.marks.count(False)) == (quality, invented, wrong)


@pytest.mark.parametrize(
    "said, quality, invented, missed",
    [
        ("given as $=$, but this step states it differently.", 1.0, 0, 0),
        ("given as $\\le$, but this step states it differently.", 0.0, 1, 0),  # that is not what is given
        ("not given, so this step is not justified.", 0.0, 1, 0),
        ("given as $=$, so this step is justified.", 0.5, 0, 1),  # lenient; the score 0.5 does not follow
        ("given as $<$, so this step is justified.", 0.5, 0, 1),
    ],
)
def test_an_issue_is_real_only_where_its_line_is_true(said, quality, invented, missed):
    critique = changed(("- $c = f$", f"- $c < f$: {said}"), HALF)
    if "not justified" in said:
        critique = critique.replace("{0.5}", "{0}")
    grade = grade_critique(parse_problem(EXAMPLE), "Indeed, $c < f < q$.", critique)
    assert (grade.quality, grade.invented, grade.missed) == (quality, invented, missed)


def test_writers_and_parsers_are_inverse():
    rng = random.Random(3)
    for problem in some_problems(100, seed=3):
        steps = weak_proof(rng, problem, MIXED)
        critique = weak_critique(rng, problem, steps, NOISE)
        meta = weak_meta(rng, problem, steps, critique, NOISE)
        assert parse_proof(write_proof(steps)) == tuple(steps)
        assert parse_critique(write_critique(critique)) == critique
        assert parse_meta(write_meta(meta)) == meta
        assert read_score(write_critique(critique)) == critique.score
        assert write_meta(meta).startswith(MV_START) and read_score(write_meta(meta)) == meta.quality


def test_the_exact_critique_has_quality_one():
    for problem, proof in some_proofs(200, seed=4):
        exact = examine(problem, parse_proof(proof))
        grade = grade_critique(problem, proof, write_critique(exact))
        assert (grade.quality, grade.invented, grade.missed) == (1.0, 0, 0) and all(grade.marks)
        assert exact.score == rubric([f.verdict for f in exact.findings], exact.ends, exact.strong)


# --- hostile text ---------------------------------------------------------------------------------

pieces = st.sampled_from(
    [*PHRASES, *(f" {r} " for r in RELATIONS), *TERMS, "<end>", "\n", "\\boxed{2}", "💥"]
)
texts = st.one_of(st.lists(pieces, max_size=60).map("".join), st.text(max_size=200))


@settings(max_examples=300, deadline=None)
@given(texts)
def test_parsers_never_crash_and_accept_only_what_they_can_write_again(text):
    for parse, write in (
        (parse_proof, write_proof),
        (parse_critique, write_critique),
        (parse_meta, write_meta),
        (parse_problem, lambda problem: problem.text),
    ):
        parsed = parse(text)
        if parsed is not None:
            assert write(parsed) == text.strip()
    assert grade_proof(parse_problem(EXAMPLE), text) in (0.0, 0.5, 1.0)
    assert grade_critique(parse_problem(EXAMPLE), PROOF, text).quality in (0.0, 0.5, 1.0)


def test_a_word_changed_in_any_text_is_noticed():
    """No parser reads two texts as the same thing."""
    rng = random.Random(9)
    for problem, proof in some_proofs(40, seed=9):
        critique = weak_critique(rng, problem, parse_proof(proof), NOISE)
        meta = write_meta(weak_meta(rng, problem, parse_proof(proof), critique, NOISE))
        for parse, text in (
            (parse_problem, problem.text),
            (parse_proof, proof),
            (parse_critique, write_critique(critique)),
            (parse_meta, meta),
        ):
            words = text.split(" ")
            i = rng.randrange(len(words))
            other = " ".join([*words[:i], words[i] + "x", *words[i + 1 :]])
            assert parse(text) is not None and parse(other) is None


def test_an_equation_holds_both_ways_and_an_inequality_does_not():
    problem = Problem(REALS, (Step("a", "=", "b"), Step("b", "<", "c")), Step("a", "<", "c"))
    assert problem.says("b", "a") == "="
    assert problem.says("c", "b") is None


# --- sameness and difficulty ----------------------------------------------------------------------


def same_form_by_trying(a, b):
    """Whether some renaming of terms makes the facts and the goal of one those of the other."""
    strength = lambda p: ({(f.left, STRENGTH[f.relation], f.right) for f in p.facts}, p.goal)  # noqa: E731
    (facts, goal), (others, aim) = strength(a), strength(b)
    terms = sorted({t for left, _, right in facts for t in (left, right)})
    targets = sorted({t for left, _, right in others for t in (left, right)})
    if len(terms) != len(targets) or STRENGTH[goal.relation] != STRENGTH[aim.relation]:
        return False
    for image in itertools.permutations(targets):
        new = dict(zip(terms, image, strict=True))
        if (new[goal.left], new[goal.right]) == (aim.left, aim.right) and {
            (new[left], s, new[right]) for left, s, right in facts
        } == others:
            return True
    return False


def test_the_form_is_the_same_just_for_renamed_reordered_and_translated_problems():
    problems = some_problems(40, seed=10, chain=(2, 2), facts=(3, 3))
    pairs = list(itertools.combinations([p for p in problems if len(p.facts) <= 4], 2))
    found = [(a.form == b.form, same_form_by_trying(a, b)) for a, b in pairs]
    assert all(mine == true for mine, true in found)
    assert sum(true for _, true in found) > 3


def test_renaming_and_reordering_keep_the_form():
    rng = random.Random(11)
    for problem in some_problems(50, seed=11, chain=(3, 5), facts=(5, 10)):
        names = dict(zip(TERMS, rng.sample(TERMS, len(TERMS)), strict=True))
        steps = [Step(names[f.left], f.relation, names[f.right]) for f in problem.facts]
        rng.shuffle(steps)
        goal = Step(names[problem.goal.left], problem.goal.relation, names[problem.goal.right])
        assert Problem(problem.family, tuple(steps), goal).form == problem.form
        turned = Step(problem.goal.right, problem.goal.relation, problem.goal.left)
        assert Problem(problem.family, problem.facts, turned).form != problem.form


def test_facts_that_go_round_have_no_form():
    round_ = (Step("a", "<", "b"), Step("b", "<", "c"), Step("a", "<", "c"), Step("x", "<", "y"))
    with pytest.raises(ValueError, match="forest"):
        _ = Problem(REALS, round_, Step("a", "<", "c")).form


def test_impossible_difficulty_is_refused():
    with pytest.raises(ValueError, match="terms"):
        make_problem(random.Random(0), Difficulty((2, 3), (20, 30)))


@pytest.mark.parametrize("odd", ["\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\u2003", "\xa0"])
def test_only_plain_blanks_may_stand_around_a_text(odd):
    """A tokenizer tells these characters from spaces; so does the expert."""
    problem = parse_problem("Suppose that real numbers satisfy $c < t$ and $t < q$. Show that $c < q$.")
    proof = "Indeed, $c < t < q$."
    assert grade_proof(problem, f" {proof}\n") == 1.0
    for text in (odd + proof, proof + odd, proof.replace(" < t", f"{odd}< t")):
        assert grade_proof(problem, text) == 0.0
    assert parse_problem(problem.text + odd) is None
