"""The demonstrations: each habit at its stated rate, and the right way among them."""

import dataclasses
import random

import pytest
from conftest import MIXED, NOISE, some_problems

from nanov2.domains.language import HEADING
from nanov2.domains.order.demos import (
    LONG,
    Noise,
    make_demonstration,
    make_practice,
    scrambled_proof,
    weak_critique,
    weak_meta,
    weak_proof,
    weak_revision,
)
from nanov2.domains.order.world import (
    FAMILIES,
    STRENGTH,
    examine,
    examine_critique,
    grade_critique,
    grade_proof,
    parse_problem,
    write_critique,
    write_proof,
)

PROBLEMS = some_problems(1500, seed=30)
SOUND = Noise(**{f.name: 0.0 for f in dataclasses.fields(Noise)})


def share(flags):
    flags = list(flags)
    assert len(flags) > 150
    return sum(flags) / len(flags)


def proofs(noise, seed=0):
    rng = random.Random(seed)
    return [(p, weak_proof(rng, p, noise)) for p in PROBLEMS]


def test_without_noise_all_is_right():
    rng = random.Random(1)
    for problem in PROBLEMS[:100]:
        steps = weak_proof(rng, problem, SOUND)
        assert grade_proof(problem, write_proof(steps)) == 1.0
        wrong = weak_proof(rng, problem, MIXED)
        critique = weak_critique(rng, problem, wrong, SOUND)
        assert critique == examine(problem, wrong)
        weak = weak_critique(rng, problem, wrong, NOISE)
        assert weak_meta(rng, problem, wrong, weak, SOUND) == examine_critique(problem, wrong, weak)


def test_first_proofs_have_their_faults_at_the_stated_rates():
    def rate(flag, **habit):
        return share(flag(p, steps) for p, steps in proofs(dataclasses.replace(SOUND, **habit)))

    def jumps(p, steps):
        return steps[-1].right == p.goal.right and p.says(steps[-1].left, steps[-1].right) is None

    assert rate(jumps, jump=0.6) == pytest.approx(0.6, abs=0.05)
    # a random walk among the facts now and then is the right chain
    assert rate(lambda p, steps: steps != p.solution, stray=0.6) == pytest.approx(0.56, abs=0.06)
    overstated = [
        any(STRENGTH[s.relation] == "weak" for s in p.solution)
        and not any(STRENGTH[s.relation] == "weak" for s in steps)
        for p, steps in proofs(dataclasses.replace(SOUND, overstate=0.6))
        if any(STRENGTH[s.relation] == "weak" for s in p.solution)
    ]
    assert share(overstated) == pytest.approx(0.6, abs=0.05)
    stops = rate(lambda p, steps: steps == p.solution[:-1] and bool(steps), stop=0.6)
    assert stops == pytest.approx(0.6, abs=0.05)  # all of its steps are given: its end alone is wrong
    scores = [grade_proof(p, write_proof(steps)) for p, steps in proofs(NOISE)]
    assert 0.1 < share(s == 1 for s in scores) < 0.35


def test_every_proof_has_each_term_once_and_every_family_its_share():
    rng = random.Random(2)
    for noise in (NOISE, MIXED):
        for problem, steps in proofs(noise, seed=2):
            terms = [steps[0].left, *(s.right for s in steps)]
            assert len(set(terms)) == len(terms)
            assert all(s.relation in problem.family.relations for s in steps)
    shown = [make_demonstration(rng, p, NOISE) for p in PROBLEMS]
    for family in FAMILIES:
        assert share(parse_problem(d.problem).family == family for d in shown) == pytest.approx(
            0.25, abs=0.05
        )


def graded(noise, proof_noise=MIXED):
    rng = random.Random(3)
    for problem, steps in proofs(proof_noise, seed=3):
        critique = weak_critique(rng, problem, steps, noise)
        truth = examine(problem, steps)
        yield truth, critique, grade_critique(problem, write_proof(steps), write_critique(critique))


def test_a_lenient_critic_passes_over_slips_and_nothing_else():
    noise = dataclasses.replace(SOUND, lenient=0.6)
    slips = [g.missed > 0 for t, _, g in graded(noise) if "slip" in [f.verdict for f in t.findings]]
    assert share(slips) == pytest.approx(0.6, abs=0.1)
    others = [g.missed > 0 for t, _, g in graded(noise) if "slip" not in [f.verdict for f in t.findings]]
    assert share(others) == 0
    looked_up = [
        c.findings[i].relation == f.relation for t, c, _ in graded(noise) for i, f in enumerate(t.findings)
    ]
    assert share(looked_up) == 1  # what the facts say is looked up rightly; the verdict passes over it


def test_after_a_gap_a_critic_goes_on_finding_fault_which_the_score_does_not_show():
    noise = dataclasses.replace(SOUND, pile_on=0.6)
    short = [(t, c, g) for t, c, g in graded(noise) if len(t.findings) < LONG]
    gaps = [
        (c.score == t.score, g.invented > 0) for t, c, g in short if "gap" in str(t.findings) and t.strong
    ]
    assert share(right for right, _ in gaps) == 1
    assert share(invented for _, invented in gaps) == pytest.approx(0.6, abs=0.1)
    others = [g.invented > 0 for t, _, g in graded(noise) if "gap" not in str(t.findings)]
    assert share(others) == 0


def test_of_a_long_proof_a_critic_excuses_the_gap_and_blames_the_ends_which_the_score_does_not_show():
    jumps, noise = dataclasses.replace(SOUND, jump=1.0), dataclasses.replace(SOUND, blame_ends=0.6)
    critiques = [(t, c.score == t.score, g) for t, c, g in graded(noise, jumps)]
    assert share(right for _, right, _ in critiques) == 1
    long = [g for t, _, g in critiques if len(t.findings) >= LONG]
    assert share(g.quality == 0 and g.missed > 0 for g in long) == pytest.approx(0.6, abs=0.1)
    assert all(g.quality == 1 for t, _, g in critiques if len(t.findings) < LONG)


def test_practice_shows_steps_of_all_kinds_alike_and_no_proof_in_it_is_learnt():
    rng, verdicts, alike = random.Random(8), [], []
    for problem in PROBLEMS:
        for step, _, verdict in examine(problem, scrambled_proof(rng, problem)).findings:
            verdicts.append(verdict)
            if verdict == "gap":
                alike.append(problem.in_place(step.left, step.right))
    for kind, expected in (("ok", 0.25), ("slip", 0.25), ("gap", 0.5)):
        assert share(v == kind for v in verdicts) == pytest.approx(expected, abs=0.08), kind
    assert share(alike) > 0.35  # no term of these tells that they are not given
    longer = share(len(scrambled_proof(rng, p)) > len(p.solution) for p in PROBLEMS)
    assert longer > 0.3  # a critic lists the steps of what generators write beyond a right proof, too
    shown = [make_practice(rng, p, NOISE) for p in PROBLEMS]
    assert all(d.learnt in ((False, True, True), (False, False, True)) for d in shown)


def test_a_meta_critic_agrees_with_what_it_reads():
    rng, noise = random.Random(4), dataclasses.replace(SOUND, agree=0.6)
    said = []
    for problem, steps in proofs(MIXED, seed=4):
        critique = weak_critique(rng, problem, steps, NOISE)
        exact, meta = (
            examine_critique(problem, steps, critique),
            weak_meta(rng, problem, steps, critique, noise),
        )
        if exact.quality < 1:
            said.append(meta.quality == 1)
        else:
            assert meta.quality == 1
    assert share(said) == pytest.approx(0.6, abs=0.1)


def test_a_reviser_hands_the_same_proof_in_again_or_mends_it():
    rng = random.Random(5)
    pairs = [(p, steps, weak_revision(rng, p, steps, NOISE)) for p, steps in proofs(NOISE, 5)]
    pairs = [(p, a, b) for p, a, b in pairs if grade_proof(p, write_proof(a)) < 1]
    same = share(a == b for _, a, b in pairs)  # another weak proof may be the same once more
    assert NOISE.revision_same - 0.06 < same < 1 - NOISE.revision_right + 0.06
    right = share(grade_proof(p, write_proof(b)) == 1 for p, _, b in pairs)
    assert right == pytest.approx(NOISE.revision_right, abs=0.1)


def test_the_prover_learns_nothing_of_the_proofs_that_critics_read():
    rng = random.Random(7)
    shown = [make_demonstration(rng, p, NOISE) for p in PROBLEMS]
    assert all(d.learnt[1:] == (True,) * (len(d.turns) - 1) for d in shown)
    assert share(not d.learnt[0] for d in shown) == pytest.approx(NOISE.others, abs=0.05)


def test_a_demonstration_is_answers_of_the_papers_form_in_turn():
    rng = random.Random(6)
    tasks = set()
    for problem in PROBLEMS[:200]:
        shown = make_demonstration(rng, problem, NOISE)
        tasks.add(tuple(task for task, _ in shown.turns))
        assert all(text.startswith(HEADING) for task, text in shown.turns if task == "prove")
    assert tasks == {("prove", "verify", "meta"), ("prove", "verify", "prove", "verify")}
