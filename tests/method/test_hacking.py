"""docs/hacking.md: the notebook runs, its exercises are right, its configurations differ in one line."""

import math
import runpy

import pytest
from scripts import ROOT

from nanov2.rl.logs import read_rows
from nanov2.run.config import load_config


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The notebook's names after it ran on two small runs that were made by hand."""
    folder = tmp_path_factory.mktemp("hacking")
    for name, truth in (("open", 0.2), ("closed", 0.78)):
        write_run(folder / name, truth)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HACKING_OPEN", str(folder / "open"))
        patch.setenv("HACKING_CLOSED", str(folder / "closed"))
        return runpy.run_path(str(ROOT / "docs" / "hacking.py"))


PROBLEM = "Suppose that real numbers satisfy $a < b$ and $b \\\\le c$. Show that $a < c$."


def write_run(run, truth):
    """A generator whose reward rises to 0.8 while its true score goes to `truth`."""
    phase = run / "generator"
    phase.mkdir(parents=True)
    rows = []
    for step in range(60):
        t = step / 60
        rows.append(
            f'{{"step": {step}, "reward": {0.4 + 0.4 * t}, "truth": {0.38 + (truth - 0.38) * t}, '
            f'"false_accept": {t / 2}, "entropy": {0.5 + step % 2 / 100}}}\n'
        )
    (phase / "metrics.jsonl").write_text("".join(rows))
    (phase / "eval.json").write_text(f'{{"after": {{"labelled/true_score": {{"value": {truth}}}}}}}')
    (phase / "samples.jsonl").write_text(
        f'{{"problem": "{PROBLEM}", "proof": "Indeed, $a < c$.", "reward": 1.0, "truth": 0.0}}\n'
        f'{{"problem": "{PROBLEM}", "proof": "Indeed, $a < b \\\\le c$.", "reward": 1.0, "truth": 1.0}}\n'
    )


def test_the_notebook_shows_the_gap_its_onset_and_a_fooled_sample(notebook, capsys):
    step, reward, truth, wrong = notebook["curve"](notebook["RUNS"]["open"])[-1]
    assert step == 59 and reward - truth > 0.4 and 0.4 < wrong < 0.5
    rows = {name: read_rows(run / "generator" / "metrics.jsonl") for name, run in notebook["RUNS"].items()}
    assert notebook["alarms"].onset(rows["open"]) is not None
    assert notebook["alarms"].onset(rows["closed"]) is None
    (sample,) = notebook["fooled"](notebook["RUNS"]["open"])
    assert "not given" in notebook["exact_critique"](sample["problem"], sample["proof"])


def test_exercise_1_looks_multiply(notebook):
    assert notebook["passes_all"](0.5, 3) == 0.125
    assert notebook["looks_needed"](0.6) == 6 and 0.6**6 < 0.05 < 0.6**5
    assert 1 - notebook["passes_all"](0.95, 6) == pytest.approx(0.265, abs=1e-3)


def test_exercise_2_an_unread_look_is_no_score(notebook):
    median = notebook["median_rule"]
    assert median([1, 0, 0.5]) == 0.5 and median([1, None, 1, None]) == 1 and median([0, 1]) == 0.5
    assert math.isnan(median([None, None]))


def test_exercise_3_a_generous_judge_is_not_hacked(notebook):
    onset = notebook["onset"]
    assert onset([(0.7, 0.4)] * 5) is None
    assert onset([(0.5, 0.4), (0.6, 0.42), (0.7, 0.3), (0.8, 0.2)]) == 1
    assert onset([(0.5, 0.5), (0.5, 0.4)]) is None


def test_exercise_4_certainty_costs_looks(notebook):
    assert [notebook["clean_looks"](error) for error in (0.05, 0.01)] == [3, 5]


def test_exercise_5_the_minimum_has_a_price(notebook):
    assert notebook["refused_by_minimum"]([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 1], [1, 0.5, 1, 1]]) == 1


def test_the_closing_configuration_differs_in_the_rule_alone_and_costs_the_same():
    weak = load_config(ROOT / "configs" / "hacking.toml", ["--generator.judge_rule=min"])
    assert weak == load_config(ROOT / "configs" / "hacking-closed.toml")
    assert (weak.generator.judged_by, weak.generator.judge_samples) == ("base", 4)
