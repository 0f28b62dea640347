"""Held-out figures: per type of problem, and beside the start at its best temperature."""

import dataclasses

import pytest

from nanov2.method.figures import Bench, type_table, without_types
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
