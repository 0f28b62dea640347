"""No figure's texts are sampled twice, and figures are those that would be sampled."""

import dataclasses

import pytest
import torch
from conftest import small_model, some_problems, some_proofs

from nanov2.domains.order.domain import OrderTruth
from nanov2.method import figures, memory
from nanov2.method.figures import Bench
from nanov2.method.memory import Memory
from nanov2.records import ProblemRecord, ProofRecord
from nanov2.rl.optimizer import make_optimizer
from nanov2.run.config import load_config

PROBLEMS = [ProblemRecord(p.text) for p in some_problems(6)]
PROOFS = [ProofRecord(p.text, text, 1.0) for p, text in some_proofs(6)]


@pytest.fixture
def sampled(monkeypatch):
    """How many prompts were sampled, call by call."""
    calls, sample = [], figures.sample

    def count(model, tokenizer, prompts, *args):
        calls.append(len(prompts))
        return sample(model, tokenizer, prompts, *args)

    monkeypatch.setattr(figures, "sample", count)
    return calls


@pytest.fixture
def bench(prompts, ranks):
    return Bench.of(prompts, OrderTruth(), load_config("configs/smoke.toml"), ranks, Memory())


def measured(bench, model):
    """All kinds of figures, at both temperatures."""
    return [
        figure
        for b in (bench, bench.greedy())
        for figure in (
            b.generator(model, PROBLEMS, "labelled"),
            b.verifier(model, PROOFS, "labelled"),
            b.selfverify(model, PROBLEMS, "labelled"),
        )
    ] + [bench.pass_at_k(model, PROBLEMS, "hard")]


def test_figures_are_those_without_a_memory_and_nothing_is_sampled_twice(tokenizer, bench, sampled):
    plain = measured(dataclasses.replace(bench, memory=None), small_model(tokenizer))
    sampled.clear()
    assert measured(bench, small_model(tokenizer)) == plain
    assert len(sampled) == 7
    assert measured(bench, small_model(tokenizer)) == plain  # such as the base, loaded again
    assert len(sampled) == 7


def test_the_best_temperature_uses_what_was_written_before_training_at_0_and_1(model, bench, sampled):
    for b in (bench, bench.greedy()):
        b.generator(model, PROBLEMS, "labelled")
    before = len(sampled)
    for temperature in (0.0, 0.3, 1.0):
        bench.at(temperature).generator(model, PROBLEMS, "labelled")
    assert len(sampled) == before + 1


@pytest.mark.parametrize("what", ["weights", "precision", "questions", "limit", "seed"])
def test_what_texts_depend_on_makes_others(model, bench, sampled, what):
    bench.generator(model, PROBLEMS, "labelled")
    if what == "weights":
        with torch.no_grad():
            model.norm.weight[0] += 1e-6
    if what == "precision":
        model.set_precision("bf16")
    limit = dataclasses.replace(bench.config.generator, max_tokens=9)
    changed = {
        "limit": dataclasses.replace(bench.config, generator=limit),
        "seed": dataclasses.replace(bench.config, seed=7),
    }
    other = dataclasses.replace(bench, config=changed.get(what, bench.config))
    other.generator(model, PROBLEMS[1:] if what == "questions" else PROBLEMS, "labelled")
    assert len(sampled) == 2


def test_weights_in_the_midst_of_training_are_not_kept_and_the_oldest_texts_go_first(model, bench, sampled):
    for _ in range(2):
        bench.at_step(20).generator(model, PROBLEMS, "validation")
    assert len(sampled) == 2
    small = dataclasses.replace(bench, memory=Memory(most=1))
    for _ in range(2):
        small.generator(model, PROBLEMS, "labelled")
    assert len(sampled) == 3
    small.verifier(model, PROOFS, "labelled")
    small.generator(model, PROBLEMS, "labelled")
    assert len(sampled) == 5


def test_weights_are_hashed_once_until_they_change(model, bench, monkeypatch):
    hashed, fingerprint = [], memory.fingerprint
    monkeypatch.setattr(memory, "fingerprint", lambda m: hashed.append(m) or fingerprint(m))
    for b in (bench, bench.greedy(), bench.at(0.3)):
        b.generator(model, PROBLEMS, "labelled")
        b.verifier(model, PROOFS, "labelled")
    assert len(hashed) == 1
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    make_optimizer(model, 1e-3, 0.0).step()  # in one kernel, which must tell
    bench.generator(model, PROBLEMS, "labelled")
    assert len(hashed) == 2
    model.load_state_dict({name: p.clone() for name, p in model.state_dict().items()}, assign=True)
    bench.generator(model, PROBLEMS, "labelled")  # other tensors, even where an old one lay
    assert len(hashed) == 3
    model.norm.weight.data = model.norm.weight.data.clone()
    bench.generator(model, PROBLEMS, "labelled")
    bench.generator(small_model(bench.language.tokenizer), PROBLEMS, "labelled")
    assert len(hashed) == 5


def test_an_engine_is_asked_every_time(model, bench):
    model.engine, asked = object(), []
    for _ in range(2):
        bench.memory.recall(model, ("answers", []), bench._sampling(bench.config.generator), 0, lambda: asked)
        asked.append(1)
    assert bench.memory.recall(model, (), bench._sampling(bench.config.generator), 0, lambda: asked) is asked
