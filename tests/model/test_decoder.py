"""How a new model's weights are drawn."""

import pytest
import torch

from nanov2.model.decoder import ModelConfig
from nanov2.model.deepseek import LatentConfig
from tests.conftest import small_model

pytestmark = pytest.mark.quick


def test_a_mimetic_model_starts_as_a_look_up(tokenizer):
    shape = dict(dim=64, n_heads=2, n_kv_heads=1)
    model, plain = (small_model(tokenizer, mimetic=on, **shape) for on in (True, False))
    weights, others = dict(model.named_parameters()), dict(plain.named_parameters())
    first = model.layers[0].self_attn
    alike = first.q_proj.weight[:32]
    assert torch.equal(alike, first.k_proj.weight) and not torch.equal(alike, first.q_proj.weight[32:])
    assert abs(alike.std() * 8 - 1) < 0.1  # 1/√64, as all others
    for name in ("q", "k"):  # no other draw is moved by it
        name = f"layers.0.self_attn.{name}_proj.weight"
        assert torch.equal(weights.pop(name)[32:], others.pop(name)[32:])
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)) @ alike.T
    assert ((x @ x.T).argmax(1) == torch.arange(40)).float().mean() > 0.9


def test_latent_attention_cannot_be_mimetic():
    with pytest.raises(ValueError, match="mimetic is for plain attention"):
        ModelConfig(mimetic=True, latent=LatentConfig(8, 8, 4, 8))
