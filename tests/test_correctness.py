"""docs/correctness.md: the list is whole, its pointers hold, and faults that are tested nowhere else."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from conftest import some_problems

from nanov2.domains.domain import CritiqueGrade
from nanov2.domains.language import HEADING
from nanov2.domains.order.world import Critique, examine, write_critique, write_proof
from nanov2.hub.cache import question_key
from nanov2.hub.local import fingerprint
from nanov2.method.consensus import Assessed, Rule, settled
from nanov2.method.judges import Judgement
from nanov2.method.tasks import GeneratorTask, SelfVerifyTask, VerifierTask
from nanov2.model.rollout import Rollout
from nanov2.records import ProblemRecord, ProofRecord
from nanov2.run.config import load_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "correctness.md").read_text(encoding="utf-8")
SECTIONS = {
    int(number): text
    for number, text in re.findall(r"^## (\d+)\. .*\n((?:.*\n)*?)(?=^## |\Z)", PAGE + "\n", re.MULTILINE)
}
FAULTS = 31


def pointers(text):
    """Every `file.py` and `file.py::name` of a text."""
    return [tuple(p.split("::")) for p in re.findall(r"`([\w/]+\.py(?:::\w+)?)`", text)]


def names_in(path):
    """Functions, methods and classes of a file."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {
        node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds)
    }


def missing(found):
    """Pointers to files or names that are not there."""
    gone = []
    for file, *name in found:
        path = ROOT / file
        if not path.is_file() or not names_in(path).issuperset(name):
            gone.append("::".join([file, *name]))
    return gone


def test_every_fault_of_the_list_names_a_test_that_exists():
    assert list(SECTIONS) == list(range(1, FAULTS + 1))
    for number, text in SECTIONS.items():
        tests = [p for p in pointers(text.partition("- Tests:")[2]) if p[0].startswith("tests/")]
        assert tests and all(len(p) == 2 for p in tests), f"fault {number} names no test"
        assert not missing(tests), f"fault {number}"


def test_the_code_that_the_list_points_to_exists():
    assert missing(p for p in pointers(PAGE) if not p[0].startswith("tests/")) == []


def test_marks_in_the_code_are_numbers_of_the_list():
    files = [p for room in ("nanov2", "kernels", "tests") for p in (ROOT / room).rglob("*.py")]
    marks = {
        int(n)
        for p in files
        for mark in re.findall(r"\((C\d+(?:, C\d+)*)\)|def test_((?:C\d+_)+)", p.read_text(encoding="utf-8"))
        for n in re.findall(r"C(\d+)", "".join(mark))
    }
    assert marks and marks <= set(SECTIONS)


class FixedJudge:
    """A judge that gives every item the same score."""

    def __init__(self, score):
        self.score = score

    def ask(self, questions):
        return [Judgement(self.score, ("",), (self.score,))] * len(questions)


def rollout(tokenizer, texts):
    """A trajectory whose turns are these texts."""
    turns = [tokenizer.encode(text) for text in texts]
    return Rollout([], 0, turns=turns)


def right(problem):
    """A right proof as its author writes it, and the critiques that pass it and that find fault with it."""
    critique = examine(problem, problem.solution)
    doubting = Critique(*critique[:-1], 0.0)
    return HEADING + write_proof(problem.solution), write_critique(critique), write_critique(doubting)


@pytest.mark.parametrize("limit", range(1, 7))
def test_C24_every_ending_of_a_trajectory_can_earn_the_full_reward(tokenizer, prompts, limit):
    task = SelfVerifyTask(prompts, FixedJudge(1.0), limit, FixedJudge(1.0), (0.76, 0.24))
    problem = some_problems(1)[0]
    proof, passing, doubting = right(problem)
    proofs = range(1, (task.max_turns + 1) // 2 + 1)  # how many a trajectory can have
    for n in proofs:
        turns = ([proof, doubting] * (n - 1) + [proof, passing])[: task.max_turns]
        found = task.rewards([ProblemRecord(problem.text)], [rollout(tokenizer, turns)])
        assert found.reward == [pytest.approx(1.0)], f"{n} proofs"
    assert len(proofs) == (limit + 1) // 2  # room for as many proofs as were asked for


@pytest.mark.parametrize("rule", ["consensus", "majority", "mean", "worst"])
@pytest.mark.parametrize("score", [0.0, 1.0])
def test_C25_an_unreadable_critique_neither_makes_nor_breaks_a_label(rule, score):
    label, unread = Rule(rule, k=2), Assessed("", None, False)
    read = [Assessed("", score, score < 1, (1.0,) * (score < 1))] * 3
    assert label([unread] * 4) is None
    for at in range(4):
        assert label(read[:at] + [unread] + read[at:]) == label(read) == score
    assert not settled([unread] * 4, 2, 4)


def test_C28_answers_are_those_of_the_same_author(tmp_path):
    question = [{"role": "user", "content": "Prove it."}]
    author = {"url": "http://a/v1", "model": "verifier", "temperature": 1.0, "max_tokens": 64, "seed": 0}
    others = [author | {"url": "http://b/v1"}, author | {"temperature": 0.5}, author | {"seed": 1}]
    for name, weights in (("before", b"1"), ("after", b"2"), ("again", b"1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    before, after, again = (fingerprint(tmp_path / name) for name in ("before", "after", "again"))
    assert before == again != after  # of the weights, wherever they lie and whatever they are called
    others += [{"weights": before}, {"weights": after}]
    keys = {question_key(identity, question, 0) for identity in (author, *others)}
    assert len(keys) == 1 + len(others)
    assert question_key(dict(reversed(author.items())), question, 0) in keys


CONFIGURATIONS = sorted((ROOT / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_C31_no_configuration_lets_the_truth_choose_weights(path):
    assert "keep_best" not in str(tomllib.loads(path.read_text(encoding="utf-8")))
    config = load_config(path, [])
    for phase in ("generator", "selfverify", "lap_generator", "lap_selfverify"):
        assert getattr(config, phase).keep_best == "none"


class Truth:
    """An expert who gives everything the same score."""

    def __init__(self, score):
        self.value = score

    def score(self, problem, proof):
        return self.value

    def examine(self, problem, proof, critique):
        return CritiqueGrade(self.value, (), 0, 0)


def test_C31_the_truth_changes_no_reward(tokenizer, prompts):
    problem = some_problems(1)[0]
    proof, passing, _ = right(problem)
    item, graded = ProblemRecord(problem.text), ProofRecord(problem.text, write_proof(problem.solution), 1.0)
    judge = FixedJudge(0.5)
    for make, given, turns in (
        (lambda t: GeneratorTask(prompts, judge, t), item, [proof]),
        (lambda t: SelfVerifyTask(prompts, judge, 4, truth=t), item, [proof, passing]),
        (lambda t: SelfVerifyTask(prompts, judge, 4, judge, (0.76, 0.24), truth=t), item, [proof, passing]),
        (lambda t: VerifierTask(prompts, judge, t), graded, [passing]),
    ):
        answered = [rollout(tokenizer, turns)]
        rewards = [make(truth).rewards([given], answered).reward for truth in (None, Truth(0.0), Truth(1.0))]
        assert rewards[0] == rewards[1] == rewards[2]
