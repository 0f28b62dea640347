"""The taskset for verifiers v1, held against a stand-in with that library's names and rules."""

import asyncio
import sys
import types
from typing import Generic, TypeVar, get_type_hints

import pytest
from scripts import ROOT

from nanov2.domains.domain import domain_class
from nanov2.domains.integers import world as integers
from nanov2.domains.language import V_END, V_START
from nanov2.domains.order.world import (
    examine,
    parse_critique,
    parse_problem,
    parse_proof,
    write_critique,
    write_proof,
)
from nanov2.errors import InputError

A, B = TypeVar("A"), TypeVar("B")


class Model:
    """As pydantic does it there: fields by name, defaults of the class, no other names."""

    def __init__(self, **given):
        fields = get_type_hints(type(self))
        assert given.keys() <= fields.keys()
        for name in fields:
            value = given[name] if name in given else getattr(type(self), name)
            object.__setattr__(self, name, value)

    def __setattr__(self, name, value):
        raise TypeError("frozen")


class TaskData(Model):
    idx: int | None = None
    prompt: str | None = None
    system_prompt: str | None = None


class TasksetConfig(Model):
    id: str = ""
    task: object = None


class Task(Generic[A]):
    def __init__(self, data, config=None):
        self.data, self.config = data, config


class Taskset(Generic[A, B]):
    def __init__(self, config):
        self.config = config


def marked(kind):
    def mark(function):
        setattr(function, kind, True)
        return function

    return mark


@pytest.fixture
def taskset(monkeypatch):
    v1 = types.ModuleType("verifiers.v1")
    v1.TaskData, v1.TasksetConfig, v1.Task, v1.Taskset = TaskData, TasksetConfig, Task, Taskset
    v1.reward, v1.metric, v1.stop = marked("reward"), marked("metric"), marked("stop")
    v1.Trace = object
    package = types.ModuleType("verifiers")
    package.v1 = v1
    monkeypatch.setitem(sys.modules, "verifiers", package)
    monkeypatch.setitem(sys.modules, "verifiers.v1", v1)
    monkeypatch.syspath_prepend(str(ROOT / "environments" / "nanov2_order"))
    for name in ("nanov2_order", "nanov2_order.taskset"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from nanov2_order import taskset

    return taskset


def tasks(taskset, about, n=12, domain="order"):
    return taskset.WorldTaskset(taskset.WorldConfig(about=about, tasks=n, domain=domain)).load()


def reward(task, reply):
    return asyncio.run(task.graded(types.SimpleNamespace(last_reply=reply, num_turns=1)))


def right_proof(problem):
    return write_proof(parse_problem(problem).solution)


def test_a_right_proof_is_paid_in_full_and_another_answer_nothing(taskset):
    found = tasks(taskset, "prove")
    assert len(found) == 12 and {type(t) for t in found} == {taskset.WorldTask}
    for task in found:
        assert (
            task.data.problem in task.data.prompt and right_proof(task.data.problem) not in task.data.prompt
        )
        assert reward(task, f"## Solution\n{right_proof(task.data.problem)}") == 1
        assert reward(task, right_proof(task.data.problem)) == 0  # without the heading
        assert reward(task, None) == reward(task, "## Solution\nIt is clear.") == 0


def test_a_critique_is_paid_by_its_distance_from_the_truth_and_its_inventions_are_counted(taskset):
    found = tasks(taskset, "verify")
    assert {t.data.truth for t in found} == {0.0, 0.5, 1.0}
    for task in found:
        truth = write_critique(examine(parse_problem(task.data.problem), parse_proof(task.data.proof)))
        trace = types.SimpleNamespace(last_reply=truth)
        assert reward(task, truth) == 1 and asyncio.run(task.invented_issues(trace)) == 0
        assert parse_critique(truth).score == task.data.truth
        assert reward(task, truth.replace("\\boxed", "box")) == 0  # R_format
    task = next(t for t in found if t.data.truth == 1)
    step = task.data.proof.removeprefix("Indeed, $").split(" ")[:3]
    blamed = f"- ${' '.join(step)}$: not given, so this step is not justified."
    critique = truth_with(task, blamed)
    assert reward(task, critique) == 0
    assert asyncio.run(task.invented_issues(types.SimpleNamespace(last_reply=critique))) == 1


def truth_with(task, blamed):
    """The true critique with its first finding changed, and the score 0."""
    lines = write_critique(examine(parse_problem(task.data.problem), parse_proof(task.data.proof))).split(
        "\n"
    )
    return "\n".join([lines[0], blamed, *lines[2:-1], lines[-1].replace("\\boxed{1}", "\\boxed{0}")])


def test_a_meta_critique_is_paid_by_the_quality_it_gives(taskset):
    for task in tasks(taskset, "meta"):
        assert task.data.critique and task.data.critique in task.data.prompt
        end = 'Based on my analysis, I will rate the "solution evaluation" as: \\boxed{%g}'
        start = 'Here is my analysis of the "solution evaluation":\n'
        assert reward(task, start + end % task.data.truth) == 1
        assert reward(task, start + end % (1 - task.data.truth)) < 1 or task.data.truth == 0.5


def test_the_same_seed_makes_the_same_tasks(taskset):
    one, two = ([t.data.prompt for t in tasks(taskset, "verify", 6)] for _ in range(2))
    assert one == two
    task = tasks(taskset, "verify", 6)[0]
    assert asyncio.run(task.one_turn(types.SimpleNamespace(num_turns=1)))
    assert type(task).one_turn.stop and type(task).graded.reward and type(task).invented_issues.metric


def solved(problem):
    return integers.write_proof(integers.solve(integers.parse_problem(problem)))


def test_the_integers_world_is_asked_and_graded_the_same_way(taskset):
    found = tasks(taskset, "prove", 4, "integers")
    assert len(found) == 4
    for task in found:
        asked, shown = task.data.prompt.split("Write the proof like this one, of another problem:\n\n")
        problem, proof = shown.split("\n\n", 1)
        assert task.data.problem in asked and problem != task.data.problem
        assert reward(task, f"## Solution\n{solved(task.data.problem)}") == 1
        assert reward(task, None) == 0
        assert domain_class("integers").truth.score(problem, proof) == 1
    for task in tasks(taskset, "verify", 4, "integers"):
        assert "Every number is written out." in task.data.prompt  # the world's own form
        claimed = f"{V_START}\n{V_END} \\boxed{{{task.data.truth:g}}}"
        assert reward(task, claimed) == 1 and reward(task, "It is fine.") == 0
    assert len(tasks(taskset, "meta", 4, "integers")) == 4


def test_a_domain_without_a_truth_is_refused(taskset):
    with pytest.raises(InputError, match="nobody knows the truth of domain 'natural'"):
        tasks(taskset, "prove", 4, "natural")
