"""Benchmarks that go on from finished runs, on a run as small as it can be: all of each works, no more."""

import json
import math
import random
import shutil
import sys

import pytest
from scripts import ROOT, ends

from benchmarks import fooled, laps
from benchmarks.search import equal_tokens
from nanov2.errors import InputError
from nanov2.method.search import Pool
from nanov2.records import read_json


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "seed0")


def test_best_of_n_is_given_as_many_tokens_as_the_search_had():
    def hunt(pool, rounds):  # a first draft costs more than a further one
        return [Pool("x", tokens=100 + 40 * pool)] * 3

    assert equal_tokens(hunt, 1000, 4)[0].tokens == pytest.approx(1000, abs=20)


def benchmark(monkeypatch, script, *args):
    """Run a benchmark in this process, and its jobs in theirs; its exit status."""
    monkeypatch.setattr("sys.path", [str(ROOT), *sys.path])
    return ends(f"benchmarks/{script}", *args)


def test_question_measures_arms_critics_and_labels_and_goes_on(run, tmp_path, monkeypatch, capsys):
    args = [run, "--smoke", "--workers=1", f"--out={tmp_path / 'out'}", "--arms"]
    assert benchmark(monkeypatch, "question.py", *args, "gate-v2", "no-gate") == 0, capsys.readouterr().err
    found = read_json(tmp_path / "out" / "question.json")["seeds"][0]
    assert {"gate-v2", "gate-v2 start", "no-gate", "generator by no-gate", "label worst"} <= found.keys()
    assert found["gate-v2"]["judge_share"] > 0 and found["no-gate"]["labelled/critique_quality"] >= 0
    capsys.readouterr()
    assert benchmark(monkeypatch, "question.py", *args, "gate-v2") == 0
    told = capsys.readouterr()
    assert "jobs left" not in told.err and "`gate-v2`: gate of 4 looks" in told.out


def test_reading_tells_what_a_model_takes_for_given_by_kind_of_pair(finished, monkeypatch, capsys):
    assert benchmark(monkeypatch, "reading.py", finished / "base", "--problems=40") == 0
    head, _, row = capsys.readouterr().out.strip().splitlines()
    assert "both terms in place" in head
    shares = [cell.split() for cell in row.split("|")[2:5]]
    assert all(0 <= float(share) <= 1 and int(n) > 5 for share, _, n in shares)


def test_every_generator_is_put_before_every_judge(finished, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    run.symlink_to(finished)
    arm = tmp_path / "run-question" / "mean-v2"
    arm.mkdir(parents=True)
    (arm / "generator").symlink_to(finished / "generator")
    (tmp_path / "question.md").write_text("<!-- fooled -->\n<!-- end fooled -->\n")
    assert benchmark(monkeypatch, "fooled.py", run, "--problems=10", f"--out={tmp_path}") == 0
    found = read_json(tmp_path / "fooled.json")["run"]
    assert found.keys() == {"base", "mean-v2"} and found["base"].keys() == {"faults", "base", "v1", "v2"}
    row = found["mean-v2"]["v1"]
    assert row["gap"] == pytest.approx(row["reward"] - row["truth"], nan_ok=True)
    page = (tmp_path / "question.md").read_text()
    assert "| `mean-v2` | v2 |" in page and "| proofs | base passes | v1 passes | v2 passes |" in page


def test_looks_agree_as_far_as_their_differences_lie_between_proofs():
    assert fooled.agreement([[1.0, 1.0], [0.0, 0.0]]) == 1.0
    assert fooled.agreement([[1.0, 0.0], [0.0, 1.0]]) == -1.0  # less alike than looks at different proofs
    rng = random.Random(0)
    drawn_anew = [[float(rng.random() < 0.3) for _ in range(8)] for _ in range(2000)]
    assert fooled.agreement(drawn_anew) == pytest.approx(0.0, abs=0.02)
    assert math.isnan(fooled.agreement([[0.0, 0.0], [0.0, 0.0]]))


def test_laps_go_on_with_labels_and_without_from_the_same_first_lap(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert benchmark(monkeypatch, "laps.py", run, "--laps=2", "--workers=1", f"--out={out}") == 0
    sides = read_json(out / "laps.json")["seeds"][0]
    ours, theirs = sides["with labels"], sides["without"]
    newest = "verifier's score accuracy on the newest proofs, T = 0"
    assert (
        ours["1"] == theirs["1"] and newest not in ours["1"] and newest in ours["2"] and newest in theirs["2"]
    )
    with_labels, without = tmp_path / "seed0-laps", tmp_path / "seed0-laps-no-labels"
    for side in (ours, theirs):  # in lap 2 the newest proofs of both are the same
        own = side["2"]["verifier's score accuracy on its own run's newest proofs, T = 0"]
        assert side["2"][newest] == pytest.approx(own, abs=1e-4)
    for name in ("selfverify/eval.json", "autolabel/labels.jsonl"):  # the lap that both begin from
        assert (with_labels / name).read_bytes() == (without / name).read_bytes()
    joined = [
        len((side / "autolabel" / "dv.jsonl").read_text().split("\n")) for side in (with_labels, without)
    ]
    assert joined[0] > joined[1]
    assert "| difference | – |" in (out / "results.md").read_text()
    assert "Laps with automatic labels and without" in (with_labels / "report.html").read_text()


@pytest.mark.parametrize(
    "changed, flag, told",
    [
        ({}, "--generator.lr=1e-4", "would change the first lap"),
        ({"autolabel": {"grow": False}}, "--lap_generator.lr=1e-4", "was made without labels"),
        ({"world": {"lap_chain": 1}}, "--laps=4", "get harder over 2 laps: give --laps=2"),
    ],
)
def test_laps_that_would_make_the_first_lap_anew_are_refused(tmp_path, monkeypatch, changed, flag, told):
    (tmp_path / "config.json").write_text(json.dumps(changed))
    monkeypatch.setattr("sys.argv", ["laps.py", str(tmp_path), flag])
    with pytest.raises(InputError, match=told):
        laps.main()


def test_ablations_do_again_what_a_setting_touches(run, tmp_path, monkeypatch, capsys):
    out, names = tmp_path / "out", ("no-meta-gate", "hardest-labels")
    only = [f"--only={name}" for name in names]
    assert benchmark(monkeypatch, "ablations.py", run, "--workers=1", f"--out={out}", *only) == 0
    found = read_json(out / "ablations.json")["variants"]
    assert [name for name, pairs in found.items() if pairs] == list(names)
    assert found["no-meta-gate"][0]["changed"].keys() >= {"labelled/critique_quality@T0"}
    folder = tmp_path / "seed0-hardest-labels"
    assert read_json(folder / "config.json")["autolabel"]["most"] == 600
    assert (folder / "lap2" / "verifier2" / "phase.json").is_file()
    assert not (folder / "lap2" / "generator").exists()
    assert "| `hardest-labels` | hard/score_accuracy |" in (out / "results.md").read_text()


def test_results_puts_mean_and_each_seed_into_the_page(finished, tmp_path, monkeypatch, capsys):
    runs = [tmp_path / f"seed{i}" for i in range(2)]
    for folder in runs:
        folder.symlink_to(finished)
    assert benchmark(monkeypatch, "results.py", *runs, f"--out={tmp_path}") == 0, capsys.readouterr().err
    page = (tmp_path / "results.md").read_text()
    assert "| 1B | score accuracy, base → v1 |" in page and "| figure | T | seed0 | seed1 |" in page
    assert "± 0.000" in page and "the same, θ v1 → θ v2" in page


def test_results_keeps_the_seeds_that_were_measured_before(finished, tmp_path, monkeypatch, capsys):
    for name in ("seed0", "seed1"):
        (tmp_path / name).symlink_to(finished)
        command = (tmp_path / name, f"--out={tmp_path}", "--keep")
        assert benchmark(monkeypatch, "results.py", *command) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["runs"] == ["seed0", "seed1"]
    for row in found["rows"]:
        for key in [key for key in ("T=1", "T=0") if key in row]:
            first, second = row[key]["after"]
            assert first == second
