"""The matrix product of the gradients: out (+)= a @ b · unit, added up in float32 and into `out` in one pass.

What the library's product does not have: it adds to a float32 matrix from 16-bit factors, with one read and
one write of it, and it can take some rows only, by a list and a count that wait on the device, so that the
host need not know how many there are. No atomics: two runs give the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret
BACKEND = "interpreter" if INTERPRETED else "hip" if torch.version.hip else "cuda"


def configuration(backend: str) -> dict[str, int]:
    """Sizes of a tile: BM × BN of the result, BYTES of the summed dimension at a time."""
    return {
        "cuda": {"BM": 128, "BN": 128, "BYTES": 128, "num_warps": 8, "num_stages": 3},
        "hip": {"BM": 128, "BN": 128, "BYTES": 64, "num_warps": 8, "num_stages": 2},
        "interpreter": {"BM": 64, "BN": 256, "BYTES": 1024, "num_warps": 1, "num_stages": 1},
    }[backend]


@triton.jit
def product_kernel(
    a_ptr, b_ptr, out_ptr, order_ptr, count_ptr, unit_ptr, M, N, K, a_m, a_k, b_k, out_m,
    ADD: tl.constexpr, SOME: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """A tile of out [M, N]. SOME: "" all; "m": rows order[: count] of a and out alone; "k": of aᵀ and b."""
    BK: tl.constexpr = BYTES // (a_ptr.dtype.element_ty.primitive_bitwidth // 8)
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    if SOME == "m":
        M = tl.load(count_ptr)
    if SOME == "k":
        K = tl.load(count_ptr)
    row_ok, col_ok = i < M, cols < N
    rows = i
    if SOME == "m":
        rows = tl.load(order_ptr + i, mask=row_ok, other=0)
    acc = tl.zeros((BM, BN), tl.float32)
    end = tl.where(tl.program_id(0) * BM < M, K, 0)  # a tile without rows has nothing to add up
    for k0 in range(0, end, BK):
        at = k0 + tl.arange(0, BK)
        k_ok = at < K
        k = at
        if SOME == "k":
            k = tl.load(order_ptr + at, mask=k_ok, other=0)
        a_at = rows.to(tl.int64)[:, None] * a_m + k.to(tl.int64)[None, :] * a_k  # int64: passes 2³¹
        b_at = k.to(tl.int64)[:, None] * b_k + cols[None, :]
        a = tl.load(a_ptr + a_at, mask=row_ok[:, None] & k_ok[None, :], other=0.0)
        b = tl.load(b_ptr + b_at, mask=k_ok[:, None] & col_ok[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    acc *= tl.load(unit_ptr)
    out = out_ptr + rows.to(tl.int64)[:, None] * out_m + cols[None, :]
    ok = row_ok[:, None] & col_ok[None, :]
    if ADD:
        acc += tl.load(out, mask=ok, other=0.0).to(tl.float32)
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=ok)


def add_product(
    out: Tensor,
    a: Tensor,
    b: Tensor,
    unit: Tensor,
    *,
    add: bool,
    some: str = "",
    order: Tensor | None = None,
    count: Tensor | None = None,
) -> None:
    """out [M, N] = a [M, K] @ b [K, N] · unit, or with `add` out += …; unit is a float32 scalar tensor.

    `some`: "m" computes rows order[: count] of out alone; "k" sums over order[: count] of the K alone.
    `b` and `out` have contiguous rows.
    """
    sizes = configuration(BACKEND)
    (m, k), n = a.shape, b.shape[1]
    if m and n:
        product_kernel[(triton.cdiv(m, sizes["BM"]), triton.cdiv(n, sizes["BN"]))](
            a, b, out, order, count, unit, m, n, k, a.stride(0), a.stride(1), b.stride(0), out.stride(0),
            add, some, enable_fp_fusion=True, **sizes,
        )  # fmt: skip
