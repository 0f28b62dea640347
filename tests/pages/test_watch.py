"""The terminal view: what it shows of a run under way, and what it does with odd files."""

import json
import os
import socket
import subprocess
import sys

import pytest

from nanov2.errors import InputError
from nanov2.pages.watch import Ending, frame, is_held, safe, sparkline
from nanov2.run.config import load_config
from nanov2.run.phases import flywheel, planned


@pytest.fixture
def run(tmp_path):
    facts = {"seed": 3, "ranks": 2, "config": {"verifier": {"steps": 40}}}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    for phase in ("base", "verifier"):
        (tmp_path / phase).mkdir()
    (tmp_path / "base" / "phase.json").write_text(json.dumps({"seconds": 61.2}))
    rows = [
        {"step": i, "reward": i / 20, "tokens": 900, "seconds": {"sample": 1, "train": 2}} for i in range(10)
    ]
    text = "".join(json.dumps(r) + "\n" for r in rows) + '{"step": 10, "rew'  # the last is being written
    (tmp_path / "verifier" / "metrics.jsonl").write_text(text)
    return tmp_path


def test_a_frame_tells_phase_step_rate_and_time_left(run):
    text, done = frame(run, 80)
    assert not done and "✓ base" in text and "done in 1:01" in text and "▸ verifier" in text
    assert "step 10 of 40, 3.00 s a step, 1:30 left in it, 300 tokens/s" in text
    assert "reward" in text and "▁" in text and "█" in text


def test_a_frame_tells_the_time_left_for_the_whole_run(run):
    told = "at least 1:30 left by the phases so far; 6 to come are of new kinds"
    assert told in frame(run, 80)[0]
    facts = {"config": {"verifier": {"steps": 40}, "meta": {"steps": 20}, "verifier2": {"steps": 40}}}
    (run / "run.json").write_text(json.dumps(facts))
    finish(run, "verifier", "coldstart", "generator", "selfverify", "autolabel")
    (run / "verifier" / "phase.json").write_text(json.dumps({"seconds": 40}))  # 10 steps of 3 s, 10 s beside
    assert "about 3:20 left by the phases so far" in frame(run, 80)[0]
    finish(run, "meta", "verifier2")
    assert "left" not in frame(run, 80)[0]


def test_the_phases_to_come_are_shown(run):
    text, _ = frame(run, 80)
    assert "· meta" in text and "to come" in text and text.index("▸ verifier") < text.index("· meta")
    facts = {"config": {"laps": 2, "lap_generator": {"init": "consolidated"}}}
    (run / "run.json").write_text(json.dumps(facts))
    text, _ = frame(run, 80)
    assert "· consolidate lap 2" in text and "· autolabel lap 2" in text and "base lap 2" not in text


def test_reward_is_shown_beside_truth_with_their_gap(run):
    rows = [{"step": i, "reward": 0.5, "truth": 0.2, "loss": float("nan")} for i in range(3)]
    (run / "verifier" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    shown = frame(run, 80)[0].splitlines()
    at = next(i for i, line in enumerate(shown) if line.startswith("  reward "))
    assert "0.500" in shown[at] and "true score" in shown[at + 1] and "0.200" in shown[at + 1]
    assert "reward − truth" in shown[at + 2] and "0.300" in shown[at + 2]


def test_a_sample_cannot_command_the_terminal(run):
    (run / "verifier" / "last_sample.txt").write_text("+1.00 \x1b[2J\x07 a < b qed\n" + "x" * 500)
    text, _ = frame(run, 80)
    assert "\x1b" not in text and "\x07" not in text and "a < b qed" in text
    assert max(map(len, text.splitlines())) <= 80


def finish(run, *phases):
    for phase in phases:
        (run / phase).mkdir(exist_ok=True)
        (run / phase / "phase.json").write_text(json.dumps({"seconds": 1}))


ONE_LAP = ("base", "coldstart", "verifier", "meta", "verifier2", "generator", "selfverify", "autolabel")


def test_a_finished_run_ends_the_view_and_a_moment_between_phases_does_not(run):
    finish(run, "verifier")
    assert not frame(run, 80)[1]  # no phase is under way, but others are to come
    finish(run, *ONE_LAP)
    assert frame(run, 80)[1]


def test_the_view_ends_when_nobody_has_run_the_run_for_a_while():
    ending = Ending(grace=20)
    assert not ending.reached(False, True, 0)
    assert not ending.reached(False, False, 10) and not ending.reached(False, False, 29)
    assert not ending.reached(False, True, 30)  # started again
    assert not ending.reached(False, False, 40) and ending.reached(False, False, 60)
    assert ending.reached(True, True, 0)


def test_the_plan_of_an_older_run_is_read_from_what_it_knew():
    config = load_config("configs/smoke.toml", ["--lap_generator.init=consolidated"])
    assert planned(config.to_dict()) == flywheel(config) and ("consolidate", 2) in flywheel(config)
    older = {k: v for k, v in config.to_dict().items() if k in ("laps", "seed", "verifier")}
    skipped = {("consolidate", 2), ("aware", 1), ("renew_meta", 2)}
    assert planned(older) == [key for key in flywheel(config) if key not in skipped]


def test_who_holds_the_run_is_read_without_touching_the_lock(run):
    assert not is_held(run)
    (run / "owner").write_text(f"process {os.getpid()} on {socket.gethostname()}, started 2026-01-01\n")
    assert is_held(run)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (run / "owner").write_text(f"process {ended.pid} on {socket.gethostname()}, started 2026-01-01\n")
    assert not is_held(run)
    (run / "owner").write_text("process 1 on elsewhere, started 2026-01-01\n")
    assert is_held(run)  # files are being written
    for path in run.rglob("*"):
        os.utime(path, (0, 0))
    assert not is_held(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="run.json is missing"):
        frame(tmp_path, 80)


def test_sparklines():
    assert sparkline([0, 1], 10) == "▁█" and sparkline([2, 2, 2], 10) == "▁▁▁"
    assert len(sparkline(list(range(1000)), 40)) == 40
    assert safe("a\nb", 10) == "a | b"
