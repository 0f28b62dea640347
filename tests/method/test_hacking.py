"""docs/hacking.md: the notebook runs, its exercises are right, its configurations differ in one line."""

import math
import re
import runpy

import pytest
from scripts import ROOT

from nanov2.domains.order.world import examine, parse_problem, parse_proof
from nanov2.rl.logs import read_rows
from nanov2.run.config import load_config

NOTEBOOK = ROOT / "docs" / "hacking.py"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The notebook's names after it ran on two small runs that were made by hand."""
    folder = tmp_path_factory.mktemp("hacking")
    for name, truth in (("open", 0.2), ("closed", 0.78)):
        write_run(folder / name, truth)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HACKING_OPEN", str(folder / "open"))
        patch.setenv("HACKING_CLOSED", str(folder / "closed"))
        return runpy.run_path(str(NOTEBOOK))


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


def cells(path):
    """(whether it is code, text) of each cell of a percent script."""
    _, *marked = re.split(r"^# %%(.*)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [("[markdown]" not in kind, text) for kind, text in zip(marked[::2], marked[1::2])]


def test_the_notebook_runs_cell_by_cell_on_a_real_run(finished, monkeypatch, capsys):
    monkeypatch.setenv("HACKING_OPEN", str(finished))
    monkeypatch.setenv("HACKING_CLOSED", str(finished / "lap2"))
    names = {"__name__": "__main__"}
    for code, text in cells(NOTEBOOK):
        if code:
            exec(compile(text, str(NOTEBOOK), "exec"), names)
        else:
            assert all(line.startswith("#") for line in text.split("\n") if line)
    said = capsys.readouterr().out
    assert "left out" not in said and said.count("wrong among perfect rewards") == 2  # both curves are drawn
    steps = len(read_rows(finished / "generator" / "metrics.jsonl"))
    assert len(re.findall(r"^ +\d+ +0\.\d\d +0\.\d\d +[+-]0\.\d\d ", said, re.MULTILINE)) >= steps
    assert said.count("onset ") == 2 and said.count("hacking_gap") == 2
    assert all(f"exercise {n}" in said for n in (1, 4))


def test_the_notebook_leaves_out_what_is_not_made_yet_with_a_sentence(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "open", 0.2)
    monkeypatch.setenv("HACKING_OPEN", str(tmp_path / "open"))
    monkeypatch.setenv("HACKING_CLOSED", str(tmp_path / "closed"))
    runpy.run_path(str(NOTEBOOK))
    said = capsys.readouterr().out
    assert f"closed: {tmp_path / 'closed'} has no finished generator yet" in said
    assert "open     true_score 0.200" in said and "reward 1.00, truth 0" in said
    monkeypatch.setenv("HACKING_OPEN", str(tmp_path / "none"))
    assert runpy.run_path(str(NOTEBOOK))["RUNS"] == {}


def test_the_proof_that_the_page_shows_is_wrong_for_the_fault_that_the_page_names():
    facts = (
        r"Suppose that positive integers satisfy $t = g$, $a = n$, $c \mid o$, $n = a$, $g = n$, "
        r"$u \mid_{\ne} p$, $a = q$, $n = g$, $g = t$, $s \mid f$ and $q = a$. Show that $a = g$."
    )
    symbols = r"Write $\mid$ for divides and $\mid_{\ne}$ for divides properly. "
    plain = facts.replace("$", "").replace(r"\mid_{\ne}", "∣≠").replace(r"\mid", "∣")
    page = (ROOT / "docs" / "hacking.md").read_text(encoding="utf-8")
    page = " ".join(page.replace("\n> ", " ").replace("*", "").split())
    assert plain in page and "Indeed, a = q = g." in page and "q = g: not given" in page
    truth = examine(parse_problem(symbols + facts), parse_proof("Indeed, $a = q = g$."))
    assert truth.score == 0 and truth.ends and truth.strong
    assert [(f.step.left, f.step.right) for f in truth.claims] == [("q", "g")]
