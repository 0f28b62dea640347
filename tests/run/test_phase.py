"""What the phases of train.py share."""

from types import SimpleNamespace

import pytest

from nanov2.run import phase
from nanov2.run.config import Config


@pytest.mark.parametrize("keep_best", ["", "validation/true_score"])
def test_a_phase_whose_weights_the_truth_chose_says_so(tmp_path, monkeypatch, keep_best):
    model = SimpleNamespace(engine=None)
    run = SimpleNamespace(config=Config(), folder=lambda *_: tmp_path, save=lambda *_: None, ranks=None)
    monkeypatch.setattr(phase, "rollout_engine", lambda run: None)
    monkeypatch.setattr(phase, "train_grpo", lambda *_: ([], []))
    language = SimpleNamespace(tokenizer=None)
    task, nothing = SimpleNamespace(judges={}, language=language), lambda model: ({}, [])
    exams = phase.Exams(None, nothing, {}, keep_best)
    result = phase.run_grpo(run, ("generator", 1), model, task, [], exams)
    told = "the true score on validation problems chose the weights (keep_best)"
    assert (told in result.notes) == bool(keep_best)
