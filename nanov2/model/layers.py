"""What decoders of all families share: linear layers, RMSNorm, rotary positions and their long-context forms,
SwiGLU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from nanov2.model.decoder import ModelConfig


class Linear(nn.Linear):
    """A linear layer. With `in_bf16` its products are in bf16, of weights that stay in fp32.

    The bf16 copy of the weights is made when they have changed: once an optimiser step, not once a call.
    """

    in_bf16 = False
    _copy: Half | None = None

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.adapter: nn.Module | None = None  # see lora.py

    def forward(self, x: Tensor) -> Tensor:
        if not self.in_bf16:
            y = super().forward(x)
            return y if self.adapter is None else y + self.adapter(x, y.dtype)
        half = self._in_half()
        y = (
            _HalfProduct.apply(x, self.weight, half)
            if torch.is_grad_enabled()
            else F.linear(x.to(half.dtype), half)
        )
        y = y if self.adapter is None else y + self.adapter(x, y.dtype)
        return y if self.bias is None else y + self.bias

    @property
    def matrix(self) -> Tensor:
        """The weights as they are multiplied, for products by parts of them."""
        if self.adapter is not None:
            weight = self.weight + self.adapter.update()
            return weight.bfloat16() if self.in_bf16 else weight
        return rounded(self.weight, self._in_half()) if self.in_bf16 else self.weight

    def _in_half(self) -> Tensor:
        self._copy = in_half(self.weight, self._copy)
        return self._copy[1]


Half = tuple[tuple[int, int], Tensor]  # (where the weights were and their version), their copy in bf16


def version(weight: Tensor) -> tuple[int, int]:
    """Where the weights are, and how often they have changed: a copy is good until this differs."""
    return weight.data_ptr(), weight._version


def in_half(weight: Tensor, before: Half | None) -> Half:
    """The copy of the weights: the one before, where they have not changed since."""
    key = version(weight)
    return before if before and before[0] == key else (key, weight.detach().bfloat16())


def rounded(weight: Tensor, half: Tensor) -> Tensor:
    """`half`, the copy of `weight` in bf16, with the gradient of a cast."""
    return _Rounded.apply(weight, half) if torch.is_grad_enabled() else half


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, half: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return half.view_as(half)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad.to(ctx.dtype), None


class _HalfProduct(torch.autograd.Function):
    """x @ weight.T in bf16, by `half`, the bf16 copy of `weight`; gradients are in the dtypes of the two."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, half: Tensor) -> Tensor:
        kept = x.to(half.dtype)
        ctx.save_for_backward(kept, half)
        ctx.dtypes = x.dtype, weight.dtype
        return F.linear(kept, half)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, half = ctx.saved_tensors
        grad = grad.to(half.dtype)
        dx = (grad @ half).to(ctx.dtypes[0]) if ctx.needs_input_grad[0] else None
        dw = None
        if ctx.needs_input_grad[1]:
            dw = (grad.flatten(0, -2).T @ x.flatten(0, -2)).to(ctx.dtypes[1])
        return dx, dw, None


class RMSNorm(nn.Module):
    """Computed in the dtype of the weights. With `in_bf16` the result is in bf16, ready for products."""

    in_bf16 = False

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 and not self.in_bf16:
            return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        given = x.float(), self.weight, self.eps
        y = _Normed.apply(*given) if torch.is_grad_enabled() else _normed(*given)[0]
        return y.bfloat16() if self.in_bf16 else y


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / rms(x) · weight in fp32, and 1 / rms(x)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * inverse).mul_(weight), inverse


class _Normed(torch.autograd.Function):
    """`_normed`: the operators that torch's takes, fewer of them, and less that is kept."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, inverse = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, inverse = ctx.saved_tensors
        unit = x * inverse
        by_weight = grad * unit
        along = (by_weight @ weight)[..., None].div_(x.shape[-1])
        dx = (grad * weight).sub_(unit.mul_(along)).mul_(inverse)
        return dx, by_weight.flatten(0, -2).sum(0), None


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


def rotary(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin [B, 1, L, rope_dim] for positions [B, L], in the half-split order of Llama checkpoints."""
    half = torch.arange(0, config.rope_dim, 2, device=positions.device, dtype=torch.float32)
    frequencies = config.rope_theta ** (-half / config.rope_dim)
    magnitude = 1.0
    if scaling := config.rope_scaling:
        frequencies, magnitude = scaling(frequencies, config.rope_theta), scaling.magnitude
    angles = positions[:, None, :, None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos() * magnitude, angles.sin() * magnitude


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, H, L, head_dim] by its positions; cos and sin repeat themselves in their second half."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return _Rotated.apply(x, cos, sin) if torch.is_grad_enabled() else _turn(x, cos, sin, 1)


class _Rotated(torch.autograd.Function):
    """The two halves of x as coordinates, turned by an angle each; backwards, by minus the angle."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, way: int) -> Tensor:
    out = x * cos
    (a, b), (left, right), (sin, _) = (t.chunk(2, dim=-1) for t in (x, out, sin))
    left.addcmul_(b, sin, value=-way)
    right.addcmul_(a, sin, value=way)
    return out


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gate_proj = Linear(dim, hidden, bias=False)
        self.up_proj = Linear(dim, hidden, bias=False)
        self.down_proj = Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def for_attention(x: Tensor, in_bf16: bool) -> Tensor:
    """Queries, keys or values as attention takes them where products are in bf16: in fp32 on a CPU, and in
    bf16 on a GPU, whose kernels sum in fp32."""
    if not in_bf16:
        return x
    return x.bfloat16() if x.is_cuda else x.float()
