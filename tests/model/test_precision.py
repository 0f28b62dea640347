"""Products in bf16: what stays in fp32, and how near sampler and trainer are."""

import dataclasses

import pytest
import torch
from conftest import small_model, some_problems
from test_deepseek import EXPERTS, LATENT

from nanov2.distributed.ranks import Ranks
from nanov2.distributed.sharding import place
from nanov2.errors import InputError
from nanov2.model import experts, layers
from nanov2.model.experts import ExpertsConfig, Stacked
from nanov2.model.layers import Linear, RMSNorm, rotate
from nanov2.model.packing import Completion, collate, make_packs
from nanov2.model.rollout import Sampling
from nanov2.model.sampler import sample
from nanov2.rl.grpo import batch_logprobs
from nanov2.rl.optimizer import make_optimizer

DEEPSEEK = {"latent": LATENT, "experts": EXPERTS, "n_kv_heads": 4}


def packed(questions, rollouts):
    packs = [
        p
        for g, q in enumerate(questions)
        for p in make_packs(q, [Completion(r.ids, r.sampled, g) for r in rollouts if r.group == g], 10_000)
    ]
    return collate(packs)


@pytest.mark.parametrize("shape", [{}, {"qk_norm": True, "qkv_bias": True, "tie_embeddings": True}, DEEPSEEK])
def test_C23_in_bf16_the_sampler_is_nearly_the_trainer(tokenizer, prompts, shape):
    model = small_model(tokenizer, **({"dim": 64} | shape))
    model.set_precision("bf16")
    questions = [prompts.ids(prompts.prove(p.text)) for p in some_problems(6)]
    rollouts = sample(model, tokenizer, questions, 8, Sampling(1.0, 30), 0)
    ratios = []
    with torch.no_grad():
        for g, question in enumerate(questions):
            for r in rollouts[g * 8 : g * 8 + 8]:
                batch = packed([question], [dataclasses.replace(r, group=0)])
                ratios.append(batch_logprobs(model, batch, 1.0) - torch.tensor(r.logprobs))
    off = torch.cat(ratios).abs()
    assert 0 < off.max() < 0.05 and (off < 0.01).float().mean() > 0.98


# Every token goes to all of these experts: where rounding sends one to another expert, gradients do differ.
ALL_EXPERTS = DEEPSEEK | {"experts": ExpertsConfig(2, 2, 16)}


@pytest.mark.parametrize("shape", [{}, {"qkv_bias": True}, ALL_EXPERTS])
def test_in_bf16_gradients_are_in_fp32_and_near_those_of_fp32(tokenizer, prompts, shape):
    model = small_model(tokenizer, **shape)
    questions = [prompts.ids(prompts.prove(p.text)) for p in some_problems(3)]
    batch = packed(questions, sample(model, tokenizer, questions, 4, Sampling(1.0, 12), 0))

    def gradient(precision):
        model.set_precision(precision)
        model.zero_grad()
        batch_logprobs(model, batch, 1.0).mean().backward()
        found = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(g.dtype == torch.float32 for g in found)
        return torch.cat([g.flatten() for g in found])

    exact, half = gradient("fp32"), gradient("bf16")
    assert 0 < (exact - half).norm() < 0.03 * exact.norm()
    assert torch.equal(gradient("fp32"), exact)


def test_weights_are_copied_to_bf16_when_they_have_changed_and_not_before():
    layer, x = Linear(8, 4, bias=False), torch.randn(3, 8)
    layer.in_bf16 = True
    for optimizer in (torch.optim.AdamW(layer.parameters(), lr=0.1), make_optimizer(layer, 0.1, 0.0)):
        before = layer(x)
        copy = layer._copy[1]
        layer(x).sum().backward()
        assert layer._copy[1] is copy
        optimizer.step()
        assert not torch.equal(layer(x), before) and torch.equal(layer._copy[1], layer.weight.bfloat16())
    layer.load_state_dict({"weight": torch.ones(4, 8)})
    assert torch.equal(layer(torch.ones(1, 8)).float(), torch.full((1, 4), 8.0))


def test_what_is_multiplied_in_parts_is_copied_once_too_with_the_gradient_of_a_cast(tokenizer):
    model, packs = (
        small_model(tokenizer, **DEEPSEEK),
        make_packs([1, 2], [Completion([3] * 4, [True] * 4)], 9),
    )
    model.set_precision("bf16")

    def gradients():
        model.zero_grad()
        batch_logprobs(model, collate(packs), 1.0).sum().backward()
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    found = gradients()
    parts = [m for m in model.modules() if isinstance(m, Stacked)]
    copies = [half for m in parts for _, half in m._copies.values()]
    copies += [layer.self_attn.kv_b_proj._copy[1] for layer in model.layers]
    with torch.no_grad():
        batch_logprobs(model, collate(packs), 1.0)
    again = [half for m in parts for _, half in m._copies.values()]
    again += [layer.self_attn.kv_b_proj._copy[1] for layer in model.layers]
    assert len(copies) > 3 and all(a is b for a, b in zip(copies, again, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        for module in (layers, experts):
            patch.setattr(module, "rounded", lambda weight, half: weight.bfloat16())
        for a, b in zip(found, gradients(), strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


def test_norm_and_rotation_have_the_gradients_of_their_formulas():
    torch.manual_seed(0)
    norm, x = RMSNorm(6, 1e-5), torch.randn(2, 3, 5, 6, requires_grad=True)
    torch.nn.init.normal_(norm.weight)
    angle = torch.randn(2, 1, 5, 3)
    cos, sin = (torch.cat([t, t], dim=-1) for t in (angle.cos(), angle.sin()))
    out = torch.randn(2, 3, 5, 6)

    def plain_rotation(x):
        a, b = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-b, a], dim=-1) * sin

    formulas = (
        (norm, lambda x: torch.nn.functional.rms_norm(x, (6,), norm.weight, 1e-5)),
        (lambda x: rotate(x, cos, sin), plain_rotation),
    )
    for ours, theirs in formulas:
        found = torch.autograd.grad(ours(x), [x], out)[0]
        assert torch.allclose(ours(x), theirs(x), atol=1e-6)
        assert torch.allclose(found, torch.autograd.grad(theirs(x), [x], out)[0], atol=1e-6)
    ours = torch.autograd.grad(norm(x), [norm.weight], out)[0]
    assert torch.allclose(ours, torch.autograd.grad(formulas[0][1](x), [norm.weight], out)[0], atol=1e-5)


def test_C26_shards_on_one_rank_are_refused(model):
    ranks = Ranks()
    ranks.use("full", "fp32")
    with pytest.raises(InputError, match="shard=full wants several ranks.*torchrun"):
        place(model, ranks)


def test_auto_takes_the_precision_of_the_hardware_and_says_so(monkeypatch, capsys):
    for fast, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setitem(Ranks.use.__globals__, "fast_bf16", lambda device, fast=fast: fast)
        ranks = Ranks()
        ranks.use("none", "auto")
        assert ranks.precision == precision and f"precision: {precision}" in capsys.readouterr().err
