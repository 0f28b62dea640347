"""Held-out figures: per type of problem, and beside the start at its best temperature."""

import dataclasses
from unittest.mock import patch

import pytest
from conftest import some_proofs

from nanov2.domains.language import V_END, V_START
from nanov2.method.config import AutolabelConfig
from nanov2.method.consensus import Assessed
from nanov2.method.figures import Bench, Written, balanced, interval, type_table, without_types
from nanov2.method.labels import label_all, measure_labels
from nanov2.pages import legend
from nanov2.records import ProofRecord
from nanov2.run.config import load_config
from nanov2.run.phase import BEST, Result, at_best_temperature


@pytest.fixture
def bench(prompts, ranks):
    return Bench.of(prompts, None, load_config("configs/smoke.toml"), ranks)


def test_a_figure_per_type_is_the_mean_over_its_problems_and_stands_in_a_table_of_its_own(bench):
    items = [
        ProofRecord(f"problem {i}", "", 1.0, kind=f"{'sets' if i % 2 else 'groups'}, 2 steps")
        for i in range(20)
    ]
    columns = {"score_accuracy": [float(i % 2) for i in range(20)], "score_error": [0.5] * 20}
    assert not any("[" in name for name in bench._figures(columns, "hard", items))
    found = dataclasses.replace(bench, by_type=True)._figures(columns, "hard", items)
    assert found["hard/score_accuracy [sets]"]["value"] == 1
    assert found["hard/score_accuracy [groups]"]["value"] == 0
    assert without_types(found) == bench._figures(columns, "hard", items)
    result = Result(found, {})
    assert set(result.figures()["after"]) == {"hard/score_accuracy", "hard/score_error"}
    assert result.tables == [type_table({}, found)]
    assert result.tables[0]["rows"] == [["groups", "0.000 (n = 10)"], ["sets", "1.000 (n = 10)"]]


def test_the_best_temperature_is_chosen_on_validation_and_measured_on_held_out_items(bench):
    def figure(value):
        return {"value": value, "n": 1, "low": value, "high": value}

    def validate(b):
        return {"validation/true_score": figure(0.9 if b.temperature == 0.3 else 0.1)}

    def measure(b):
        return {"hard/true_score": figure(b.temperature)}

    found = at_best_temperature(bench, "validation/true_score", validate, measure)
    assert found[BEST]["hard/true_score"]["value"] == found[BEST]["temperature"]["value"] == 0.3
    assert at_best_temperature(bench, "validation/true_score", lambda b: {}, measure) == {}


def test_a_verifiers_figures_tell_how_many_of_its_full_marks_are_wrong(bench):
    (problem, proof), *_ = some_proofs(1)
    proofs = [ProofRecord(problem.text, proof, s) for s in (1.0, 0.5, 0.0, 0.0, 1.0)]
    texts = [f"{V_START}\n{V_END} \\boxed{{{s}}}" for s in (1, 1, 1, 0)] + [None]
    answers = [Written(text, text or "", text is None) for text in texts]
    with patch.object(Bench, "written", lambda self, *args: answers):
        figures, _ = bench.verifier(None, proofs, "hard")
    assert (figures["hard/false_accept_rate"]["value"], figures["hard/false_accept_rate"]["n"]) == (0.6667, 3)
    with patch.object(Bench, "written", lambda self, *args: answers[3:]):
        refuses, _ = bench.verifier(None, proofs[3:], "hard")
    assert "hard/false_accept_rate" not in refuses  # no full marks, no share


def test_labels_of_1_that_are_wrong_are_counted_against_the_truth():
    class Truth:
        def score(self, problem, proof):
            return float(proof)

    proofs = [ProofRecord(f"problem {i}", s) for i, s in enumerate(("1", "0", "0.5", "0", "1"))]
    given = [1.0, 1.0, 1.0, 0.0, None]
    critiques = [[Assessed("", s, s == 0, (1.0,) if s == 0 else ())] * 2 for s in given]
    labelled = label_all(proofs, critiques, AutolabelConfig(n=2))
    found = measure_labels(labelled, Truth(), AutolabelConfig(n=2))["hard/label_false_accept_rate"]
    assert (found["value"], found["n"]) == (0.6667, 3)


@pytest.mark.parametrize(
    "name", ["false_accept_rate", "self_false_accept_rate", "label_false_accept_rate", "self_false_accept"]
)
def test_every_share_of_full_marks_that_are_wrong_has_its_sentence(name):
    entry = legend.FIGURES[name]
    assert entry.better == legend.LOWER and "the share whose true score is less" in entry.sentence


def test_the_interval_of_balanced_accuracy_is_made_of_items_not_of_three_numbers():
    levels = [0.0] * 80 + [0.5] * 10 + [1.0] * 10
    right = [1.0, 0.0] * 40 + [1.0] * 10 + [0.0] * 10
    found = balanced(right, levels, list(range(100)))
    assert found["value"] == 0.5 and found["n"] == 100  # the mean of 0.5, 1 and 0
    parts = [interval(right[a:b], list(range(a, b))) for a, b in ((0, 80), (80, 90), (90, 100))]
    half = sum(((p["high"] - p["low"]) / 2) ** 2 for p in parts) ** 0.5 / 3
    assert found["high"] - found["value"] == pytest.approx(half, abs=1e-4)
    many = balanced(right * 9, levels * 9, list(range(900)))
    assert many["high"] - many["low"] < 0.6 * (found["high"] - found["low"])
