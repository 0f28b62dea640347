"""The chunked form of `logprob.py` that CPUs run: plain PyTorch, a tile of logits [ROWS, width] at a time.

The logits are needed twice: for the sums, and for the gradients once the sums are known. So there are four
products instead of three, but no [N, V] in memory; and a part of the fourth is saved by `kept`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanov2.kernels.common import precise, product

TILE = 1 << 20  # logits in one tile: 4 MB, so that passes over it stay in the caches
ROWS = 2048  # tokens in one tile, at most


def merge(m: Tensor, total: Tensor, chosen: Tensor, moment: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four sums [S, N] of S vocabulary parts → those [N] of the whole; differentiable but for m."""
    largest = m.detach().amax(0)
    shift = m.detach() - largest
    scale = shift.exp()
    return (
        largest,
        (scale * total).sum(0),
        (chosen + shift).amax(0),  # −inf wherever the target is not among the part's entries
        (scale * (moment + shift * total)).sum(0),
    )


def tile_shape(n: int, v: int) -> tuple[int, int]:
    """Tokens and vocabulary entries in one tile."""
    rows = max(min(n, ROWS), 1)
    return rows, min(v, max(TILE // rows, 1))


def tile_logits(
    h: Tensor, w: Tensor, bias: Tensor | None, temperature: float, softcap: float | None
) -> Tensor:
    """Logits z of one tile, in the precision of h [n, D], from w [v, D] and bias [v]."""
    w = w.to(h.dtype)
    z = product(h, w.T) if bias is None else product(h, w.T).add_(bias.to(h.dtype))
    if softcap is not None:
        z.div_(softcap).tanh_().mul_(softcap)
    return z if temperature == 1.0 else z.div_(temperature)


def locate(target: Tensor, v0: int, v1: int) -> tuple[Tensor, Tensor]:
    """Columns [n, 1] of the targets in the vocabulary's part v0 … v1, and whether they are there."""
    at = target[:, None] - v0
    return at.clamp(0, v1 - v0 - 1), (at >= 0) & (at < v1 - v0)


def kept(store: Tensor | None, n: int, v0: int, v1: int, width: int) -> Tensor | None:
    """Where the logits [n, v1 − v0] of a part wait for the backward pass, if they do; `store` is the memory
    of ∂weight [V, D], of which the forward pass has no other use.

    A part of the vocabulary has width · D numbers there, and n · width logits: every ⌈n / D⌉-th part has room
    for its own, over rows that are written only when they have been used. All of them where n ≤ D.
    """
    if store is None:
        return None
    d = store.shape[1]
    first, size = v0 * d, n * (v1 - v0)
    if (v0 // width) % max(-(-n // d), 1) or first + size > store.numel():
        return None
    return store.view(-1)[first : first + size].view(n, v1 - v0)


def forward(hidden, weight, bias, target, temperature, softcap, with_moment, store=None):
    """m, total, chosen and moment [N] each; some logits stay in `store`, if it is given."""
    (n, v), h = (len(hidden), len(weight)), hidden.to(precise(hidden))
    rows, width = tile_shape(n, v)
    parts = h.new_zeros(4, -(-v // width), n)
    for v0 in range(0, v, width):
        v1 = min(v0 + width, v)
        b = None if bias is None else bias[v0:v1]
        for n0 in range(0, n, rows):
            m, total, chosen, moment = parts[:, v0 // width, n0 : n0 + rows]
            z = tile_logits(h[n0 : n0 + rows], weight[v0:v1], b, temperature, softcap)
            if (keep := kept(store, n, v0, v1, width)) is not None:
                keep[n0 : n0 + rows] = z
            torch.amax(z, 1, out=m)
            at, here = locate(target[n0 : n0 + rows], v0, v1)
            z.sub_(m[:, None])
            chosen.copy_(torch.where(here, z.gather(1, at), -torch.inf)[:, 0])
            e = z.exp() if with_moment else z.exp_()
            torch.sum(e, 1, out=total)
            if with_moment:
                torch.sum(z.mul_(e), 1, out=moment)
    return merge(*parts)


def backward(d_total, d_chosen, d_moment, hidden, weight, bias, target, m, *options, store=None):
    """Gradients of hidden, weight and bias, a tile at a time; of no meaning where `needs` says no."""
    (n, v), h = (len(hidden), len(weight)), hidden.to(precise(hidden))
    temperature, softcap, with_moment, needs = options
    rows, width = tile_shape(n, v)
    dh, db = torch.zeros_like(h), h.new_zeros(v)
    dw = store if store is not None else torch.empty_like(weight)
    d_total, d_chosen, d_moment = (d[:, None] / temperature for d in (d_total, d_chosen, d_moment))
    starts = range(0, v, width)  # those with kept logits first: ∂weight is written where logits wait
    for v0 in sorted(starts, key=lambda v0: kept(store, n, v0, min(v0 + width, v), width) is None):
        part = slice(v0, min(v0 + width, v))
        b, w = None if bias is None else bias[part], weight[part].to(h.dtype)
        keep = kept(store, n, part.start, part.stop, width)
        dw_part = torch.zeros_like(w)
        for n0 in range(0, n, rows):
            some = slice(n0, n0 + rows)
            dz = keep[some].clone() if keep is not None else tile_logits(h[some], w, b, temperature, softcap)
            slope = None if softcap is None else 1 - (dz * (temperature / softcap)).square_()
            dz.sub_(m[some, None])
            scale = d_total[some] if not with_moment else (dz + 1).mul_(d_moment[some]).add_(d_total[some])
            dz.exp_().mul_(scale)
            at, here = locate(target[some], part.start, part.stop)
            dz.scatter_add_(1, at, torch.where(here, d_chosen[some], 0.0))
            if softcap is not None:
                dz.mul_(slope)
            if needs[0]:
                dh[some].add_(product(dz, w))
            if needs[1]:
                dw_part.add_(product(dz.T, h[some]))
            if needs[2]:
                db[part].add_(dz.sum(0))
        if needs[1]:
            dw[part] = dw_part
    return dh.to(hidden.dtype), dw, db
