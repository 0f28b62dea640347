"""Self-verification in one answer: draft, evaluation, revision, …, final, without the driver's message."""

import random

import pytest
from chat_model import make_folder

from nanov2.distributed.ranks import derive_rng
from nanov2.domains.domain import open_domain
from nanov2.domains.language import (
    AGAIN,
    ALONE,
    HEADING,
    PROVE,
    Demonstration,
    Language,
    one_answer,
    prove,
    read_trajectory,
    self_verify,
)
from nanov2.domains.natural.domain import critique_in_form, proof_in_form
from nanov2.hub.chat import ChatTokenizer
from nanov2.method.tasks import SelfVerifyTask, judged_proofs
from nanov2.model.rollout import Rollout
from nanov2.records import ProblemRecord
from nanov2.run.config import load_config

DRAFT, FINAL = proof_in_form("It holds .", 0.5), proof_in_form("It holds by parity .", 1.0)
ISSUE, NONE = critique_in_form(0.5), critique_in_form(1.0)
SHOWN = Demonstration(
    "P", (("prove", HEADING + "A"), ("verify", ISSUE), ("prove", HEADING + "B"), ("verify", NONE)), ()
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return ChatTokenizer.load(make_folder(tmp_path_factory.mktemp("chat")))


def rollout(tokenizer, text):
    return Rollout([0], 0, turns=[tokenizer.backend.encode(text, add_special_tokens=False).ids])


def test_one_answer_holds_a_whole_trajectory_and_the_last_proof_counts(tokenizer):
    language = Language(tokenizer, strict=True, alone=True)
    answer = rollout(tokenizer, f"{DRAFT}\n\n{FINAL}")
    pairs = judged_proofs(language.turns(answer))
    assert [proof for proof, _ in pairs] == ["It holds .", "It holds by parity ."]
    assert [language.claimed_score(critique) for _, critique in pairs] == [0.5, 1.0]
    assert language.follow(answer) is None and language.max_given == 1  # nobody asks for a revision

    asked = Language(tokenizer, strict=True)
    assert len(judged_proofs(asked.turns(rollout(tokenizer, DRAFT)))) == 1
    assert asked.follow(rollout(tokenizer, DRAFT)) == tokenizer.turn(AGAIN)


@pytest.mark.parametrize(
    "answer, turns",
    [
        (None, [("prove", None)]),
        ("no heading", [("prove", None)]),
        ("<think>## Solution\nx", [("prove", None)]),
        ("## Solution\nA", [("prove", "A")]),
        ("## Solution\nA\n## Solution\nB", [("prove", "A"), ("prove", "B")]),
        ("## Solution\nA\n## Self Evaluation\n", [("prove", "A"), ("verify", None)]),
        (
            "## Solution\nA\n## Self Evaluation\nC\n## Solution\n\n",
            [("prove", "A"), ("verify", "C"), ("prove", None)],
        ),
    ],
)
def test_what_an_answer_holds(answer, turns):
    assert read_trajectory(answer) == turns


def test_the_question_says_who_asks_for_revisions(tokenizer):
    item = ProblemRecord("Show that claim 1 holds .")
    alone, asked = (SelfVerifyTask(Language(tokenizer, alone=a), None, 3) for a in (True, False))
    assert asked.prompt(item) == tokenizer.chat(prove(item.problem))
    assert alone.prompt(item) == tokenizer.chat(self_verify(item.problem))
    assert self_verify("P")[0]["content"] == prove("P")[0]["content"].replace(PROVE, f"{PROVE}\n\n{ALONE}")


def learnt_from(shown, alone):
    """Each answer that is learnt, with the number of turns up to it."""
    drawn = [one_answer(shown, random.Random(i), alone) for i in range(100)]
    return {d.turns[-1]: len(d.turns) for d in drawn}


FIRST, SECOND = (
    f"## Solution\nA\n\n## Self Evaluation\n{ISSUE}",
    f"## Solution\nB\n\n## Self Evaluation\n{NONE}",
)


def test_every_kind_of_answer_is_learnt_from_a_growing_document():
    verdicts = {("verify", ISSUE): 2, ("verify", NONE): 4}
    assert learnt_from(SHOWN, alone=True) == {("self_verify", f"{FIRST}\n\n{SECOND}"): 1} | verdicts
    assert learnt_from(SHOWN, alone=False) == {("prove", FIRST): 1, ("prove", SECOND): 3} | verdicts


def test_no_trajectory_that_is_learnt_breaks_off_at_an_issue():
    broken, settled = (Demonstration("P", turns) for turns in (SHOWN.turns[:2], SHOWN.turns[2:]))
    assert learnt_from(broken, alone=True) == {("prove", FIRST): 1, ("verify", ISSUE): 2}
    whole = {("prove", SECOND): 1, ("self_verify", SECOND): 1, ("verify", NONE): 2}
    assert learnt_from(settled, alone=True) == whole
    unjudged = Demonstration("P", SHOWN.turns[:3])  # a proof is learnt with its author's evaluation
    assert ("prove", HEADING + "B") not in learnt_from(unjudged, alone=False)


def test_what_is_read_alone_is_never_the_answer():
    read = Demonstration("P", SHOWN.turns[:2], (False, True))
    assert all(one_answer(read, random.Random(i), True).turns[-1] == ("verify", ISSUE) for i in range(20))


@pytest.mark.parametrize("name", ["order", "integers"])
@pytest.mark.parametrize("revises", ["alone", "asked"])
def test_worlds_teach_a_chat_model_all_its_answers(name, revises, tokenizer, tmp_path):
    flags = [f"--domain={name}", f"--pretrained.folder={tmp_path}", f"--pretrained.revises={revises}"]
    domain = open_domain(load_config("configs/smoke.toml", flags))
    language, kinds = domain.language(tokenizer), set()
    assert language.alone == (revises == "alone")
    for i in range(60):
        shown = domain.demonstration(derive_rng(i), 1.0)
        task, answer = shown.turns[-1]
        kinds.add(task)
        if task in ("prove", "self_verify"):
            judged = [(p, c) for p, c in judged_proofs(read_trajectory(answer))]
            assert all(domain.truth.score(shown.problem, p) in (0, 0.5, 1) for p, _ in judged)
            assert all(language.claimed_score(c) is not None for _, c in judged)
            assert task == "self_verify" or len(judged) == 1
        language.document(shown)
    assert kinds == {"prove", "verify", "meta"} | ({"self_verify"} if revises == "alone" else set())
