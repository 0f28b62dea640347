"""The terminal view: what it shows of a run under way, and what it does with odd files."""

import json

import pytest

from nanov2.errors import InputError
from nanov2.pages.watch import frame, safe, sparkline


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


def test_a_sample_cannot_command_the_terminal(run):
    (run / "verifier" / "last_sample.txt").write_text("+1.00 \x1b[2J\x07 a < b qed\n" + "x" * 500)
    text, _ = frame(run, 80)
    assert "\x1b" not in text and "\x07" not in text and "a < b qed" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_finished_run_ends_the_view(run):
    (run / "verifier" / "phase.json").write_text(json.dumps({"seconds": 1}))
    assert frame(run, 80)[1]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="run.json is missing"):
        frame(tmp_path, 80)


def test_sparklines():
    assert sparkline([0, 1], 10) == "▁█" and sparkline([2, 2, 2], 10) == "▁▁▁"
    assert len(sparkline(list(range(1000)), 40)) == 40
    assert safe("a\nb", 10) == "a | b"
