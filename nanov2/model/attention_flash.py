"""Attention of packs with variable-length flash kernels, for GPUs: torch's own, or flash-attn's.

The same two parts as in attention.py, merged by their log-sum-exp, but over the tokens as they lie:
no rectangles, no padding. Prompts attend causally to themselves; all completions of a prompt, end to end,
attend to it; each completion attends causally to itself. Half precision only, as the kernels want it.

torch carries the kernels that torch.nn.attention.varlen stands on; where it does not, for this GPU or this
width of a head, flash-attn's are used if it is installed. Either is tried once on a few tokens before it is
trusted, forward and backward: what fails or is wrong is left alone, and a dense mask does the work.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from flash_attn.flash_attn_interface import _flash_attn_varlen_backward, _flash_attn_varlen_forward
except ImportError:
    _flash_attn_varlen_forward = _flash_attn_varlen_backward = None

_aten_forward = getattr(torch.ops.aten, "_flash_attention_forward", None)
_aten_backward = getattr(torch.ops.aten, "_flash_attention_backward", None)


@dataclass
class Spans:
    """Where sequences begin and end in a row of tokens: offsets [n + 1] int32, and the longest."""

    offsets: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Tensor) -> Spans:
        return cls(F.pad(lengths.cumsum(0), (1, 0)).int(), int(lengths.max()))


class Pieces:
    """The prompt tokens and the completion tokens of a layout, and the spans of the three attentions."""

    def __init__(self, layout):
        A, P = layout.prompts.shape
        self.is_prompt = layout.home < A * P  # [T]
        each = layout.lengths.flatten()
        self.prompts = Spans.of(layout.prompt_lengths)
        self.groups = Spans.of(layout.lengths.sum(1))  # all completions of a prompt
        self.completions = Spans.of(each[each > 0])

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[1, H, T, d] → [prompt tokens, H, d] and [completion tokens, H, d]"""
        x = x[0].transpose(0, 1)
        return x[self.is_prompt].contiguous(), x[~self.is_prompt].contiguous()

    def join(self, prompt: Tensor, rows: Tensor) -> Tensor:
        """The way back."""
        x = prompt.new_empty(len(self.is_prompt), *prompt.shape[1:])
        x[self.is_prompt], x[~self.is_prompt] = prompt, rows
        return x.transpose(0, 1)[None]


class TorchKernels:
    """Of torch itself. q [N, H, d], k and v [M, K, d] → output [N, H, d] and log-sum-exp [H, N]."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, sq: Spans, sk: Spans, causal: bool) -> tuple[Tensor, Tensor]:
        out, lse, *_ = _aten_forward(
            *(q, k, v, sq.offsets, sk.offsets, sq.longest, sk.longest, 0.0, causal, False),
            scale=q.shape[-1] ** -0.5,
        )
        return out, lse

    @staticmethod
    def backward(grad, q, k, v, out, lse, sq: Spans, sk: Spans, causal: bool) -> tuple[Tensor, ...]:
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device)
        return _aten_backward(
            *(
                grad.contiguous(),
                q,
                k,
                v,
                out,
                lse,
                sq.offsets,
                sk.offsets,
                sq.longest,
                sk.longest,
                0.0,
                causal,
            ),
            *(no_dropout, torch.empty(0, device=q.device)),
            scale=q.shape[-1] ** -0.5,
        )


class FlashAttnKernels:
    """Of the flash-attn library."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, sq: Spans, sk: Spans, causal: bool) -> tuple[Tensor, Tensor]:
        out, lse, *_ = _flash_attn_varlen_forward(q, k, v, **_spans(q, sq, sk, causal))
        return out, lse

    @staticmethod
    def backward(grad, q, k, v, out, lse, sq: Spans, sk: Spans, causal: bool) -> tuple[Tensor, ...]:
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        _flash_attn_varlen_backward(
            *(grad.contiguous(), q, k, v, out, lse, dq, dk, dv),
            **_spans(q, sq, sk, causal),
            window_size_left=-1,
            window_size_right=-1,
            softcap=0.0,
            alibi_slopes=None,
            deterministic=False,
        )
        return dq, dk, dv


def _spans(q: Tensor, sq: Spans, sk: Spans, causal: bool) -> dict:
    """How flash-attn is told of packed rows, on both ways."""
    return dict(
        cu_seqlens_q=sq.offsets,
        cu_seqlens_k=sk.offsets,
        max_seqlen_q=sq.longest,
        max_seqlen_k=sk.longest,
        dropout_p=0.0,
        softmax_scale=q.shape[-1] ** -0.5,
        causal=causal,
    )


Kernels = type[TorchKernels] | type[FlashAttnKernels]


WIDEST = 256  # head that the kernels take


def kernels_for(q: Tensor, k: Tensor) -> Kernels | None:
    """Those that work for such queries and keys [1, heads, T, d]; None: a dense mask has to do it."""
    if not q.is_cuda:
        return None
    if why := no_kernels(q.dtype, q.shape[-1]):
        tell_of_mask(why)
        return None
    return _trusted(q.device, q.dtype, q.shape[1], k.shape[1], q.shape[-1])


def no_kernels(dtype: torch.dtype, width: int) -> str:
    """Why no kernel takes heads of a dtype and a width; "" where one may."""
    if dtype not in (torch.float16, torch.bfloat16):
        return f'in {str(dtype).removeprefix("torch.")} (parallel.precision = "bf16" has kernels)'
    return f"of heads {width} wide, more than {WIDEST}" if width > WIDEST else ""


@cache
def tell_of_mask(why: str) -> None:
    """Once a process: what such attention costs."""
    warnings.warn(
        f"no variable-length kernel takes attention {why}: a mask of all pairs of a micro-batch's tokens "
        "does it, in time and memory that grow with the square of micro_tokens",
        stacklevel=2,
    )


@cache
def _trusted(
    device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, width: int
) -> Kernels | None:
    found: list[Kernels] = [TorchKernels] if _aten_forward is not None and _aten_backward is not None else []
    found += [FlashAttnKernels] if _flash_attn_varlen_forward is not None else []
    for kernels in found:
        try:
            off = error_of(kernels, device, dtype, heads, kv_heads, width)
            if off < 0.05:
                return kernels
            why = f"wrong by {off:.2g}"
        except (RuntimeError, TypeError, NotImplementedError) as e:
            why = str(e).splitlines()[0][:200]
        warnings.warn(f"{kernels.__name__} are not used: {why}", stacklevel=2)
    tell_of_mask(f"of heads {width} wide on this device")
    return None


def error_of(kernels: Kernels, device, dtype: torch.dtype, heads: int, kv_heads: int, width: int) -> float:
    """The largest error, over the largest number, of output, log-sum-exp and gradients on a few tokens."""
    generator = torch.Generator().manual_seed(0)

    def draw(n: int, h: int) -> Tensor:
        return torch.randn(n, h, width, generator=generator).to(device, dtype)

    worst = 0.0
    for causal, lengths, keys in ((True, [3, 17], [3, 17]), (False, [9, 4], [5, 30])):
        sq, sk = (Spans.of(torch.tensor(n, device=device)) for n in (lengths, keys))
        q, k, v = draw(sum(lengths), heads), draw(sum(keys), kv_heads), draw(sum(keys), kv_heads)
        grad = draw(sum(lengths), heads)
        out, lse = kernels.forward(q, k, v, sq, sk, causal)
        found = (out, lse, *kernels.backward(grad, q, k, v, out, lse, sq, sk, causal))
        for a, b in zip(found, _plainly(q, k, v, grad, lengths, keys, causal), strict=True):
            worst = max(worst, float((a.float() - b).abs().max() / b.abs().max()))
    return worst


def _plainly(q, k, v, grad, lengths: list[int], keys: list[int], causal: bool) -> tuple[Tensor, ...]:
    """What the kernels should give, in fp32."""
    leaves = [x.detach().float().requires_grad_() for x in (q, k, v)]
    outs, sums = [], []
    for a, b, c in zip(
        *(x.split(n) for x, n in zip(leaves, (lengths, keys, keys), strict=True)), strict=True
    ):
        b, c = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (b, c))
        scores = torch.einsum("qhd,khd->hqk", a, b) * q.shape[-1] ** -0.5
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), float("-inf"))
        outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), c))
        sums.append(scores.logsumexp(-1))
    out = torch.cat(outs)
    return out.detach(), torch.cat(sums, 1).detach(), *torch.autograd.grad(out, leaves, grad.float())


class FlashSharedPrefix(torch.autograd.Function):
    """q [1, H, T, d], k and v [1, K, T, d] → [1, H, T, d]; the kernel repeats key-value heads itself."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, pieces: Pieces, kernels: Kernels) -> Tensor:
        (qp, qc), (kp, kc), (vp, vc) = (pieces.split(x) for x in (q, k, v))
        p, g, c = pieces.prompts, pieces.groups, pieces.completions
        prompt, prompt_lse = kernels.forward(qp, kp, vp, p, p, True)
        cross, cross_lse = kernels.forward(qc, kp, vp, g, p, False)
        own, own_lse = kernels.forward(qc, kc, vc, c, c, True)
        lse = torch.logaddexp(cross_lse, own_lse)
        share = (cross_lse - lse).exp().T[..., None].to(q.dtype)  # [N, H, 1]
        rows = cross * share + own * (1 - share)
        ctx.save_for_backward(q, k, v, prompt, prompt_lse, rows, lse)
        ctx.pieces, ctx.kernels = pieces, kernels
        return pieces.join(prompt, rows)

    @staticmethod
    def backward(ctx, grad: Tensor):
        q, k, v, prompt, prompt_lse, rows, lse = ctx.saved_tensors
        pieces, _backward = ctx.pieces, ctx.kernels.backward
        (qp, qc), (kp, kc), (vp, vc), (gp, gc) = (pieces.split(x) for x in (q, k, v, grad))
        p, g, c = pieces.prompts, pieces.groups, pieces.completions
        dqp, dkp, dvp = _backward(gp, qp, kp, vp, prompt, prompt_lse, p, p, True)
        # With the merged output and log-sum-exp each kernel gives its own part of the exact gradient.
        dqx, dkx, dvx = _backward(gc, qc, kp, vp, rows, lse, g, p, False)
        dqc, dkc, dvc = _backward(gc, qc, kc, vc, rows, lse, c, c, True)
        joined = ((dqp, dqc + dqx), (dkp + dkx, dkc), (dvp + dvx, dvc))
        return *(pieces.join(*pair) for pair in joined), None, None
