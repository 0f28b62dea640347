"""Updates of low rank: what they learn, what they cost, and that they become part of the weights."""

import torch
from conftest import small_model, some_problems
from test_sampler import packs_of

from nanov2.distributed.ranks import Ranks
from nanov2.distributed.sharding import place
from nanov2.hub import chat, hf
from nanov2.model.lora import LoraConfig, adapter_size, add_adapters, halved, linear_layers
from nanov2.model.packing import collate
from nanov2.model.rollout import Sampling
from nanov2.model.sampler import sample
from nanov2.rl.config import GRPOConfig
from nanov2.rl.grpo import batch_logprobs, train_on_groups
from nanov2.rl.optimizer import make_optimizer
from nanov2.rl.task import Group

LORA = LoraConfig(rank=4, alpha=8.0)


def adapted(tokenizer, drawn=True, half=False, **changes):
    model = small_model(tokenizer, **changes)
    add_adapters(model, LORA, 3, half)
    generator = torch.Generator().manual_seed(11)
    for layer in linear_layers(model) if drawn else []:
        torch.nn.init.normal_(layer.adapter.b, std=0.1, generator=generator)
    return model


def some_batch(model, tokenizer, prompts):
    questions = [prompts.ids(prompts.prove(p.text)) for p in some_problems(3)]
    rollouts = sample(model, tokenizer, questions, 2, Sampling(1.0, 16), 3)
    return questions, rollouts, collate(packs_of(questions, rollouts))


def test_a_new_adapter_changes_nothing_and_is_drawn_by_the_seed(tokenizer, prompts):
    plain, model = small_model(tokenizer), adapted(tokenizer, drawn=False)
    _, _, batch = some_batch(plain, tokenizer, prompts)
    assert torch.equal(batch_logprobs(model, batch, 1.0), batch_logprobs(plain, batch, 1.0))
    again = adapted(tokenizer, drawn=False)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters()))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if ".adapter." in n
    }


def test_gradients_are_those_of_the_whole_weights_seen_through_the_update(tokenizer, prompts, tmp_path):
    model = adapted(tokenizer)
    hf.save(tmp_path, model)
    merged = hf.load(tmp_path)
    _, _, batch = some_batch(merged, tokenizer, prompts)
    for m in (model, merged):
        batch_logprobs(m, batch, 1.0).pow(2).sum().backward()
    for low, full in zip(linear_layers(model), linear_layers(merged)):
        a, scale = low.adapter, low.adapter.scale
        assert torch.allclose(a.b.grad, scale * full.weight.grad @ a.a.T, rtol=1e-3, atol=1e-3)
        assert torch.allclose(a.a.grad, scale * a.b.T @ full.weight.grad, rtol=1e-3, atol=1e-3)


def test_C7_the_own_sampler_goes_by_the_adapters(tokenizer, prompts):
    model = adapted(tokenizer)
    _, rollouts, batch = some_batch(model, tokenizer, prompts)
    with torch.no_grad():
        trained = batch_logprobs(model, batch, 1.0)
    sampled = [p for row in batch.rows for p in rollouts[row].logprobs]  # packs have an order of their own
    assert torch.allclose(trained, torch.tensor(sampled), atol=2e-5)


def test_what_is_exported_are_the_weights_with_their_updates_in_fp32_file_by_file(
    tokenizer, prompts, tmp_path, monkeypatch
):
    model = adapted(tokenizer, half=True)
    _, _, batch = some_batch(small_model(tokenizer), tokenizer, prompts)
    whole = hf.save(tmp_path / "one", model) or hf.load(tmp_path / "one")
    model.set_precision("bf16")
    want = batch_logprobs(model, batch, 1.0)
    assert torch.allclose(batch_logprobs(whole, batch, 1.0), want, atol=0.05)
    for layer, merged in zip(linear_layers(model), linear_layers(whole)):
        assert torch.equal(merged.weight, layer.weight + layer.adapter.update())  # nothing is rounded off
    assert hf.read_json(tmp_path / "one" / "config.json")["torch_dtype"] == "float32"
    monkeypatch.setattr(hf, "FILE", 9000)
    hf.save(tmp_path / "one", model)
    files = sorted(p.name for p in (tmp_path / "one").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    again = dict(hf.load(tmp_path / "one").named_parameters())
    assert all(torch.equal(p, again[name]) for name, p in whole.named_parameters())


def test_what_is_not_trained_is_loaded_in_bf16_but_for_norms_and_what_embeds(tokenizer, prompts, tmp_path):
    plain = small_model(tokenizer)
    chat.save_model(tmp_path, plain, tokenizer)
    loaded, _ = chat.load_model(tmp_path, half=True)
    assert all(
        p.dtype == (torch.bfloat16 if halved(name, p, p.device) else torch.float32)
        for name, p in loaded.named_parameters()
    )
    _, _, batch = some_batch(plain, tokenizer, prompts)
    plain.set_precision("bf16")
    with torch.no_grad():  # the copies that it multiplies are these weights
        assert torch.equal(batch_logprobs(loaded, batch, 1.0), batch_logprobs(plain, batch, 1.0))
    judge = place(loaded, Ranks())
    judge.give_back()
    assert loaded.in_bf16


def test_a_step_trains_the_adapters_alone_and_only_they_have_moments(tokenizer, prompts):
    model = adapted(tokenizer, drawn=False, half=True)
    model.set_precision("bf16")
    before = {n: p.clone() for n, p in model.named_parameters()}
    questions, rollouts, _ = some_batch(model, tokenizer, prompts)
    groups = [Group(q, rollouts[2 * i : 2 * i + 2], [1.0, -1.0]) for i, q in enumerate(questions)]
    optimizer = make_optimizer(model, 1e-2, 0.0)
    train_on_groups(model, optimizer, groups, GRPOConfig(max_tokens=16), Ranks(), 0)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(".adapter." in n for n in changed)
    assert sum(s["exp_avg"].numel() for s in optimizer.state.values()) == adapter_size(model, LORA.rank)
    frozen = [p for n, p in model.named_parameters() if n.startswith("layers.") and "proj.weight" in n]
    assert all(p.dtype == torch.bfloat16 for p in frozen)
