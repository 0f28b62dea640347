"""A second domain in one file of at most 80 lines: the example of nanov2/domains/domain.py, word for word."""

import json

import pytest
from conftest import example_domain
from scripts import ROOT, run

from nanov2.distributed.ranks import derive_rng
from nanov2.domains.domain import open_domain
from nanov2.run.config import load_config
from nanov2.run.costs import shape_of


@pytest.fixture(scope="module")
def example():
    return example_domain()


@pytest.fixture
def sums(example, tmp_path, monkeypatch):
    (tmp_path / "sums.py").write_text(example)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_example_is_short(example):
    assert len(example.splitlines()) <= 80


def test_the_example_keeps_the_interfaces(sums):
    domain = open_domain(load_config(ROOT / "configs" / "smoke.toml", ["--domain=sums:Sums"]))
    sets, language = domain.problems(), domain.language(domain.start()[1])
    problems = [r.problem for records in [*sets.values(), *[domain.new_problems(1, 30)]] for r in records]
    assert len(problems) == len(set(problems))
    scores = set()
    for i in range(40):
        shown = domain.demonstration(derive_rng(i), 1.0)
        (_, answer), (_, critique), (_, meta) = shown.turns
        score = domain.truth.score(shown.problem, language.read_proof(answer).text)
        assert language.claimed_score(critique) == score
        assert domain.truth.examine(shown.problem, language.read_proof(answer).text, critique).quality == 1
        assert language.claimed_quality(meta) == 1
        tokenizer = language.tokenizer
        assert tokenizer.decode(tokenizer.encode(critique)) == critique
        scores.add(score)
    assert scores == {0.5, 1.0}
    assert domain.truth.score(problems[0], "no chain") == 0
    assert problems[0] in domain.view(sets["train"][0]).statement


def test_a_plan_is_of_the_examples_own_tokens(sums):
    config = load_config(ROOT / "configs" / "smoke.toml", ["--domain=sums:Sums"])
    assert shape_of(config) == open_domain(config).start()[0].config


def test_the_whole_cycle_runs_on_the_example(sums, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(sums))
    flags = ["--domain=sums:Sums", f"--dir={sums / 'run'}", "--base.steps=240", "--grpo.steps=2"]
    code, _, err = run("train.py", "--config=configs/smoke.toml", *flags, "--autolabel.problems=8")
    assert code == 0, err
    figures = json.loads((sums / "run" / "lap2" / "selfverify" / "eval.json").read_text())["after"]
    assert figures["hard/final_true_score"]["n"] > 0
    assert (sums / "run" / "report.html").is_file()
