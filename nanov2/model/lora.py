"""LoRA (Hu et al. 2021, arXiv 2106.09685): the weights stay, and each linear layer of the blocks learns an
update of low rank beside its own: y = x Wᵀ + α/r · (x Aᵀ) Bᵀ; A [r, in] is drawn at random, B [out, r] is 0.

What is frozen needs no gradient, no moments and, where products are in bf16, no fp32 master: 2 bytes a
parameter in place of 16. Rollout engines and model folders get W + α/r · B A, made one tensor at a time and
in fp32 (hub/hf.py); the own sampler goes by the adapters, as training does. Stacked experts and embeddings
have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanov2.settings import Within, setting

if TYPE_CHECKING:
    from nanov2.model.decoder import Model


@dataclass(frozen=True)
class LoraConfig:
    """Updates of low rank in place of training all weights, for small GPUs."""

    rank: Annotated[int, Within(0, 4096)] = setting(
        0,
        "of the updates; 0 = all weights are trained. They are merged and saved in fp32; where products are "
        "in bf16, the next phase rounds what it begins from: updates below a 256th of their weight blur",
    )
    alpha: Annotated[float, Within(0, 10_000, above=True)] = setting(32.0, "they are scaled by alpha / rank")


class Adapter(nn.Module):
    """The update of one linear layer [out, in]; its parameters are in fp32."""

    def __init__(self, like: Tensor, config: LoraConfig, generator: torch.Generator):
        super().__init__()
        out, width = like.shape
        drawn = torch.randn(config.rank, width, generator=generator) * width**-0.5
        self.a = nn.Parameter(drawn.to(like.device))
        self.b = nn.Parameter(torch.zeros(out, config.rank, device=like.device))
        self.scale = config.alpha / config.rank

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """What is added to x Wᵀ, with products in `dtype`."""
        low = F.linear(x.to(dtype), self.a.to(dtype))
        return F.linear(low, (self.scale * self.b).to(dtype))

    def update(self) -> Tensor:
        """What is added to W."""
        return self.scale * self.b @ self.a


def add_adapters(model: Model, config: LoraConfig, seed: int, half: bool) -> None:
    """Freeze the model and give the linear layers of its blocks adapters; `half`: frozen matrices in bf16."""
    generator = torch.Generator().manual_seed(seed & (2**63 - 1))
    model.requires_grad_(False)
    for name, p in model.named_parameters() if half else ():
        if halved(name, p, p.device):
            p.data = p.data.bfloat16()
    for layer in linear_layers(model):
        layer.adapter = Adapter(layer.weight, config, generator)


def halved(name: str, p: Tensor, device: torch.device) -> bool:
    """Whether a parameter that is not trained is in bf16 where products are. Norms and biases stay in fp32;
    on CPUs what embeds, and what the log-prob reads, too."""
    return p.ndim > 1 and (device.type == "cuda" or name.startswith("layers."))


def linear_layers(model: Model) -> list[nn.Module]:
    """Those that learn updates."""
    return [m for layer in model.layers for m in layer.modules() if hasattr(m, "adapter")]


def adapter_size(model: Model, rank: int) -> int:
    """Parameters of the adapters that a model would have."""
    return sum(rank * sum(layer.weight.shape) for layer in linear_layers(model))
