"""What a phase takes of its process."""

import sys

import numpy as np
import pytest
from conftest import some_problems

from nanov2.model.rollout import Sampling
from nanov2.model.sampler import sample
from nanov2.run import meter
from nanov2.run.meter import Meter


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux")
def test_a_later_phase_has_its_own_peak_of_memory():
    counted = Meter()
    counted.start()
    if not counted.owns_peak:
        pytest.skip("this system does not count anew")
    large = np.ones(64 << 20, dtype=np.uint8)  # a mapping of its own, given back at once
    first = counted.memory()
    del large
    counted.start()
    second = counted.memory()
    counted.stop()
    assert first["memory_of"] == second["memory_of"] == "phase"
    assert second["peak_memory_mb"] < first["peak_memory_mb"] - 50


def test_where_the_system_does_not_tell_the_peak_is_called_the_processs(monkeypatch, tmp_path):
    monkeypatch.setattr(meter, "PROC", tmp_path / "none")
    counted = Meter()
    counted.start()
    counted.stop()
    found = counted.memory()
    assert found["memory_of"] == "process" and found["peak_memory_mb"] >= 0


def test_tokens_are_those_that_models_sampled_since_the_start(model, tokenizer, prompts):
    asked, how = [prompts.ids(prompts.prove(p.text)) for p in some_problems(3)], Sampling(max_tokens=4)
    sample(model, tokenizer, asked, 2, how, 0)
    counted = Meter()
    for _ in range(2):  # a phase after another
        counted.start()
        rollouts = sample(model, tokenizer, asked, 2, how, 0)
        assert counted.tokens == sum(map(len, (r.ids for r in rollouts))) > 0
    counted.stop()
    sample(model, tokenizer, asked, 2, how, 0)
    assert counted.tokens == sum(map(len, (r.ids for r in rollouts)))
