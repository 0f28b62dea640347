"""The integers world: its words, its expert's judgement of critiques, its demonstrations, its domain."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts import ROOT

from nanov2.distributed.ranks import derive_rng
from nanov2.domains.domain import open_domain
from nanov2.domains.integers import polynomials
from nanov2.domains.integers.demos import Habits, make_demonstration, weak_meta, weak_proof
from nanov2.domains.integers.tokenizer import integers_tokenizer
from nanov2.domains.integers.world import (
    Condition,
    Difficulty,
    examine,
    examine_critique,
    grade_critique,
    grade_proof,
    make_problem,
    parse_critique,
    parse_problem,
    parse_proof,
    shows,
    solve,
    write_critique,
    write_meta,
    write_proof,
)
from nanov2.domains.language import HEADING, Language, read_score
from nanov2.errors import InputError
from nanov2.hub.author import Answer
from nanov2.method import trust
from nanov2.method.judges import Judge
from nanov2.records import CritiqueRecord, ProofRecord
from nanov2.run.config import load_config
from nanov2.run.costs import HARDWARE
from nanov2.run.plan import make_plan

PROBLEM = parse_problem("Let $a$ be odd and let $b$ be even. Show that $3a + b$ is odd.")
RIGHT = (
    "Write $a = 2k + 1$ and $b = 2m$. Then $3a + b = 3(2k + 1) + 2m = 6k + 2m + 3 = 2(3k + m + 1) + 1$. "
    "So $3a + b$ is odd."
)
HARD = Difficulty((2, 3, 4), (1, 3), 2, 2, 4)
LEMMAS = Difficulty((2, 3), (1, 2), 1, 2, 3, lemma=1.0)
PART = parse_problem("Let $a$ be odd, let $b$ be even and let $u = 3a + b$. Show that $u^2 + b$ is odd.")
SHOWS = "6k + 2m + 3 = 2(3k + m + 1) + 1"
BY_LEMMA = (
    f"Write $a = 2k + 1$ and $b = 2m$. Then $u = 3a + b = 3(2k + 1) + 2m = {SHOWS}$. So $u$ is odd. "
    "Write $u = 2n + 1$. Then $u^2 + b = (2n + 1)^2 + 2m = 4n^2 + 4n + 2m + 1 = 2(2n^2 + 2n + m) + 1$. "
    "So $u^2 + b$ is odd."
)
AT_ONCE = (
    "Write $a = 2k + 1$ and $b = 2m$. Then $u^2 + b = (3a + b)^2 + b = (6k + 2m + 3)^2 + 2m = "
    "2(18k^2 + 12km + 2m^2 + 18k + 7m + 4) + 1$. So $u^2 + b$ is odd."
)


@pytest.mark.parametrize(
    "change, score",
    [
        (("", ""), 1.0),
        ((" = 3(2k + 1) + 2m", ""), 1.0),  # a step fewer
        ((" = 2(3k + m + 1) + 1", ""), 0.5),  # the remainder is not shown
        (("2(3k + m + 1) + 1", "2(3k + m) + 3"), 0.5),  # nor reduced
        (("6k + 2m + 3", "6k + 4m + 3"), 0.0),  # two slips: there and back
        (("6k + 2m + 3 = 2(3k + m + 1) + 1", "8k + 2m + 3 = 2(4k + m + 1) + 1"), 0.5),  # one, carried on
        (("m", "k"), 0.0),  # one letter for two integers: and wrong sums
        (("b = 2m", "b = 2m + 1"), 0.0),
        (("a = 2k + 1", "a = 3"), 0.0),
        ((" and $b = 2m$", "$"), 0.0),
        (("is odd", "is even"), 0.0),
        (("So $3a + b$", "So $a$"), 0.0),
        (("Write", "Take"), 0.0),
    ],
)
def test_the_rubric(change, score):
    assert grade_proof(PROBLEM, RIGHT.replace(*change) if change[0] else RIGHT) == score


@pytest.mark.parametrize(
    "old, new, score, faults",
    [
        ("", "", 1.0, []),
        (f"{SHOWS}$. So", "6k + 2m + 3$. So", 0.5, ["lemma"]),  # the lemma is not shown yet
        (SHOWS, "8k + 2m + 3 = 2(4k + m + 1) + 1", 0.5, ["slip"]),  # nor quite worked out
        ("So $u$ is odd. Write $u = 2n + 1$", "So $u$ is even. Write $u = 2n$", 0.0, ["lemma", "slip"]),
        ("Write $u = 2n + 1$", "Write $u = 2n$", 0.0, ["other", "slip"]),
        (" and $b = 2m$. Then $u = 3a", ", $b = 2m$ and $u = 2n + 1$. Then $u = 3a", 0.0, None),
        (BY_LEMMA[: BY_LEMMA.index(" Write $u")], "Write $a = 2k + 1$ and $b = 2m$.", 0.0, None),
        (f"= 3(2k + 1) + 2m = {SHOWS}", "= 2n + 1", 0.0, ["complete", "slip"]),  # from itself
        ("2n + 1)^2", "3a + b)^2", 1.0, []),  # what the letter stands for
        ("So $u^2 + b$ is odd", "So $u$ is odd", 0.0, ["asked"]),
    ],
)
def test_the_rubric_of_lemmas(old, new, score, faults):
    text = BY_LEMMA.replace(old, new) if old else BY_LEMMA
    assert grade_proof(PART, text) == score
    if faults is not None:
        truth = examine(PART, parse_proof(text))
        assert sorted({f.verdict for f in truth.claims} | {n for n, _ in truth.whole.claims}) == faults


def test_a_lemma_may_be_left_out_but_not_used_without_being_shown():
    assert grade_proof(PART, AT_ONCE) == 1
    unshown = "Write $a = 2k + 1$, $b = 2m$ and $u = 2n + 1$. " + BY_LEMMA[BY_LEMMA.index("Then $u^2") :]
    truth = examine(PART, parse_proof(unshown))
    assert truth.score == 0 and [f.verdict for f in truth.claims] == ["unshown"]
    assert "- $u = 2n + 1$: not shown, so this may not be used." in write_critique(truth)
    assert "The lemma" not in write_critique(truth) + write_critique(examine(PART, parse_proof(AT_ONCE)))
    assert grade_proof(PROBLEM, BY_LEMMA.replace("u^2 + b", "3a + b")) == 0  # that has no such part


def test_lemmas_are_drawn_where_settings_ask_for_them():
    flags = ["--integers.hard_lemma=1"]
    domain = open_domain(load_config(ROOT / "configs" / "integers-smoke.toml", flags))
    sets = {name: [parse_problem(r.problem) for r in rs] for name, rs in domain.problems().items()}
    assert all(p.lemma for p in sets["train_hard"]) and not any(p.lemma for p in sets["train"])
    assert all("a lemma" in p.kind for p in sets["held_out_hard"])
    assert domain.own_tokenizer().vocab_size > integers_tokenizer().vocab_size
    wrong = BY_LEMMA.replace("So $u$ is odd. Write $u = 2n + 1$", "So $u$ is even. Write $u = 2n$")
    view = domain.view(ProofRecord(PART.text, wrong))
    assert "a lemma that is wrong" in view.faults and "$u = 3a + b$" in view.facts
    assert (
        "used and not shown" in view.rubric
        and "used and not shown" not in domain.view(ProofRecord(PROBLEM.text, RIGHT)).rubric
    )


def test_one_letter_for_two_integers_proves_a_special_case_alone():
    special = "Write $a = 2k + 1$ and $b = 2k$. Then $3a + b = 8k + 3 = 2(4k + 1) + 1$. So $3a + b$ is odd."
    truth = examine(PROBLEM, parse_proof(special))
    assert truth.score == 0 and [f.verdict for f in truth.claims] == ["shared"]


def test_what_shows_a_remainder():
    odd, even = Condition(2, 1), Condition(2, 0)
    assert all(shows(e, odd) for e in ("2(3k + m + 1) + 1", "2k + 1", "2(k) + 1"))
    assert all(shows(e, even) for e in ("2(k)", "2k^2", "2m"))
    assert not any(shows(e, odd) for e in ("6k + 1", "2(k) + 3", "2k", "2k + 2m + 1", "2(k + 1)(m) + 1", "1"))


@given(st.text(alphabet=st.sampled_from("Write $a=2k+1().^Thenso is d\n"), max_size=80))
def test_parsers_take_any_text(text):
    assert parse_proof(text) is None or write_proof(parse_proof(text)) == text.strip()
    assert parse_problem(text) is None and parse_critique(text) is None
    polynomials.parse(text)


@pytest.mark.parametrize("text", ["(" * 90 + "k" + ")" * 90, "(k + m + n + p)^2" * 11, "9" * 200, "k" * 190])
def test_hostile_expressions_are_refused(text):
    assert polynomials.parse(text) is None


def proofs(n, habits=Habits(early=0.2, same_letter=0.2, stray=0.6)):  # noqa: B008
    for i in range(n):
        rng = derive_rng("integers", i)
        problem = make_problem(rng, (Difficulty(), HARD, LEMMAS)[i % 3])
        yield rng, problem, weak_proof(rng, problem, habits)


def test_texts_come_back_from_their_tokens_and_parse():
    with_lemmas, without = integers_tokenizer(True), integers_tokenizer()
    for rng, problem, _ in proofs(150):
        tokenizer = with_lemmas if problem.lemma else without
        bytes_from = tokenizer.vocab_size - 256
        shown = make_demonstration(rng, problem, Habits())
        assert parse_problem(shown.problem) == problem
        for task, text in (("", shown.problem), *shown.turns):
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text and (max(ids) < bytes_from or "1" in text), text
            if task == "verify":
                assert parse_critique(text)
            elif task == "prove":
                assert parse_proof(text.removeprefix(HEADING))


def test_the_exact_critique_is_right_in_every_line_and_its_meta_critique_agrees():
    for _, problem, proof in proofs(200):
        text, exact = write_proof(proof), examine(problem, proof)
        grade = grade_critique(problem, text, write_critique(exact))
        assert grade.quality == 1 and all(grade.marks) and not grade.invented and not grade.missed
        meta = examine_critique(problem, proof, exact)
        assert meta.quality == 1 and read_score(write_meta(meta)) == 1


def test_a_critiques_grade_is_what_its_exact_meta_critique_says():
    qualities = Counter()
    for rng, problem, _ in proofs(400):
        (_, answer), (_, text), *_ = make_demonstration(rng, problem, Habits()).turns
        critique, shown = parse_critique(text), answer.removeprefix(HEADING)
        parsed = parse_proof(shown)
        grade = grade_critique(problem, shown, write_critique(critique))
        assert examine_critique(problem, parsed, critique).quality == grade.quality
        careful = weak_meta(rng, problem, parsed, critique, Habits(agree=0, whole=0))
        assert read_score(write_meta(careful)) == grade.quality
        qualities[grade.quality] += 1
    assert set(qualities) == {0, 0.5, 1}


def test_invented_and_missed_issues_are_counted():
    proof = RIGHT.replace("b = 2m", "b = 2m + 1")
    found = parse_critique(write_critique(examine(PROBLEM, parse_proof(proof))))
    lenient = write_critique(examine(PROBLEM, parse_proof(RIGHT)))
    assert grade_critique(PROBLEM, proof, lenient).missed == len(found.claims) + sum(
        v != w for v, w in zip(found.whole, (True, "shown", True))
    )
    invented = lenient.replace("is justified.\n- $2(", "is not justified.\n- $2(")
    grade = grade_critique(PROBLEM, RIGHT, invented)
    assert (grade.quality, grade.invented, grade.missed) == (0.0, 1, 0)


def test_habits_are_wrong_most_of_the_time_and_the_right_way_is_among_the_samples():
    scores, own = Counter(), 0
    for rng, problem, _ in proofs(600):
        if len(problem.used) > 1:
            scores[grade_proof(problem, write_proof(weak_proof(rng, problem, Habits())))] += 1
            own += 1
    assert 0.08 < scores[1.0] / own < 0.35 and scores[0.0] / own > 0.5


@pytest.fixture(scope="module")
def domain():
    return open_domain(load_config(ROOT / "configs" / "integers-smoke.toml"))


def test_held_out_problems_are_new_up_to_names_and_order(domain):
    sets = {name: [parse_problem(r.problem) for r in rs] for name, rs in domain.problems().items()}
    measured = {p.form for name, ps in sets.items() if not name.startswith("train") for p in ps}
    trained = [p for name, ps in sets.items() if name.startswith("train") for p in ps]
    shown = [parse_problem(domain.demonstration(derive_rng(i), 1.0).problem) for i in range(100)]
    new = [parse_problem(r.problem) for r in domain.new_problems(1, 20)]
    assert not measured & {p.form for p in [*trained, *shown, *new]}
    texts = [p.text for ps in [*sets.values(), new] for p in ps]
    assert len(texts) == len(set(texts))
    renamed = parse_problem("Let $x$ be even and let $z$ be odd. Show that $x + 3z$ is odd.")
    assert renamed.form == PROBLEM.form


def test_pages_see_steps_findings_and_faults(domain):
    proof = RIGHT.replace("b = 2m", "b = 2k")
    critique = write_critique(examine(PROBLEM, parse_proof(proof)))
    view = domain.view(CritiqueRecord(PROBLEM.text, proof, critique))
    assert len(view.steps) == 6 and [at for at, *_ in view.findings] == [0, 1, 2, 3, 4, 5, None, None, None]
    assert view.findings[1][2] and not view.findings[0][2]
    assert "one letter for two integers" in domain.view(ProofRecord(PROBLEM.text, proof)).faults
    assert view.kind == ("modulo 2", "2 variables") and view.errors == ()
    lenient = critique.replace("but this letter stands for another number already", "so this is right")
    passed = domain.view(CritiqueRecord(PROBLEM.text, proof, lenient)).errors
    assert "passes over one letter for two integers" in passed


def test_a_right_proof_exists_for_every_problem():
    for _, problem, _ in proofs(200):
        assert grade_proof(problem, write_proof(solve(problem))) == 1


@pytest.mark.parametrize(
    "override, told",
    [
        ("--integers.hard_variable=[1,2]", "did you mean integers.hard_variables?"),
        ("--integers_habits.lenience=0.5", "did you mean integers_habits.lenient?"),
        ("--integers_habits.early=1.5", "integers_habits.early must be from 0 to 1"),
        ("--integers.labelled_moduli=[3,2]", "integers: labelled_moduli must be [from, to]"),
        ("--integers.hard_variables=[3,6]", "6 variables and 2 unused ones are more than the 6 names"),
        ("--integers.lap_variables=2", "5 variables and 2 unused ones are more than the 6 names"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(override, told):
    with pytest.raises(InputError, match=re.escape(told)):
        load_config(None, [override, "--laps=2"])


def test_settings_say_how_hard_problems_are_and_habits_how_often():
    flags = ["--laps=3", "--integers.hard_degree=2", "--integers.lap_variables=1", "--integers.hard_unused=1"]
    flags += ["--integers.first_moduli=[3,3]", "--integers_habits.early=1", "--integers_habits.stray=0"]
    flags += ["--integers_habits.same_letter=0", "--integers_habits.others=0"]
    domain = open_domain(load_config(ROOT / "configs" / "integers-smoke.toml", flags))
    sets = {name: [parse_problem(r.problem) for r in rs] for name, rs in domain.problems().items()}
    used = {name: {len(p.used) for p in ps} for name, ps in sets.items()}
    assert used["train"] == {1, 2} and max(used["train_hard"]) == 3 and max(used["train_hard2"]) == 4
    assert max(used["train_hard3"]) == max(used["held_out_hardest"]) == 5
    assert any("(" in write_proof(solve(p)) and "^2" in write_proof(solve(p)) for p in sets["train_hard"])
    assert max(len(parse_problem(r.problem).used) for r in domain.new_problems(2, 20)) == 4
    shown = [domain.demonstration(derive_rng(i), 0.0) for i in range(20)]
    assert {parse_problem(d.problem).modulus for d in shown} == {3}
    scores = {grade_proof(parse_problem(d.problem), d.turns[0][1].removeprefix(HEADING)) for d in shown}
    assert 0.5 in scores and 0.0 not in scores  # each stops early, which of a short one is early enough


def test_the_domain_runs_by_its_name_alone():
    for name in ("integers.toml", "integers-smoke.toml", "integers-smollm2-cpu.toml"):
        config = load_config(ROOT / "configs" / name)
        assert (
            config.domain == "integers"
            and "selfverify" in make_plan(config, 2, 2, HARDWARE["cpu-core"]).phases
        )


def test_judges_are_measured_on_it(domain):
    def exact(question):
        problem, proof = parse_problem(question["problem"]), parse_proof(question["proof"])
        return write_critique(examine(problem, proof))

    class Expert:
        def answers(self, questions, n=1, first=0):
            return [[Answer(exact(q[0]))] * n for q in questions]

    proofs, _ = trust.draw_cases(domain, 40, 0)
    language = Language()
    judge = Judge(Expert(), language, language.claimed_score)
    found = trust.trust(trust.ask_verifier(judge, language, domain, proofs))
    figures = found["verifier"]
    assert figures["accuracy"]["value"] == figures["legible"]["value"] == figures["quality"]["value"] == 1
    assert "one letter for two integers" in found["by fault"] and "modulo 2" in found["by kind"]
