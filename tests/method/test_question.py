"""benchmarks/question.py: what its figures decide, and that a finished arm is not done again."""

import json
import math
import xml.etree.ElementTree as ET

import pytest

from benchmarks import question, question_tables
from benchmarks.question_tables import CLAIMS, Claim, decide, drawing, interval, shown

UP = Claim("more", "", "x", "a", "b")


def seeds(a, b):
    return [{"a": {"x": p}, "b": {"x": q}} for p, q in zip(a, b)]


@pytest.mark.parametrize(
    "a, b, verdict",
    [
        ([0.50, 0.60, 0.55], [0.40, 0.49, 0.46], "confirmed"),
        ([0.40, 0.49, 0.46], [0.50, 0.60, 0.55], "refuted"),
        ([0.501, 0.602, 0.549], [0.5, 0.6, 0.55], "refuted"),  # no more than nothing
        ([0.5, 0.9, 0.2], [0.4, 0.5, 0.5], "undecided"),
        ([0.5], [0.1], "undecided"),  # one seed says nothing
        ([], [], "not measured yet"),
    ],
)
def test_a_claim_is_decided_by_its_differences_within_seeds(a, b, verdict):
    assert decide(UP, seeds(a, b))["verdict"] == verdict


def test_a_claim_that_there_is_no_gain_is_the_other_way_round():
    none = Claim("no gain", "", "x", "a", "b", none=True)
    assert decide(none, seeds([0.50, 0.60, 0.55], [0.40, 0.49, 0.46]))["verdict"] == "refuted"
    assert decide(none, seeds([0.501, 0.602, 0.549], [0.5, 0.6, 0.55]))["verdict"] == "confirmed"
    below = Claim("less", "", "x", "a", "b", sign=-1)
    assert decide(below, seeds([0.40, 0.49, 0.46], [0.50, 0.60, 0.55]))["verdict"] == "confirmed"


def test_a_claim_without_a_second_arm_is_held_against_a_number():
    most = Claim("most", "", "x", "a", than=0.5)
    assert decide(most, [{"a": {"x": v}} for v in (0.8, 0.82, 0.79)])["verdict"] == "confirmed"
    assert decide(most, [{"other": {}}])["verdict"] == "not measured yet"


def test_intervals_are_students():
    mean, low, high = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3 and high - mean == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5))
    assert low == pytest.approx(6 - high)
    assert shown([]) == "not measured yet" and shown([0.25]) == "0.250"


def test_every_claim_is_about_arms_that_are_done():
    done = {*question.ARMS, "v1", "run", "base"}
    done |= {f"refine {question.NAMES.get(name, name)}" for name in question.CRITICS}
    assert all(c.a in done and (not c.b or c.b in done) for c in CLAIMS)


def test_tables_and_figure_can_be_made_of_whatever_is_measured():
    arms = {"mean": "mean of 4 < 5 looks", "min": "min"}
    figures = {name: 0.4 for name in question_tables.COLUMNS.values()}
    for known in ([], [{"mean": figures}], [{"mean": figures, "min": figures}, {"min": figures}]):
        assert question_tables.arm_table(known, arms).count("\n") == 4
        ET.fromstring(drawing(known, arms))
    assert "not measured yet" in question_tables.claim_table([decide(c, []) for c in CLAIMS])


def test_a_finished_arm_is_not_done_again(tmp_path, monkeypatch):
    folder = tmp_path / "seed0-question" / "min-v2"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"tokens": 7}))
    monkeypatch.setattr(question, "do_phase", lambda *args: pytest.fail("done again"))
    assert question.do_arm(tmp_path / "seed0", "min-v2", 1, []) == {"tokens": 7}


def test_an_arm_starts_from_the_runs_own_phases_with_one_thing_changed(tmp_path, monkeypatch):
    run, asked = tmp_path / "seed0", []
    for phase in (*question.ORDER, "aware"):
        (run / phase).mkdir(parents=True)
        (run / phase / "model.safetensors").write_text(phase)
        (run / phase / "settings.json").write_text("{}")

    def do_phase(folder, phase, lap, ranks, *flags):
        asked.append((folder.name, phase, flags))
        (folder / phase).mkdir(exist_ok=True)
        (folder / phase / "eval.json").write_text(json.dumps({"after": {"x": {"value": 0.5}}}))

    monkeypatch.setattr(question, "do_phase", do_phase)
    found = question.do_arm(run, "mean-aware", 1, ["--generator.steps=2"])
    assert found["x"] == 0.5 and [name for name, *_ in asked] == ["aware", "mean-aware"]
    assert asked[1][1] == "generator" and "--generator.judged_by=aware" in asked[1][2]
    arm = tmp_path / "seed0-question" / "mean-aware"
    made = sorted(p.name for p in arm.iterdir() if p.is_dir())
    assert made == ["aware", "base", "coldstart", "generator", "meta", "verifier", "verifier2"]
    assert not list(arm.rglob("settings.json"))
    question.do_arm(run, "finding", 1, [])
    assert sorted(p.name for p in (arm.parent / "finding").iterdir() if p.is_dir()) == [
        "base",
        "coldstart",
        "verifier",
    ]
