"""Latent attention and experts in training and sampling; test_hf.py compares them with transformers."""

import json

import pytest
import torch
from conftest import small_model, some_problems
from test_sampler import LATENT, packs_of

from nanov2.distributed.checkpoints import fingerprint
from nanov2.distributed.ranks import Ranks
from nanov2.hub.chat import load_model, save_model
from nanov2.model.experts import Experts, ExpertsConfig, balance, grouped_product
from nanov2.model.packing import Completion, collate, make_packs, micro_batches
from nanov2.model.rollout import Sampling
from nanov2.model.sampler import sample
from nanov2.rl.grpo import batch_logprobs

EXPERTS = ExpertsConfig(
    n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=16, n_group=3, topk_group=2
)


@pytest.fixture
def deepseek(tokenizer):
    return small_model(tokenizer, latent=LATENT, experts=EXPERTS, n_kv_heads=4)


def logprobs(model, packs, micro):
    """By row, of every completion's tokens."""
    out = {}
    for part in micro_batches(packs, micro):
        batch = collate(part)
        pieces = batch_logprobs(model, batch, 1.0).split(batch.offsets.diff().tolist())
        out |= dict(zip(batch.rows.tolist(), pieces))
    return out


def test_C7_the_cache_of_latents_gives_the_trainers_logprobs(tokenizer, prompts, deepseek):
    questions = [prompts.ids(prompts.prove(p.text)) for p in some_problems(5)]
    rollouts = sample(deepseek, tokenizer, questions, 4, Sampling(1.0, 40), 3)
    assert any(len(r.ids) > 33 for r in rollouts)  # more than one block of the cache
    with torch.no_grad():
        trained = logprobs(deepseek, packs_of(questions, rollouts), 400)
    for i, rollout in enumerate(rollouts):
        assert torch.allclose(trained[i], torch.tensor(rollout.logprobs), atol=2e-5)


def test_the_cache_holds_one_vector_a_token(deepseek):
    from nanov2.model.cache import Cache

    cache = Cache(deepseek.config, 2, 1, 5, deepseek.output_weight)
    assert cache.prompt_kv.shape[1:] == (1, 1, 1, 5, LATENT.kv_lora_rank + LATENT.qk_rope_head_dim)


def test_C7_a_shared_prompt_gives_the_gradients_of_separate_rows(tokenizer, prompts, deepseek):
    questions = [prompts.ids(prompts.prove(p.text)) for p in some_problems(3)]
    rollouts = sample(deepseek, tokenizer, questions, 3, Sampling(1.0, 12), 3)

    def gradients(packs):
        deepseek.zero_grad()
        found = logprobs(deepseek, packs, 4096)
        sum((1 + i) * p.sum() for i, p in found.items()).backward()
        return {n: p.grad for n, p in deepseek.named_parameters() if p.requires_grad}

    rows = [
        make_packs(questions[r.group], [Completion(r.ids, r.sampled, i)], 1) for i, r in enumerate(rollouts)
    ]
    shared, separate = gradients(packs_of(questions, rollouts)), gradients([p for (p,) in rows])
    for name, grad in shared.items():
        assert torch.allclose(grad, separate[name], atol=1e-4), name


def test_every_expert_has_a_gradient_even_without_tokens(deepseek):
    layer = deepseek.layers[0].mlp
    layer(torch.randn(1, 1, 32)).sum().backward()
    assert all(p.grad is not None for p in layer.experts.parameters())
    assert sum(bool(g.any()) for g in layer.experts.up_proj.grad) == 2


def test_the_bias_evens_the_load_out_and_leaves_the_weights_alone():
    config = ExpertsConfig(
        n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=4, balance_rate=0.005
    )
    torch.manual_seed(0)
    layer = Experts(16, config)
    for p in layer.experts.parameters():
        torch.nn.init.normal_(p, std=0.25)
    torch.nn.init.normal_(layer.gate.weight)
    layer.gate.weight.data[0] *= 0.1
    x = torch.randn(4000, 16) + 0.5  # some experts are far more likely than others

    def uneven():
        layer(x)
        return float(layer.load.max() / (layer.load.sum() / 8))

    before, weights = uneven(), layer.gate(x)[0]
    layer.load = None
    for _ in range(200):
        layer(x)
        balance(layer, Ranks())
    assert before > 1.5 and uneven() < 1.1
    scores = (x @ layer.gate.weight.T).sigmoid()
    chosen = scores.gather(1, layer.gate(x)[1])
    assert torch.allclose(layer.gate(x)[0], chosen / chosen.sum(1, keepdim=True))  # no bias in them
    assert weights.shape == (4000, 2)


def test_nothing_is_counted_while_sampling(deepseek, tokenizer, prompts):
    sample(
        deepseek, tokenizer, [prompts.ids(prompts.prove(some_problems(1)[0].text))], 2, Sampling(1.0, 8), 0
    )
    assert deepseek.layers[0].mlp.load is None


def test_checkpoints_hold_the_bias_and_the_shape(deepseek, tokenizer, tmp_path):
    deepseek.layers[1].mlp.gate.e_score_correction_bias.data += 0.25
    save_model(tmp_path, deepseek, tokenizer)
    again, _ = load_model(tmp_path)
    assert again.config == deepseek.config and fingerprint(again) == fingerprint(deepseek)
    assert not again.layers[1].mlp.gate.e_score_correction_bias.requires_grad
    json.dumps(again.config.to_dict())


def test_active_parameters_are_those_that_a_token_meets(deepseek):
    one = sum(p[0].numel() for p in deepseek.layers[0].mlp.experts.parameters())
    assert deepseek.n_params - deepseek.n_active == 2 * 4 * one


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(n_group=4), "6 n_routed_experts are not in 4 equal groups"),
        (dict(num_experts_per_tok=5, n_group=3, topk_group=2), "num_experts_per_tok 5"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    shape = dict(n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=4)
    with pytest.raises(ValueError, match=message):
        ExpertsConfig(**shape | changes)


def test_a_grouped_product_is_one_product_for_each_expert_and_so_are_its_gradients():
    torch.manual_seed(0)
    x, weight = torch.randn(10, 16), torch.randn(4, 24, 16)
    counts = torch.tensor([3, 0, 5, 2])
    which = torch.arange(4).repeat_interleave(counts)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        a, w = (t.to(dtype, copy=True).requires_grad_() for t in (x, weight))
        found = grouped_product(a, w, counts)
        want = torch.einsum("nd,nod->no", x, weight[which])
        assert torch.allclose(found.float(), want, atol=10 * tolerance, rtol=tolerance)
        found.float().pow(2).sum().backward()
        dw = torch.zeros_like(weight).index_add(0, which, 2 * want[:, :, None] * x[:, None])
        assert torch.allclose(w.grad.float(), dw, atol=200 * tolerance, rtol=10 * tolerance)


def test_a_softmax_router_has_no_bias_and_is_left_alone_by_balance():
    shape = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, n_shared_experts=0)
    layer = Experts(16, ExpertsConfig(**shape, scores="softmax"))
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.3)
    before = {name: p.clone() for name, p in layer.named_parameters()}
    layer(torch.randn(3, 16)).sum().backward()
    balance(layer, Ranks())
    assert before.keys() == {"gate.weight", "experts.gate_proj", "experts.up_proj", "experts.down_proj"}
    assert all(torch.equal(p, before[name]) for name, p in layer.named_parameters()) and layer.load is None
