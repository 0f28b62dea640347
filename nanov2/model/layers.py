"""What decoders of all families share: RMSNorm, rotary positions and their long-context forms, SwiGLU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's: slow frequencies are divided by `factor`, fast ones kept, those between mixed."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int  # the context that the model was first trained on
    magnitude = 1.0  # what cos and sin are multiplied by
    temperature = 1.0  # what the softmax of latent attention is scaled by

    def __call__(self, frequencies: Tensor, theta: float) -> Tensor:
        turns = self.original_length * frequencies / (2 * math.pi)  # within the original context
        keep = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return frequencies * (keep + (1 - keep) / self.factor)


@dataclass(frozen=True)
class Yarn:
    """YaRN (arXiv 2309.00071): frequencies that turn less than `beta_slow` times within the original context
    are divided by `factor`, those of more than `beta_fast` kept, those between mixed, by their place."""

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float = 0.0  # 0: it follows from the factor

    def __call__(self, frequencies: Tensor, theta: float) -> Tensor:
        n = len(frequencies)
        low, high = (self._place(turns, n, theta) for turns in (self.beta_fast, self.beta_slow))
        low, high = max(math.floor(low), 0), min(math.ceil(high), 2 * n - 1)
        ramp = (torch.arange(n, device=frequencies.device) - low) / max(high - low, 0.001)
        slow = ramp.clamp(0, 1)
        return frequencies * (1 - slow + slow / self.factor)

    def _place(self, turns: float, n: int, theta: float) -> float:
        """Which of the n frequencies turns so often within the original context."""
        return n * math.log(self.original_length / (turns * 2 * math.pi)) / math.log(theta)

    def _magnitude(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    @property
    def magnitude(self) -> float:
        if self.attention_factor:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._magnitude(self.mscale) / self._magnitude(self.mscale_all_dim)
        return self._magnitude(1.0)

    @property
    def temperature(self) -> float:
        return self._magnitude(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, H, L, head_dim] by its positions."""
    a, b = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-b, a], dim=-1) * sin.to(x.dtype)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
