"""The compiled decoding step against the one in PyTorch and against the trainer."""

import dataclasses

import pytest
import torch
from conftest import small_model, some_problems

from nanov2.kernels import decode_step
from nanov2.model import compiled
from nanov2.model.cache import BLOCK
from nanov2.model.compiled import CompiledCache, cache_for
from nanov2.model.packing import Completion, collate, make_packs
from nanov2.model.rollout import Sampling
from nanov2.model.sampler import sample
from nanov2.rl.grpo import batch_logprobs

pytestmark = pytest.mark.skipif(decode_step.library() is None, reason="no C++ compiler")

SHAPES = [
    {},
    {"embed_conv": 0, "n_kv_heads": 1},
    {"n_heads": 1, "n_kv_heads": 1, "ffn_dim": 80, "tie_embeddings": True},
    {"dim": 96, "n_heads": 1, "n_kv_heads": 1, "n_layers": 1},  # a head of 6 vectors
]


def model_of(tokenizer, **changes):
    return small_model(tokenizer, **({"dim": 64, "n_heads": 4, "n_kv_heads": 4} | changes))


def questions_of(prompts, count=7):
    return [prompts.ids(prompts.prove(p.text)) for p in some_problems(count)]


def in_torch(monkeypatch, *args, **more):
    """The same sample without the compiled step."""
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "LARGEST", 0)
        return sample(*args, **more)


@pytest.mark.parametrize("shape", SHAPES)
def test_C7_samples_are_those_of_torch_and_log_probs_the_trainers(tokenizer, prompts, shape, monkeypatch):
    model, questions = model_of(tokenizer, **shape), questions_of(prompts)
    assert isinstance(cache_for(model, 1, 1, 1), CompiledCache)

    def again(rollout):
        return [tokenizer.task["verify"]] if len(rollout.turns) < 3 else None

    # rows end at different times, pass where their room doubles, wait, and are dropped
    how = Sampling(1.0, 2 * BLOCK + 9, batch_rows=9)
    args = (model, tokenizer, questions, 3, how, list(range(7)), again, 3)
    found, expected = sample(*args), in_torch(monkeypatch, *args)
    assert any(len(r.turns) > 1 for r in found) and max(len(r.ids) for r in found) > 2 * BLOCK
    assert [r.ids for r in found] == [r.ids for r in expected]
    with torch.no_grad():
        for i, question in enumerate(questions):
            rows = [Completion(r.ids, r.sampled, j) for j, r in enumerate(found) if r.group == i]
            batch = collate(make_packs(question, rows, 4096))
            sampled = torch.tensor([x for r in batch.rows.tolist() for x in found[r].logprobs])
            logp = batch_logprobs(model, batch, 1.0)
            assert torch.allclose(logp[batch.counted], sampled[batch.counted], atol=2e-5)


def test_C23_in_bf16_it_rounds_where_torch_does(tokenizer, prompts, monkeypatch):
    model = model_of(tokenizer)
    for p in model.parameters():
        p.data *= 1.5
    model.set_precision("bf16")
    args = (model, tokenizer, questions_of(prompts), 4, Sampling(1.0, 1), 5)  # a token after the prompt
    found, expected = sample(*args), in_torch(monkeypatch, *args)
    assert [r.ids for r in found] == [r.ids for r in expected]
    args = (model, tokenizer, questions_of(prompts), 4, Sampling(1.0, 12), 5)
    found, expected = sample(*args), in_torch(monkeypatch, *args)
    pairs = [(a, b) for a, b in zip(found, expected) if a.ids == b.ids]
    assert len(pairs) > 0.8 * len(found)
    gaps = torch.tensor([x - y for a, b in pairs for x, y in zip(a.logprobs, b.logprobs)]).abs()
    assert gaps.mean() < 2e-3 and gaps.max() < 0.05
    exact = in_torch(monkeypatch, model_of(tokenizer), *args[1:])
    assert [r.ids for r in exact] != [r.ids for r in found]  # as fp32 is not


def test_a_rows_bits_do_not_depend_on_its_neighbours_or_on_threads(tokenizer, prompts):
    model, questions = model_of(tokenizer), questions_of(prompts, 12)
    how, seeds = Sampling(1.0, 40), list(range(12))

    def bits(rollouts):
        return [(r.ids, r.logprobs) for r in rollouts]

    together = bits(sample(model, tokenizer, questions, 4, how, seeds))
    alone = [r for q, s in zip(questions, seeds) for r in sample(model, tokenizer, [q], 4, how, [s])]
    few = sample(model, tokenizer, questions, 4, dataclasses.replace(how, batch_rows=5), seeds)
    assert [ids for ids, _ in together] == [r.ids for r in alone] == [r.ids for r in few]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert bits(sample(model, tokenizer, questions, 4, how, seeds)) == together
    finally:
        torch.set_num_threads(threads)


def test_C16_new_weights_are_packed_anew(tokenizer, prompts, monkeypatch):
    model, questions = model_of(tokenizer), questions_of(prompts)
    args = (model, tokenizer, questions, 2, Sampling(1.0, 12), 3)
    before = sample(*args)
    packed = compiled._weights(model)
    assert compiled._weights(model) is packed
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    after = sample(*args)
    assert [r.ids for r in after] != [r.ids for r in before]
    assert [r.ids for r in after] == [r.ids for r in in_torch(monkeypatch, *args)]


def test_greedy_and_a_lower_temperature(tokenizer, prompts, monkeypatch):
    model, questions = model_of(tokenizer), questions_of(prompts)
    for temperature in (0.0, 0.6):
        args = (model, tokenizer, questions, 2, Sampling(temperature, 20), 3)
        found, expected = sample(*args), in_torch(monkeypatch, *args)
        assert [r.ids for r in found] == [r.ids for r in expected]
        for a, b in zip(found, expected):
            assert a.logprobs == pytest.approx(b.logprobs, abs=2e-5)


@torch.no_grad()
def test_C29_draws_have_the_frequencies_of_the_distribution_and_never_probability_0(tokenizer):
    model = model_of(tokenizer)
    V = tokenizer.vocab_size
    weight = torch.zeros_like(model.output_weight)
    weight[:, 0] = torch.tensor([0.0, 1.0, -2.0, 0.5] + [-1e9] * (V - 4))
    model.lm_head.weight.copy_(weight)
    rows = 40_000
    cache = cache_for(model, rows, 1, 1)
    hidden = torch.zeros(rows, 64)
    hidden[:, 0] = 1.0
    uniforms = torch.rand(rows, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    uniforms[0], uniforms[1] = 0.0, 1 - 2**-53
    tokens, logprobs = cache.draw(hidden, uniforms, torch.arange(rows), 0.7)
    expected = torch.softmax(weight[:, 0] / 0.7, 0)
    found = torch.bincount(tokens, minlength=V) / rows
    assert torch.allclose(found, expected, atol=0.01) and found[4:].sum() == 0
    assert tokens[:2].tolist() == [0, 3]
    assert torch.allclose(logprobs, expected.log()[tokens], atol=1e-6)


@pytest.mark.parametrize(
    "shape",
    [{"qkv_bias": True}, {"qk_norm": True}, {"dim": 32}, {"ffn_dim": 72}, {"n_heads": 8, "n_kv_heads": 8}],
)
def test_what_it_does_not_know_is_left_to_torch(tokenizer, shape):
    assert not isinstance(cache_for(model_of(tokenizer, **shape), 1, 1, 1), CompiledCache)


def test_without_a_compiler_torch_decodes(tokenizer, prompts, monkeypatch):
    model = model_of(tokenizer)
    for name, value in (("NANOV2_COMPILE", "0"), ("CXX", "/bin/false")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            patch.setenv("PATH", "")
            decode_step.library.cache_clear()
            assert decode_step.library() is None
            assert not isinstance(cache_for(model, 1, 1, 1), CompiledCache)
            assert sample(model, tokenizer, questions_of(prompts, 1), 1, Sampling(1.0, 5), 0)[0].ids
    decode_step.library.cache_clear()


def test_the_library_is_compiled_once_and_kept_for_its_owner(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    decode_step.library.cache_clear()
    assert decode_step.library() is not None
    (made,) = (tmp_path / "nanov2").iterdir()
    assert (tmp_path / "nanov2").stat().st_mode & 0o077 == 0
    when = made.stat().st_mtime_ns
    decode_step.library.cache_clear()
    assert decode_step.library() is not None and made.stat().st_mtime_ns == when
    decode_step.library.cache_clear()
