"""What a phase tells: curves under names that laps share, and --track to another tool."""

import json
import sys
import types

import pytest
from conftest import some_problems
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nanov2.distributed.ranks import Ranks
from nanov2.errors import InputError
from nanov2.model.rollout import Sampling
from nanov2.model.sampler import sample
from nanov2.rl import logs

FIGURE = {"value": 0.5, "n": 4, "low": 0.2, "high": 0.8}


@pytest.fixture
def told(monkeypatch):
    """A stand-in for wandb and trackio, and what it was told."""
    calls = []
    for tool in logs.TRACKERS:
        module = types.ModuleType(tool)
        module.init = lambda **given: calls.append(("init", given))
        module.log = lambda values, step: calls.append(("log", step, values))
        module.finish = lambda: calls.append(("finish",))
        monkeypatch.setitem(sys.modules, tool, module)
    monkeypatch.setattr(logs, "tracker", None)
    return calls


def two_steps(folder, name):
    log = logs.Log(folder, name, Ranks(), 0, 2)
    log.step(0, {"reward": 0.25, "seconds": {"train": 2.0}})
    log.metrics(2, {"validation/true_score": FIGURE})
    log.step(1, {"reward": 0.5, "seconds": {"train": 2.0}})
    log.text(2, "group", "a proof")
    log.close()


def test_laps_share_the_names_of_their_curves_and_no_name_says_a_thing_twice(tmp_path):
    tags = []
    for name in ("generator", "lap2/generator"):
        two_steps(tmp_path / name, name)
        events = EventAccumulator(str(tmp_path / name / "tensorboard"))
        events.Reload()
        tags.append(events.Tags()["scalars"])
    assert tags[0] == tags[1] and set(tags[0]) == {"reward", "seconds/train", "validation/true_score"}


@pytest.mark.parametrize("tool", logs.TRACKERS)
def test_each_phase_is_a_run_of_the_tool_whose_steps_grow(tmp_path, told, tool):
    logs.track(tool, "proofworld", {"seed": 3})
    two_steps(tmp_path / "a", "verifier")
    two_steps(tmp_path / "b", "lap2/verifier2")
    first, *steps, last = told[:4]
    assert first[1] | {"id": ""} == {
        "project": "nanov2",
        "group": "proofworld",
        "name": "proofworld verifier",
        "config": {"seed": 3},
        "resume": "allow",
        "id": "",
    }
    assert steps == [
        ("log", 0, {"reward": 0.25, "seconds/train": 2.0}),
        ("log", 1, {"reward": 0.5, "seconds/train": 2.0, "validation/true_score": 0.5}),
    ]
    assert last == ("finish",) and told[4][1]["name"] == "proofworld lap2/verifier2"
    assert ("id" in first[1]) == (tool == "wandb") and "/" not in told[4][1].get("id", "")


def test_a_tool_that_is_missing_unknown_or_refuses_is_one_line(tmp_path, told, monkeypatch):
    def refuse(**_):
        raise RuntimeError("no API key\nconfigured")

    sys.modules["wandb"].init = refuse
    logs.track("wandb", "a", {})
    with pytest.raises(InputError, match="--track=wandb: RuntimeError: no API key configured"):
        two_steps(tmp_path, "verifier")
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    with pytest.raises(InputError, match="--track=trackio: .*install it with `pip install trackio`"):
        logs.track("trackio", "a", {})
    with pytest.raises(InputError, match="--track must be one of wandb, trackio, found 'wanbd'"):
        logs.track("wanbd", "a", {})


def test_without_a_tool_nothing_but_the_folder_is_told(tmp_path, told):
    two_steps(tmp_path, "verifier")
    assert told == []
    assert [json.loads(x)["step"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0, 1]


def test_groups_of_steps_that_are_done_again_are_written_once(tmp_path, told):
    two_steps(tmp_path, "verifier")
    log = logs.Log(tmp_path, "verifier", Ranks(), 1, 4)  # from the checkpoint after step 1
    log.text(4, "group", "another")
    log.close()
    assert [r["text"] for r in logs.read_rows(tmp_path / logs.GROUPS)] == ["another"]


def test_the_first_validation_items_are_kept_by_step_and_those_of_steps_done_again_once(tmp_path, told):
    def write(start, *steps):
        log = logs.Log(tmp_path, "verifier", Ranks(), start, 9)
        for step in steps:
            log.samples(step, [{"problem": f"{i}", "proof": f"of step {step}"} for i in range(20)])
        log.close()

    write(0, 0, 2, 4)
    write(3, 4)  # from the checkpoint after step 3
    rows = logs.read_rows(tmp_path / logs.BY_STEP)
    assert [row["step"] for row in rows] == [0] * 3 + [2] * 3 + [4] * 3
    assert [row["problem"] for row in rows] == ["0", "1", "2"] * 3
    write(0, 0)  # from the beginning
    assert [row["step"] for row in logs.read_rows(tmp_path / logs.BY_STEP)] == [0] * 3


def test_in_a_log_what_takes_seconds_is_silent_and_what_takes_long_has_ten_lines(capsys, monkeypatch):
    with logs.progress("proofs", 5000) as told:
        told.reach(5000)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(logs.Progress, "SECONDS", 0.0)
    with logs.progress("proofs", 5000) as told:
        told.reach(5000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and lines[-1] == "  proofs: 5000 of 5000, 00:00 left"


def test_each_sampled_answer_counts_once(model, tokenizer, prompts):
    asked = [prompts.ids(prompts.prove(problem.text)) for problem in some_problems(5)]
    with logs.progress("proofs", 10) as told:
        sample(model, tokenizer, asked, 2, Sampling(max_tokens=4, batch_rows=4), 0)
    assert told.done == 10
    sample(model, tokenizer, asked, 2, Sampling(max_tokens=4), 0)
    assert told.done == 10  # nobody counts any more
