"""benchmarks/question.py: what its figures decide, and what an arm begins from and changes."""

import argparse
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks import question, question_tables, refinement
from benchmarks.question_tables import CLAIMS, MISSING, Claim, decide, decide_alarm, drawing, interval, shown
from nanov2.method.alarms import ALARMS
from nanov2.method.consensus import RULES
from nanov2.records import read_json
from nanov2.run.config import load_config

UP = Claim("more", "", "final", "a", "b")
DOC = Path(__file__).parents[2] / "docs" / "question.md"


def seeds(a, b):
    return [{"a": {"final": p}, "b": {"final": q}} for p, q in zip(a, b)]


@pytest.mark.parametrize(
    "a, b, verdict",
    [
        ([0.50, 0.60, 0.55], [0.40, 0.49, 0.46], "confirmed"),
        ([0.40, 0.49, 0.46], [0.50, 0.60, 0.55], "refuted"),
        ([0.501, 0.602, 0.549], [0.5, 0.6, 0.55], "refuted"),  # no more than nothing
        ([0.5, 0.9, 0.2], [0.4, 0.5, 0.5], "undecided"),
        ([0.5, 0.61], [0.4, 0.51], "undecided"),  # two seeds say nothing, however alike
        ([], [], MISSING),
    ],
)
def test_a_claim_is_decided_by_its_differences_within_seeds(a, b, verdict):
    assert decide(UP, seeds(a, b))["verdict"] == verdict


def test_one_seed_on_the_other_side_of_0_confirms_nothing():
    gains = [0.3] * 20 + [-0.01]
    assert interval(gains)[1] > 0
    found = decide(UP, seeds(gains, [0.0] * 21))
    assert found["verdict"] == "undecided" and found["above"] == 20


def test_a_claim_that_there_is_no_gain_is_the_other_way_round():
    none = Claim("no gain", "", "final", "a", "b", none=True)
    assert decide(none, seeds([0.50, 0.60, 0.55], [0.40, 0.49, 0.46]))["verdict"] == "refuted"
    assert decide(none, seeds([0.501, 0.602, 0.549], [0.5, 0.6, 0.55]))["verdict"] == "confirmed"
    below = Claim("less", "", "final", "a", "b", sign=-1)
    assert decide(below, seeds([0.40, 0.49, 0.46], [0.50, 0.60, 0.55]))["verdict"] == "confirmed"


def test_a_claim_without_a_second_arm_is_held_against_a_number():
    most = Claim("most", "", "final", "a", than=0.5)
    assert decide(most, [{"a": {"final": v}} for v in (0.8, 0.82, 0.79)])["verdict"] == "confirmed"
    assert decide(most, [{"other": {}}])["verdict"] == MISSING


@pytest.mark.parametrize(
    "in_time, hacked, false, calm, verdict",
    [
        (4, 4, 1, 4, "confirmed"),
        (1, 4, 0, 4, "refuted"),
        (4, 4, 3, 4, "refuted"),
        (4, 4, 2, 4, "undecided"),
        (2, 2, 0, 9, "undecided"),  # too few hacked runs
        (0, 0, 0, 0, MISSING),
    ],
)
def test_the_alarm_is_to_ring_in_time_and_seldom_falsely(in_time, hacked, false, calm, verdict):
    counts = {"in time": in_time, "hacked": hacked, "false": false, "not hacked": calm}
    assert decide_alarm([{"alarm": question_tables.ALARM} | counts])["verdict"] == verdict


def test_intervals_are_students():
    mean, low, high = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3 and high - mean == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5))
    assert low == pytest.approx(6 - high)
    assert shown([]) == MISSING and shown([0.25]) == "0.250"


def test_every_claim_is_about_arms_that_are_done():
    done = {*question.ARMS, "v1", "run", "base", *(f"{name} start" for name in question.GENERATORS)}
    done |= {f"{reviser} by {critic}" for reviser in refinement.REVISERS for critic in question.CRITICS}
    done |= {f"label {rule}" for rule in RULES}
    assert all(c.a in done and (not c.b or c.b in done) for c in CLAIMS)
    assert question_tables.ALARM in {alarm.title for alarm in ALARMS}


def test_tables_and_figure_can_be_made_of_whatever_is_measured():
    arms = {"mean": "mean of 4 < 5 looks", "min": "min"}
    figures = {name: 0.4 for name in question_tables.COLUMNS.values()}
    for known, lines in (([], 0), ([{"mean": figures}], 1), ([{"mean": figures, "min": figures}, {}], 2)):
        assert question_tables.arm_table(known, arms).count("| `m") == lines
        assert "tokens, thousands" in "".join(ET.fromstring(drawing(known, arms)).itertext())
    assert all(MISSING in part.lower() for part in question.tables([], []).values())


def test_docs_hold_the_verdicts_of_the_figures_that_are_there():
    path = DOC.with_suffix(".json")
    known = read_json(path) if path.is_file() else {"seeds": [], "alarms": []}
    text = DOC.read_text()
    for name, part in question.tables(known["seeds"], known["alarms"]).items():
        held = re.search(f"<!-- {name} -->\n(.*?)\n<!-- end {name} -->", text, re.DOTALL)
        assert held and held[1] == part.strip(), f"write {name} anew: question.py … --out=docs"
    assert all(f"`{arm}`" in text for arm in question.ARMS)


def test_an_arm_begins_from_the_run_or_from_the_arm_that_it_takes():
    run = Path("runs/seed0")
    job = question.arm_job(run, "mean-aware", ["--generator.steps=2"])
    assert f"--from={Path('runs/seed0-question/aware')}" in job.command and "--aware.on=true" in job.command
    assert job.needs == (Path("runs/seed0-question/aware/aware/phase.json"),)
    job = question.arm_job(run, "min-base", [])
    assert f"--from={run}" in job.command and job.needs == (run / "verifier2" / "phase.json",)


def test_what_is_worth_most_is_first_and_what_it_needs_before_it():
    runs = [Path("a"), Path("b")]
    names = [job.name for job in question.jobs(runs, list(question.ARMS), [], False, 9)]
    first = [f"{run}-question/{arm} generator" for arm in ("mean-v2", "min-v2") for run in runs]
    assert names[:4] == first
    aware = names.index("a-question/aware aware")
    assert aware < names.index("a-question/mean-aware generator")
    assert aware < names.index("a refinement by aware")
    assert sum("refinement" in name for name in names) == 2 * len(question.CRITICS)


def test_the_command_line_gives_other_settings_to_all_arms(monkeypatch):
    monkeypatch.setattr("sys.argv", ["question.py", "a", "b", "--generator.lr=1e-4", "--minutes=5"])
    args, overrides = question.read_args()
    assert isinstance(args, argparse.Namespace) and args.minutes == 5
    assert args.runs == [Path("a"), Path("b")] and overrides == ["--generator.lr=1e-4"]


def test_the_weak_arms_have_the_base_and_the_world_of_the_hacking_configuration():
    configs = DOC.parents[1] / "configs"
    weak = load_config(configs / "proofworld.toml", question.WEAK)
    hacking = load_config(configs / "hacking.toml")
    assert (weak.model, weak.noise, weak.base) == (hacking.model, hacking.noise, hacking.base)
    assert weak.world.labelled == hacking.world.labelled and weak.world.hard == hacking.world.hard
    assert weak.world.held_out == load_config(configs / "proofworld.toml").world.held_out
    assert weak.generator.lr == hacking.generator.lr
