"""A critic with the reference solution in view: what it reads, and what it learns."""

from types import SimpleNamespace

import pytest
from conftest import some_proofs

from nanov2.domains.domain import domain_class
from nanov2.domains.language import Language
from nanov2.domains.order.domain import OrderTruth
from nanov2.errors import InputError
from nanov2.records import ProofRecord
from nanov2.run.aware import questions
from nanov2.run.config import load_config
from nanov2.run.phases import flywheel
from nanov2.run.start import _check_credit


@pytest.fixture
def domain():
    return domain_class("order")(load_config("configs/smoke.toml"))


def test_a_reference_solution_is_an_earlier_proof_of_the_sequence(prompts, domain):
    problem, proof = some_proofs(1)[0]
    solution = domain.solution(problem.text)
    plain = prompts.ids(prompts.verify(problem.text, proof))
    seen = prompts.ids(prompts.verify_aware(problem.text, proof, solution))
    text = prompts.tokenizer.decode(seen)
    assert text.index(solution) < text.rindex(proof) and seen[-1] == plain[-1]
    assert [seen.count(prompts.tokenizer.task[name]) for name in ("prove", "verify")] == [2, 1]


def test_reference_solutions_are_right_and_chat_models_are_shown_them(domain):
    records = domain.problems()["train"][:20]
    assert all(OrderTruth().score(r.problem, domain.solution(r.problem)) == 1 for r in records)
    (message,) = Language().verify_aware("X", "Y", "the reference")
    assert "the reference" in message["content"] and "\nY\n" in message["content"]
    assert domain.solution("no problem of this world") is None


def test_the_control_sees_no_solution(prompts, domain):
    problem, proof = some_proofs(1)[0]
    record = ProofRecord(problem.text, proof, 1.0)
    assert questions(prompts, domain, [record], False) == [prompts.verify(problem.text, proof)]
    assert questions(prompts, domain, [record], True)[0][0]["solution"] == domain.solution(problem.text)


def test_the_flywheel_leaves_it_out_unless_asked():
    assert ("aware", 1) not in flywheel(load_config("configs/smoke.toml"))
    assert ("aware", 1) in flywheel(load_config("configs/smoke.toml", ["--aware.on=true"]))


def test_where_nobody_has_reference_solutions_it_is_refused():
    config = load_config("configs/smoke.toml", ["--aware.on=true"])
    with pytest.raises(InputError, match="no reference solutions"):
        _check_credit(config, SimpleNamespace(truth=None))
