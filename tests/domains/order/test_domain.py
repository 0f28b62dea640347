"""The world as a domain: problem sets that differ in more than names, its languages, and what pages show."""

import random

import pytest
from conftest import some_proofs

from nanov2.domains.language import HEADING, Language, TurnLanguage
from nanov2.domains.order import domain as order
from nanov2.domains.order.config import WorldConfig
from nanov2.domains.order.domain import OrderDomain
from nanov2.domains.order.tokenizer import order_tokenizer
from nanov2.domains.order.world import examine, parse_problem, parse_proof, write_critique
from nanov2.errors import InputError
from nanov2.records import CritiqueRecord, ProblemRecord, ProofRecord
from nanov2.run.config import Config

WORLD = WorldConfig(problems=300, hard_problems=200, held_out=40, validation=20, lap_chain=1, lap_facts=1)
MEASURED = ("held_out", "validation")


@pytest.fixture(scope="module")
def domain():
    return OrderDomain(Config(world=WORLD, laps=3))


def forms(records):
    return [parse_problem(r.problem).form for r in records]


def test_measured_problems_differ_from_all_others_up_to_renaming_order_and_family(domain):
    sets = domain.problems()
    assert {"train", "train_hard", "train_hard2", "train_hard3", "held_out_hardest"} <= sets.keys()
    measured = [f for name in sets if name.startswith(MEASURED) for f in forms(sets[name])]
    trained = {f for name in sets if name.startswith("train") for f in forms(sets[name])}
    assert len(set(measured)) == len(measured) and not trained & set(measured)
    texts = [r.problem for records in sets.values() for r in records]
    assert len(set(texts)) == len(texts)
    new = domain.new_problems(2, 60)
    assert (
        len(new) == 60 and not {r.problem for r in new} & set(texts) and not set(forms(new)) & set(measured)
    )


def test_demonstrations_avoid_measured_problems_at_every_stage(domain):
    kept = {f for name, rs in domain.problems().items() if name.startswith(MEASURED) for f in forms(rs)}
    for stage in (0.0, 0.2, 0.5, 1.0):
        rng = random.Random(stage)
        shown = [parse_problem(domain.demonstration(rng, stage).problem) for _ in range(300)]
        assert not {p.form for p in shown} & kept
        assert max(len(p.solution) for p in shown) == {0.0: 2, 0.2: 3}.get(stage, 5)


def test_the_same_seed_gives_the_same_problems_and_another_seed_others(domain):
    again = OrderDomain(Config(world=WORLD, laps=3))
    other = OrderDomain(Config(world=WORLD, laps=3, seed=1))
    assert again.problems() == domain.problems() and again.new_problems(1, 5) == domain.new_problems(1, 5)
    assert other.problems()["train"] != domain.problems()["train"]


def test_a_world_with_too_few_different_problems_is_refused():
    narrow = WorldConfig(labelled_chain=(1, 1), labelled_facts=(1, 1), held_out=20)
    with pytest.raises(InputError, match="too few different problems"):
        OrderDomain(Config(world=narrow)).problems()


def test_own_models_speak_turns_and_pretrained_ones_messages(domain):
    model, tokenizer = domain.start()
    language = domain.language(tokenizer)
    assert isinstance(language, TurnLanguage) and model.config.vocab_size == tokenizer.vocab_size
    assert not isinstance(domain.language(None), TurnLanguage) and isinstance(domain.language(None), Language)
    assert language.is_proof("Indeed, $a < b$.") and not language.is_proof("It is clear.")
    assert not language.is_proof(None) and not language.is_proof("Indeed, $a < b < a$.")


def test_a_document_is_the_questions_of_its_turns_grown(domain):
    language = domain.language(order_tokenizer())
    for i in range(30):
        shown = domain.demonstration(random.Random(i), 1.0)
        pack = language.document(shown)
        whole = [*pack.prompt, *pack.completions[0].ids]
        (_, proof), (_, critique), (task, _), *_ = shown.turns
        proof = proof.removeprefix(HEADING)
        question = language.meta(shown.problem, proof, critique)
        if task == "prove":
            question = language.revise(shown.problem, proof, [critique])
        for ids in (language.ids(language.verify(shown.problem, proof)), language.ids(question)):
            assert whole[: len(ids)] == ids


def test_truth_knows_this_world_alone(domain):
    problem, proof = some_proofs(1)[0]
    assert domain.truth.score(problem.text, proof) in (0.0, 0.5, 1.0)
    assert domain.truth.score(problem.text, None) == 0.0
    assert domain.truth.score("Show that 1 = 1.", proof) != domain.truth.score("Show that 1 = 1.", proof)
    assert domain.truth.examine("Show that 1 = 1.", proof, "") is None


def test_a_page_gets_facts_steps_and_findings_with_what_they_claim(domain):
    for problem, proof in some_proofs(50):
        steps = parse_proof(proof)
        exact = examine(problem, steps)
        view = domain.view(CritiqueRecord(problem.text, proof, write_critique(exact)))
        assert view.statement == problem.text and len(view.facts) == len(problem.facts)
        assert view.steps == tuple(f"${' '.join(s)}$" for s in steps)
        assert [at for at, _, _ in view.findings] == [*range(len(steps)), None, None]
        claims = [f.verdict != "ok" for f in exact.findings] + [not exact.ends, not exact.strong]
        assert [claim for *_, claim in view.findings] == claims
        marks = domain.truth.examine(problem.text, proof, write_critique(exact)).marks
        assert len(marks) == len(view.findings)
    free = domain.view(ProofRecord("Show that 1 = 1.", "It is clear."))
    assert (free.facts, free.steps, free.findings) == ((), (), ()) and domain.view(ProblemRecord("x")).rubric


def test_a_page_that_is_shown_again_works_nothing_out_again(domain, monkeypatch):
    problem, proof = some_proofs(1)[0]
    record = CritiqueRecord(problem.text, proof, write_critique(examine(problem, parse_proof(proof))))
    first = domain.view(record)
    monkeypatch.setattr(order, "examine", None)
    assert domain.view(record) == first
