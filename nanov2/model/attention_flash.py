"""Attention of packs with flash-attn's variable-length kernels, for GPUs that have them.

The same two parts as in attention.py, merged by their log-sum-exp, but over the tokens as they lie:
no rectangles, no padding. Prompts attend causally to themselves; all completions of a prompt, end to end,
attend to it; each completion attends causally to itself. Half precision only, as flash-attn wants it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from flash_attn.flash_attn_interface import _flash_attn_varlen_backward, _flash_attn_varlen_forward
except ImportError:
    _flash_attn_varlen_forward = _flash_attn_varlen_backward = None


def available(x: Tensor) -> bool:
    """Whether q, k, v like `x` can go to flash-attn."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    narrow = x.shape[-1] <= 256  # its kernels know no wider heads
    return _flash_attn_varlen_forward is not None and x.is_cuda and half and narrow


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


def _forward(q: Tensor, k: Tensor, v: Tensor, sq: Spans, sk: Spans, causal: bool) -> tuple[Tensor, Tensor]:
    """Output [N, H, d] and log-sum-exp [H, N]."""
    out, lse, *_ = _flash_attn_varlen_forward(
        q,
        k,
        v,
        cu_seqlens_q=sq.offsets,
        cu_seqlens_k=sk.offsets,
        max_seqlen_q=sq.longest,
        max_seqlen_k=sk.longest,
        dropout_p=0.0,
        softmax_scale=q.shape[-1] ** -0.5,
        causal=causal,
    )
    return out, lse


def _backward(grad, q, k, v, out, lse, sq: Spans, sk: Spans, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    _flash_attn_varlen_backward(
        grad.contiguous(),
        q,
        k,
        v,
        out,
        lse,
        dq,
        dk,
        dv,
        cu_seqlens_q=sq.offsets,
        cu_seqlens_k=sk.offsets,
        max_seqlen_q=sq.longest,
        max_seqlen_k=sk.longest,
        dropout_p=0.0,
        softmax_scale=q.shape[-1] ** -0.5,
        causal=causal,
        window_size_left=-1,
        window_size_right=-1,
        softcap=0.0,
        alibi_slopes=None,
        deterministic=False,
    )
    return dq, dk, dv


class FlashSharedPrefix(torch.autograd.Function):
    """q [1, H, T, d], k and v [1, K, T, d] → [1, H, T, d]; the kernel repeats key-value heads itself."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, pieces: Pieces) -> Tensor:
        (qp, qc), (kp, kc), (vp, vc) = (pieces.split(x) for x in (q, k, v))
        p, g, c = pieces.prompts, pieces.groups, pieces.completions
        prompt, prompt_lse = _forward(qp, kp, vp, p, p, True)
        cross, cross_lse = _forward(qc, kp, vp, g, p, False)
        own, own_lse = _forward(qc, kc, vc, c, c, True)
        lse = torch.logaddexp(cross_lse, own_lse)
        share = (cross_lse - lse).exp().T[..., None].to(q.dtype)  # [N, H, 1]
        rows = cross * share + own * (1 - share)
        ctx.save_for_backward(q, k, v, prompt, prompt_lse, rows, lse)
        ctx.pieces = pieces
        return pieces.join(prompt, rows)

    @staticmethod
    def backward(ctx, grad: Tensor):
        q, k, v, prompt, prompt_lse, rows, lse = ctx.saved_tensors
        pieces = ctx.pieces
        (qp, qc), (kp, kc), (vp, vc), (gp, gc) = (pieces.split(x) for x in (q, k, v, grad))
        p, g, c = pieces.prompts, pieces.groups, pieces.completions
        dqp, dkp, dvp = _backward(gp, qp, kp, vp, prompt, prompt_lse, p, p, True)
        # With the merged output and log-sum-exp each kernel gives its own part of the exact gradient.
        dqx, dkx, dvx = _backward(gc, qc, kp, vp, rows, lse, g, p, False)
        dqc, dkc, dvc = _backward(gc, qc, kc, vc, rows, lse, c, c, True)
        joined = ((dqp, dqc + dqx), (dkp + dkx, dkc), (dvp + dvx, dvc))
        return *(pieces.join(*pair) for pair in joined), None
