"""The chunks of `linear_policy_loss.py` on a GPU: as many tokens as BUFFER holds exponentials of.

    scores    grid: blocks of BN tokens × tiles of BV vocabulary entries. A program makes its logits once, and
              writes e = exp(z − m) with the tile's own maximum m, and the tile's sums (`logprob_cpu.merge`
              joins them)
    dscores   once each token's coefficient is known, e becomes ∂loss/∂z in place
    product   ∂hidden, whole at once, and ∂weight, added up in float32 over chunks (`product_triton.py`)

Tokens without a coefficient come last in an order made on the device, and the last two kernels stop where
they begin: the host never waits to learn how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanov2.kernels.logprob_cpu import merge
from nanov2.kernels.logprob_triton import BACKEND, configurations, logits_tile, rows_contiguous
from nanov2.kernels.product_triton import add_product

BUFFER = 1 << 30  # bytes of exponentials in memory at once
ROWS = 32  # tokens in a block of dscores, which multiplies nothing: larger ones spill registers


@triton.jit
def scores_kernel(
    h_ptr, w_ptr, target_ptr, e_ptr, parts_ptr, N, V, D, h_stride, w_stride, temperature,
    BN: tl.constexpr, BV: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Of a tile: e [N, V], and m, total, chosen and moment → parts [4, tiles, N]."""
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    tile = tl.program_id(1)
    cols = tile * BV + tl.arange(0, BV)
    row_ok, col_ok = rows < N, cols < V
    z = logits_tile(
        h_ptr, w_ptr, h_ptr, rows, cols, row_ok, col_ok, D, h_stride, w_stride, temperature, 1.0,
        False, False, BN, BV, BYTES,
    )  # fmt: skip
    target = tl.load(target_ptr + rows, mask=row_ok, other=-1)
    m = tl.max(tl.where(col_ok[None, :], z, float("-inf")), 1)
    shifted = z - m[:, None]
    is_target = col_ok[None, :] & (cols[None, :] == target[:, None])
    chosen = tl.max(tl.where(is_target, shifted, float("-inf")), 1)
    e = tl.where(col_ok[None, :], tl.exp(shifted), 0.0)
    at = e_ptr + rows.to(tl.int64)[:, None] * V + cols[None, :]
    tl.store(at, e.to(e_ptr.dtype.element_ty), mask=row_ok[:, None] & col_ok[None, :])
    tiles = tl.num_programs(1).to(tl.int64)
    out = parts_ptr + tile.to(tl.int64) * N + rows
    tl.store(out, m, mask=row_ok)
    tl.store(out + tiles * N, tl.sum(e, 1), mask=row_ok)
    tl.store(out + 2 * tiles * N, chosen, mask=row_ok)
    tl.store(out + 3 * tiles * N, tl.sum(e * tl.where(col_ok[None, :], shifted, 0.0), 1), mask=row_ok)


@triton.jit
def dscores_kernel(
    e_ptr, order_ptr, count_ptr, target_ptr, m_ptr, log_total_ptr, logp_ptr, entropy_ptr, c_ptr, bonus_ptr,
    N, V, temperature, BONUS: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """e → ∂loss/∂(h Wᵀ), in place, of tokens order[: count]; m [tiles, N] has tiles of BV entries."""
    i = tl.program_id(0) * BN + tl.arange(0, BN)
    tile = tl.program_id(1)
    cols = tile * BV + tl.arange(0, BV)
    row_ok = i < tl.load(count_ptr)
    rows = tl.load(order_ptr + i, mask=row_ok, other=0)
    ok = row_ok[:, None] & (cols < V)[None, :]
    at = e_ptr + rows.to(tl.int64)[:, None] * V + cols[None, :]
    e = tl.load(at, mask=ok, other=0.0).to(tl.float32)
    m = tl.load(m_ptr + tile.to(tl.int64) * N + rows, mask=row_ok, other=0.0)
    shift = m - tl.load(log_total_ptr + rows, mask=row_ok, other=0.0)
    c = tl.load(c_ptr + rows, mask=row_ok, other=0.0)
    logp = tl.load(logp_ptr + rows, mask=row_ok, other=0.0)
    p = e * tl.exp(shift)[:, None]
    target = tl.load(target_ptr + rows, mask=row_ok, other=-1)
    is_target = cols[None, :] == target[:, None]
    dz = tl.where(is_target, (c * (1.0 - tl.exp(logp)))[:, None], -c[:, None] * p)
    if BONUS:
        entropy = tl.load(entropy_ptr + rows, mask=row_ok, other=0.0)
        bonus = tl.load(bonus_ptr + rows, mask=row_ok, other=0.0)
        log_p = tl.log(tl.maximum(e, 1e-38)) + shift[:, None]
        dz -= bonus[:, None] * p * (log_p + entropy[:, None])
    tl.store(at, (dz / temperature).to(e_ptr.dtype.element_ty), mask=ok)


def sizes_of(backend: str) -> dict[str, int]:
    """Tile of scores: the first of those of the log-prob. dscores has its BV, since m is of such tiles."""
    first = configurations(backend)[0]
    return first.kwargs | {"num_warps": first.num_warps, "num_stages": first.num_stages}


def in_chunks(mask: Tensor, rows: int) -> Iterator[Tensor]:
    """Places of all tokens, those that count first, `rows` at a time: how many count is not asked."""
    return iter(torch.argsort(~mask, stable=True).split(rows)) if len(mask) else iter(())


class Chunks:
    """See `linear_policy_loss_cpu.Chunks`, whose methods this has."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, temperature: float, bf16: bool, chunk: int, needs: list[bool]
    ):
        if bf16:
            hidden, weight = hidden.bfloat16(), weight.bfloat16()
        self.hidden, self.weight = rows_contiguous(hidden), rows_contiguous(weight)
        self.temperature, self.needs, self.sizes = temperature, needs, sizes_of(BACKEND)
        v, device = len(weight), hidden.device
        self.rows = min(chunk or max(BUFFER // (hidden.element_size() * v), 64), max(len(hidden), 1))
        self.buffer = torch.empty(self.rows * v, dtype=hidden.dtype, device=device)
        self.tiles = triton.cdiv(v, self.sizes["BV"])
        wide = {"dtype": torch.float32, "device": device}
        self.dh = torch.zeros(hidden.shape if needs[0] else 0, **wide)
        self.dw = torch.zeros(weight.shape if needs[1] else 0, **wide)

    def sums(self, some: Tensor, on: Tensor, target: Tensor) -> Tensor:
        self.h = torch.where(on[:, None], self.hidden[some], 0.0)
        self.target = torch.where(on, target, -1)
        (n, d), v = self.h.shape, len(self.weight)
        parts = torch.empty(4, self.tiles, n, dtype=torch.float32, device=self.h.device)
        scores_kernel[(triton.cdiv(n, self.sizes["BN"]), self.tiles)](
            self.h, self.weight, self.target, self.buffer, parts, n, v, d, self.h.stride(0),
            self.weight.stride(0), self.temperature, enable_fp_fusion=True, **self.sizes,
        )  # fmt: skip
        self.m = parts[0]
        return torch.stack(merge(*parts))

    def gradients(
        self, some: Tensor, logp: Tensor, entropy: Tensor, log_total: Tensor, c: Tensor, d_entropy: Tensor
    ) -> None:
        n, v = len(self.h), len(self.weight)
        live = (c != 0) | (d_entropy != 0)
        order, count = torch.argsort(~live, stable=True), live.sum()
        unit = torch.ones((), dtype=torch.float32, device=c.device)
        if self.h.dtype == torch.float16:  # gradients of 1e-8 would be lost: measured by the largest of them
            unit = torch.stack([c, d_entropy]).abs().max().clamp(min=1e-30)
        dz = self.buffer[: n * v].view(n, v)
        sizes = {"BN": ROWS, "BV": self.sizes["BV"]}
        dscores_kernel[(triton.cdiv(n, ROWS), self.tiles)](
            dz, order, count, self.target, self.m, log_total, logp, entropy, c / unit, d_entropy / unit,
            n, v, self.temperature, True, enable_fp_fusion=True, **sizes,
        )  # fmt: skip
        if self.needs[0]:
            dh = torch.zeros_like(self.h, dtype=torch.float32)
            add_product(dh, dz, self.weight, unit, add=False, some="m", order=order, count=count)
            self.dh[some] = dh
        if self.needs[1]:
            add_product(self.dw, dz.T, self.h, unit, add=True, some="k", order=order, count=count)

    def finished(self) -> tuple[Tensor, Tensor]:
        return self.dh, self.dw
