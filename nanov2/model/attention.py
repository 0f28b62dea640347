"""Attention of packs: prompts, and completions that share them, in time and memory of what they really see.

A completion attends to its prompt (all of it) and to itself (causally). These are two attentions over
disjoint keys; each is one call of a fused kernel over rectangular blocks, and the two results are merged by
their log-sum-exp, as blockwise and ring attention do (Liu et al. 2023, arXiv 2310.01889). The same merged
output and log-sum-exp, given to each kernel's backward, yield the exact gradients of both parts. Where every
pack has one completion, as in supervised training, a pack is one causal row.
On GPUs in half precision the same goes by variable-length kernels (attention_flash.py); elsewhere one
attention under a dense mask does it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from nanov2.model import attention_flash

_flash = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_flash_backward = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


@dataclass
class Layout:
    """Tokens of several packs end to end, without padding: of each pack a prompt, then all its completions.

    A completion sees its prompt and itself, not its siblings, so a prompt is computed once for its whole
    group and every gradient equals that of separate rows. `previous` points at each token's predecessor in
    *its own* sequence (−1: none), which for the first token of a completion is the last of its prompt.
    For attention the tokens are laid out in rectangles: A prompts of up to P tokens, G completions each of
    up to S; unused places hold index 0.
    """

    ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, position within its own sequence
    previous: Tensor  # [T] int64
    prompts: Tensor  # [A, P] int64: which token is there
    completions: Tensor  # [A, G, S] int64
    prompt_lengths: Tensor  # [A]
    lengths: Tensor  # [A, G] of the completions; 0: none
    home: Tensor  # [T] where each token is in [prompts, completions], flattened

    def to(self, device: torch.device) -> Layout:
        return Layout(*(getattr(self, f.name).to(device) for f in fields(self)))

    def history(self, n: int) -> Tensor:
        """[n, 1, T] ids of the 1st … nth predecessor of each token; −1 where there is none."""
        out, pointer = [], self.previous
        for _ in range(n):
            before = pointer.clamp(min=0)
            out.append(torch.where(pointer >= 0, self.ids[before], -1))
            pointer = torch.where(pointer >= 0, self.previous[before], -1)
        return torch.stack(out)[:, None]

    def mask(self) -> Tensor:
        """[T, T] bool: which key (last) each query sees. Only for the dense form: it grows with T²."""
        (A, P), (_, G, S) = self.prompts.shape, self.completions.shape
        at = self.home.tolist()
        pack = torch.tensor([i // P if i < A * P else (i - A * P) // (G * S) for i in at])
        part = torch.tensor([0 if i < A * P else 1 + (i - A * P) // S % G for i in at])
        pack, part = pack.to(self.ids.device), part.to(self.ids.device)
        seen = (part[:, None] == part) | (part == 0)
        return seen & (pack[:, None] == pack) & (self.positions[:, None] >= self.positions)

    def attention(self):
        """What a block calls with q [1, H, T, d], k and v [1, K, T, d] → [1, H, T, d]."""
        if _flash is not None and self.ids.device.type == "cpu":
            if self.completions.shape[1] == 1:
                rows = _Rows(self)
                return lambda q, k, v: _Causal.apply(q, k, v, rows)
            blocks = _Blocks(self)
            return lambda q, k, v: _SharedPrefix.apply(q, k, v, blocks)
        pieces, mask = attention_flash.Pieces(self), None

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            nonlocal mask
            if kernels := attention_flash.kernels_for(q, k):
                return attention_flash.FlashSharedPrefix.apply(q, k, v, pieces, kernels)
            mask = self.mask() if mask is None else mask
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1]
            )

        return attend


class _Blocks:
    """How tokens go to the rectangles of a layout and back."""

    def __init__(self, layout: Layout):
        self.layout = layout
        (self.A, self.P), (_, self.G, self.S) = layout.prompts.shape, layout.completions.shape
        lengths = layout.prompt_lengths
        self.bias = None  # [A, 1, G·S, P] hides the places of the prompts that are unused
        if int(lengths.min()) < self.P:
            hidden = torch.arange(self.P) >= lengths[:, None]
            self.bias = torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))[:, None, None]
        self.present = torch.arange(self.S) < layout.lengths[..., None]  # [A, G, S]

    def prompts(self, x: Tensor) -> Tensor:
        """[1, H, T, d] → [A, H, P, d]"""
        return x[0].transpose(0, 1)[self.layout.prompts].transpose(1, 2)

    def rows(self, x: Tensor) -> Tensor:
        """[1, H, T, d] → [A·G, H, S, d]"""
        return x[0].transpose(0, 1)[self.layout.completions].flatten(0, 1).transpose(1, 2)

    def wide(self, x: Tensor, K: int) -> Tensor:
        """[A·G, H, S, …] → [A, K, H/K·G·S, …]: all queries that share a prompt's key-value head."""
        x = x.unflatten(1, (K, -1)).unflatten(0, (self.A, self.G))  # [A, G, K, h, S, …]
        return x.transpose(1, 2).transpose(2, 3).flatten(2, 4)

    def narrow(self, x: Tensor) -> Tensor:
        """[A, K, H/K·G·S, …] → [A·G, H, S, …]: the way back."""
        x = x.unflatten(2, (-1, self.G, self.S))  # [A, K, h, G, S, …]
        return x.transpose(2, 3).transpose(1, 2).flatten(0, 1).flatten(1, 2)

    def tokens(self, prompts: Tensor, rows: Tensor) -> Tensor:
        """[A, H, P, d] and [A·G, H, S, d] → [1, H, T, d]"""
        flat = torch.cat([x.transpose(1, 2).flatten(0, 1) for x in (prompts, rows)])  # [places, H, d]
        return flat[self.layout.home].transpose(0, 1)[None]

    def mask(self, x: Tensor) -> Tensor | None:
        """The bias of the prompts for queries `wide` [A, K, N, d]."""
        return None if self.bias is None else self.bias.to(x.dtype).expand(-1, 1, x.shape[2], -1)


class _Rows:
    """Where every pack has one completion: each pack is a row."""

    def __init__(self, layout: Layout):
        lengths = layout.prompt_lengths + layout.lengths[:, 0]
        starts, L = lengths.cumsum(0) - lengths, int(lengths.max())
        self.present = torch.arange(L) < lengths[:, None]  # [A, L]
        self.at = (starts[:, None] + torch.arange(L)) * self.present  # [A, L] which token is there
        self.home = self.present.flatten().nonzero()[:, 0]  # [T] where each token is

    def rows(self, x: Tensor) -> Tensor:
        """[1, H, T, d] → [A, H, L, d]"""
        return x[0].transpose(0, 1)[self.at].transpose(1, 2)

    def tokens(self, x: Tensor) -> Tensor:
        """[A, H, L, d] → [1, H, T, d]"""
        return x.transpose(1, 2).flatten(0, 1)[self.home].transpose(0, 1)[None]


class _Causal(torch.autograd.Function):
    """Causal attention of each row to itself."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, rows: _Rows) -> Tensor:
        h = q.shape[1] // k.shape[1]
        x = [rows.rows(q), _repeat(rows.rows(k), h), _repeat(rows.rows(v), h)]
        out, lse = _flash(*x, 0.0, True)
        ctx.save_for_backward(*x, out, lse)
        ctx.rows, ctx.h = rows, h
        return rows.tokens(out)

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad = ctx.rows.rows(grad) * ctx.rows.present[:, None, :, None]
        dq, dk, dv = _flash_backward(grad, *ctx.saved_tensors, 0.0, True)
        tokens = ctx.rows.tokens
        return tokens(dq), tokens(_fold(dk, ctx.h)), tokens(_fold(dv, ctx.h)), None


class _SharedPrefix(torch.autograd.Function):
    """Attention of a layout; heads H in K key-value heads, h = H/K."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, blocks: _Blocks) -> Tensor:
        K, h = k.shape[1], q.shape[1] // k.shape[1]
        qp, kp, vp = (blocks.prompts(x) for x in (q, k, v))
        qr, kr, vr = (blocks.rows(x) for x in (q, k, v))
        prompt, prompt_lse = _flash(qp, _repeat(kp, h), _repeat(vp, h), 0.0, True)
        wide = blocks.wide(qr, K)
        cross, cross_lse = _flash(wide, kp, vp, 0.0, False, attn_mask=blocks.mask(wide))
        own, own_lse = _flash(qr, _repeat(kr, h), _repeat(vr, h), 0.0, True)
        cross, cross_lse = blocks.narrow(cross), blocks.narrow(cross_lse)
        lse = torch.logaddexp(cross_lse, own_lse)
        weights = ((x - lse).exp()[..., None].to(q.dtype) for x in (cross_lse, own_lse))
        rows = cross * next(weights) + own * next(weights)
        ctx.save_for_backward(q, k, v, prompt, prompt_lse, rows, lse)
        ctx.blocks = blocks
        return blocks.tokens(prompt, rows)

    @staticmethod
    def backward(ctx, grad: Tensor):
        q, k, v, prompt, prompt_lse, rows, lse = ctx.saved_tensors
        blocks, K, h = ctx.blocks, k.shape[1], q.shape[1] // k.shape[1]
        qp, kp, vp, gp = (blocks.prompts(x) for x in (q, k, v, grad))
        qr, kr, vr, gr = (blocks.rows(x) for x in (q, k, v, grad))
        gr = gr * blocks.present.flatten(0, 1)[:, None, :, None]  # nothing comes from unused places
        used = torch.arange(blocks.P) < blocks.layout.prompt_lengths[:, None]
        gp = gp * used[:, None, :, None]
        dqp, dkp, dvp = _flash_backward(gp, qp, _repeat(kp, h), _repeat(vp, h), prompt, prompt_lse, 0.0, True)
        wide, wide_rows, wide_grad, wide_lse = (blocks.wide(x, K) for x in (qr, rows, gr, lse))
        dcross, dkc, dvc = _flash_backward(
            wide_grad, wide, kp, vp, wide_rows, wide_lse, 0.0, False, attn_mask=blocks.mask(wide)
        )
        dqr, dkr, dvr = _flash_backward(gr, qr, _repeat(kr, h), _repeat(vr, h), rows, lse, 0.0, True)
        dq = blocks.tokens(dqp, dqr + blocks.narrow(dcross))
        dk = blocks.tokens(_fold(dkp, h) + dkc, _fold(dkr, h))
        dv = blocks.tokens(_fold(dvp, h) + dvc, _fold(dvr, h))
        return dq, dk, dv, None


def _repeat(x: Tensor, h: int) -> Tensor:
    """Key-value heads for their query heads, [B, K, L, d] → [B, K·h, L, d]."""
    return x if h == 1 else x.repeat_interleave(h, dim=1)


def _fold(x: Tensor, h: int) -> Tensor:
    """The gradient of `_repeat`."""
    return x if h == 1 else x.unflatten(1, (-1, h)).sum(2)
