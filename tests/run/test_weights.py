"""The models that come with nanov2: packed from a run, and used by sample.py where no run is at hand."""

import json

import pytest
from conftest import small_model
from safetensors.torch import load_file
from scripts import ROOT, inside

from benchmarks.ship import last_folder, ship
from nanov2.distributed.ranks import Ranks
from nanov2.domains.order.tokenizer import order_tokenizer
from nanov2.errors import InputError
from nanov2.run import authors, cli
from nanov2.run.config import load_config
from nanov2.run.folder import Run

FEW = ["--world.held_out=4", "--world.validation=2", "--world.problems=20", "--world.hard_problems=10"]


@pytest.fixture
def trained(tmp_path):
    return random_run(tmp_path / "runs" / "a")


def random_run(folder):
    """A run of two laps with models of random weights."""
    a = Run(folder, load_config("configs/smoke.toml", FEW), Ranks())
    a.claim()
    tokenizer = order_tokenizer()
    for seed, (phase, lap) in enumerate([("meta", 1), ("verifier2", 1), ("verifier2", 2), ("selfverify", 2)]):
        a.begin(phase, lap)
        a.save(phase, lap, small_model(tokenizer, seed), tokenizer)
        found = {"hard/false_accept_rate": {"value": 0.25, "n": 40, "low": 0.1, "high": 0.4}}
        a.write(phase, lap, "eval.json", {"before": {}, "after": found, "curve": []})
        a.write(phase, lap, "samples.jsonl", [])
        a.finish(phase, lap, 1.0)
    a._held.release()
    return a.dir


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory without runs; the weights are those of this test."""
    for module in (cli, authors):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path / "weights")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def test_the_last_models_are_packed_in_half_precision_with_figures_and_report(trained, tmp_path):
    ship(trained, tmp_path / "weights")
    folders = tmp_path / "weights" / "verifier2", trained / "lap2" / "verifier2"
    new, old = (load_file(folder / "model.safetensors") for folder in folders)
    assert all((new[name] == old[name].half()).all() for name in old)
    assert (tmp_path / "weights" / "report.html").is_file()
    assert json.loads((tmp_path / "weights" / "verifier2" / "phase.json").read_text())["lap"] == 1
    ship(trained, tmp_path / "weights")  # again, over the old ones
    assert last_folder(trained, "verifier2") == trained / "lap2" / "verifier2"


@pytest.mark.parametrize("mode", ["prove", "refine", "search", "verify", "meta"])
def test_without_a_run_nanov2s_own_models_answer_and_are_named(trained, elsewhere, capsys, mode):
    ship(trained, elsewhere / "weights")
    stated = "Suppose that sets satisfy $c = f$ and $f \\subset q$. Show that $c \\subset q$."
    args = {"verify": ["--proof=Indeed, $c = q$."], "meta": ["--proof=Indeed, $c = q$.", "--critique=No."]}
    short = ["--search.pool=2", "--search.n=2", "--search.rounds=1", "--rounds=2"]
    short += [f"--{name}.max_tokens=24" for name in ("verifier", "meta", "selfverify")]
    inside("sample.py", mode, f"--problem={stated}", *args.get(mode, []), *short)
    out, err = capsys.readouterr()
    assert f"models of the default run, from {elsewhere / 'weights'}" in err and stated in out
    assert not list((elsewhere / "empty").iterdir())


def test_a_run_that_is_there_comes_first_and_a_named_one_is_never_replaced(trained, elsewhere):
    ship(trained, elsewhere / "weights")
    with pytest.raises(InputError, match="runs/b/generator is missing"):
        inside("sample.py", "prove", "--dir=runs/b")
    (elsewhere / "empty" / "runs" / "proofworld").mkdir(parents=True)
    with pytest.raises(InputError, match="runs/proofworld/generator is missing"):
        inside("sample.py", "prove")


def test_without_a_run_and_without_models_one_line_says_what_to_do(elsewhere):
    with pytest.raises(InputError, match="no models come with.*train.py --phase=flywheel.*--dir=RUN"):
        inside("sample.py", "prove")


def test_models_that_come_with_nanov2_are_whole():
    if (ROOT / "weights" / "config.json").is_file():
        run = Run(ROOT / "weights", load_config(ROOT / "weights" / "config.json"), Ranks())
        for phase in ("meta", "verifier2", "selfverify"):
            run.load(phase)
        assert sum(p.stat().st_size for p in run.dir.rglob("*") if p.is_file()) < 40e6
