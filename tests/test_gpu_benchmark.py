"""benchmarks/gpu.py without a GPU: it says so, and its rehearsal runs every part."""

import json
import sys

import pytest
import torch
from scripts import run

from benchmarks import gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", f"--out={tmp_path / 'out'}"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert str(ended.value).startswith("error: torch sees no GPU") and "\n" not in str(ended.value)
    assert not (tmp_path / "out").exists()


def test_a_part_that_fails_or_takes_too_long_does_not_end_the_others(tmp_path):
    def part(name, code, budget=20.0):
        return gpu.Part(name, [sys.executable, "-c", code], budget)

    todo = [
        part("fails", "raise SystemExit(3)"),
        part("sleeps", "print('so far', flush=True); import time; time.sleep(60)", 2.0),
        part("works", """print('FIGURES {"tokens": 7}')"""),
        gpu.Part("missed", [sys.executable, "-c", ""], 0.0),
    ]
    assert not gpu.run_parts(todo, tmp_path, {"device": "none"})
    told = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert [p["status"] for p in told] == ["failed with status 3", "ended after its 2 s", "done"] + [
        "no time was left"
    ]
    assert told[1]["output"] == ["so far"] and told[2]["figures"] == {"tokens": 7}
    report = (tmp_path / "report.md").read_text()
    assert "| sleeps | ended after its 2 s |" in report and "- tokens: 7" in report


def test_budgets_stay_within_nine_minutes(tmp_path):
    for memory in (16e9, 24e9, 80e9):
        todo = gpu.parts(tmp_path, "", memory, rehearsal=False)
        assert sum(p.budget for p in todo) <= gpu.WITHIN < 540
        assert [p.name for p in todo] == ["throughput", "golden", "lap", "kernels"]


def test_the_rehearsal_runs_every_part(tmp_path):
    code, out, err = run("benchmarks/gpu.py", f"--out={tmp_path}", "--cpu-rehearsal")
    assert code == 0, out + err + (tmp_path / "report.md").read_text()
    told = json.loads((tmp_path / "report.json").read_text())
    assert [p["status"] for p in told["parts"]] == ["done"] * 4
    figures = told["parts"][0]["figures"]
    assert figures["LoRA, seconds to train"] > 0 and figures["whole weights, tokens sampled in a second"] > 0
    assert (tmp_path / "run" / "base" / "phase.json").is_file()
