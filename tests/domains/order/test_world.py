"""The world's expert against an independent brute-force check, and its parsers on bad and hostile text."""

import itertools
import random

import pytest
from conftest import NOISE, some_problems, some_proofs
from hypothesis import given, settings
from hypothesis import strategies as st

from nanov2.domains.order.demos import make_demonstration, weak_critique, weak_meta, weak_proof
from nanov2.domains.order.world import (
    WORDS,
    Difficulty,
    Problem,
    Step,
    examine,
    grade_critique,
    grade_proof,
    make_problem,
    parse_critique,
    parse_meta,
    parse_problem,
    parse_proof,
    write_critique,
    write_meta,
    write_proof,
)

EXAMPLE = "given c < t ; c = f ; e = c ; j <= f ; f < q ; show c < q"


def brute_force_score(problem_text: str, proof_text: str) -> float:
    """The rubric once more, written against the text alone, with nothing from nanov2.world."""
    facts_part, goal = problem_text.removeprefix("given ").split(" show ")
    goal = goal.split()
    facts = [f.split() for f in facts_part.split(";") if f.strip()]
    words = proof_text.split()
    if len(words) < 4 or len(words) % 2 != 0 or words[-1] != "qed":
        return 0.0
    chain = words[:-1]
    terms, relations = chain[0::2], chain[1::2]
    if any(t not in "abcdefghijklmnopqrstuvwxyz" or len(t) != 1 for t in terms):
        return 0.0
    if any(r not in ("<", "<=", "=") for r in relations) or len(set(terms)) != len(terms):
        return 0.0
    slips = 0
    for left, relation, right in zip(terms, relations, terms[1:], strict=False):
        given_relations = [r for a, r, b in facts if (a, b) == (left, right)]
        given_relations += [r for a, r, b in facts if r == "=" and (b, a) == (left, right)]
        if not given_relations:
            return 0.0
        slips += relation != given_relations[-1]
    if terms[0] != goal[0] or terms[-1] != goal[2]:
        return 0.0
    strongest = "<" if "<" in relations else "<=" if "<=" in relations else "="
    slips += not (strongest == goal[1] or goal[1] == "<=")
    return {0: 1.0, 1: 0.5}.get(slips, 0.0)


def test_the_grader_agrees_with_brute_force_on_weak_and_random_proofs():
    rng, scores = random.Random(0), []
    for problem, proof in some_proofs(600, seed=1):
        terms = [t for f in problem.facts for t in (f.left, f.right)]
        walk = [problem.goal.left]
        for _ in range(rng.randint(1, 4)):
            walk += [rng.choice(("<", "<=", "=")), rng.choice(terms)]
        for text in (proof, " ".join([*walk, "qed"])):
            scores.append(grade_proof(problem, text))
            assert scores[-1] == brute_force_score(problem.text, text), (problem.text, text)
    assert {0.0, 0.5, 1.0} <= set(scores)


def test_the_grader_agrees_with_brute_force_on_every_short_proof_of_one_problem():
    problem = parse_problem("given a < b ; b = c ; d <= b ; show a < c")
    best = 0.0
    for n in (1, 2, 3):
        for terms in itertools.product("abcd", repeat=n + 1):
            for relations in itertools.product(("<", "<=", "="), repeat=n):
                words = [terms[0]] + [w for r, t in zip(relations, terms[1:], strict=True) for w in (r, t)]
                text = " ".join([*words, "qed"])
                assert grade_proof(problem, text) == brute_force_score(problem.text, text), text
                best = max(best, grade_proof(problem, text))
    assert best == 1.0


def test_every_problem_has_a_full_proof_and_round_trips():
    for problem in some_problems(200, seed=2, chain=(4, 6), facts=(8, 13)):
        assert parse_problem(problem.text) == problem
        assert grade_proof(problem, write_proof(problem.solution)) == 1.0
        assert 4 <= len(problem.solution) <= 6


@pytest.mark.parametrize(
    "proof, score",
    [
        ("c = f < q qed", 1.0),
        ("c < f < q qed", 0.5),  # one slip
        ("c < f <= q qed", 0.0),  # two slips
        ("c = f <= q qed", 0.0),  # a slip, and then too weak for the goal
        ("c < q qed", 0.0),  # a gap: restating the goal is worth nothing
        ("c = f qed", 0.0),  # astray
        ("c = f < q", 0.0),  # no qed
        ("c = f < q qed qed", 0.0),
        ("", 0.0),
        ("c = f < q qed <end> <verify> \\boxed{1}", 0.0),
        ("𝓒 = f < q qed", 0.0),
    ],
)
def test_rubric_on_good_bad_and_hostile_proofs(proof, score):
    assert grade_proof(parse_problem(EXAMPLE), proof) == score


GOOD = "c = f = ok f < q < ok ends strict \\boxed{1}"


@pytest.mark.parametrize(
    "critique, quality, invented",
    [
        (GOOD, 1.0, 0),
        ("c = f = ok f < q < ok ends strict \\boxed{0.5}", 0.0, 0),  # the score does not follow
        ("c = f < slip f < q < ok ends strict \\boxed{0.5}", 0.0, 1),  # invented, and the score wrong
        ("c = f < slip f < q < ok ends strict \\boxed{1}", 0.5, 1),  # invented, the score right
        ("c = f = ok f < q < ok astray weak \\boxed{0}", 0.0, 2),
        ("c = f = ok ends strict \\boxed{1}", 0.5, 0),  # a step left out counts as a wrong finding
        (GOOD + " \\boxed{1}", 0.0, 0),  # not of the form
        ("ends strict \\boxed{1}", 0.0, 0),
        ("", 0.0, 0),
    ],
)
def test_critique_quality(critique, quality, invented):
    grade = grade_critique(parse_problem(EXAMPLE), "c = f < q qed", critique)
    assert (grade.quality, grade.invented) == (quality, invented)


def test_writers_and_parsers_are_inverse():
    rng = random.Random(3)
    for problem in some_problems(100, seed=3):
        steps = weak_proof(rng, problem, 0.4)
        critique = weak_critique(rng, problem, steps, NOISE)
        meta = weak_meta(rng, problem, steps, critique, NOISE)
        assert parse_proof(write_proof(steps)) == tuple(steps)
        assert parse_critique(write_critique(critique)) == critique
        assert parse_meta(write_meta(meta)) == meta


def test_the_exact_critique_has_quality_one():
    for problem, proof in some_proofs(200, seed=4):
        critique = write_critique(examine(problem, parse_proof(proof)))
        assert grade_critique(problem, proof, critique).quality == 1.0


def test_demonstrations_are_imperfect_but_not_hopeless():
    rng = random.Random(5)
    demos = [make_demonstration(rng, p, NOISE) for p in some_problems(400, seed=5)]
    scores = [grade_proof(parse_problem(d.problem), d.turns[0][1]) for d in demos]
    assert 0.3 < sum(s == 1 for s in scores) / len(scores) < 0.55
    qualities = [
        grade_critique(parse_problem(d.problem), d.turns[0][1], d.turns[1][1]).quality for d in demos
    ]
    assert 0.4 < sum(q == 1 for q in qualities) / len(qualities) < 0.85


words = st.lists(st.sampled_from([*WORDS, "<end>", "", "\n", "\\boxed{2}", "💥"]), max_size=60).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(st.one_of(words, st.text(max_size=200)))
def test_parsers_never_crash_and_accept_only_what_they_can_write_again(text):
    for parse, write in (
        (parse_proof, write_proof),
        (parse_critique, write_critique),
        (parse_meta, write_meta),
    ):
        parsed = parse(text)
        if parsed is not None:
            assert write(parsed).split() == text.split()
    problem = parse_problem(text)
    if problem is not None:
        assert problem.text.split() == text.split()
    assert grade_proof(parse_problem(EXAMPLE), text) in (0.0, 0.5, 1.0)


def test_an_equation_holds_both_ways_and_an_inequality_does_not():
    problem = Problem((Step("a", "=", "b"), Step("b", "<", "c")), Step("a", "<", "c"))
    assert problem.says("b", "a") == "="
    assert problem.says("c", "b") == "none"


def test_impossible_difficulty_is_refused():
    with pytest.raises(ValueError, match="terms"):
        make_problem(random.Random(0), Difficulty((2, 3), (20, 30)))
