"""The Triton kernel of `advantage.py`: one program a group, of any size, all groups in one launch.

A program reads its group three times, BLOCK rewards at a time: for the count, sum and extremes; for the
squared deviations from the mean; and to write the advantages. The rewards of a group are few and stay in
the cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 256


@triton.jit
def read_scores(r_ptr, order_ptr, at, ok):
    """Rows, rewards (float64) and whether they are scores, of places `at` in the sorted order."""
    row = tl.load(order_ptr + at, mask=ok, other=0)
    x = tl.load(r_ptr + row, mask=ok, other=0.0).to(tl.float64)
    scored = ok & (x == x)
    return row, tl.where(scored, x, 0.0), scored


@triton.jit
def advantage_kernel(
    r_ptr, order_ptr, offsets_ptr, advantage_ptr, floats_ptr, ints_ptr, G, eps, ddof,
    SCALE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Group g = program: advantages [N], floats [2, G] = mean, std, ints [3, G] = count, varied, NaNs."""
    g = tl.program_id(0)
    start, end = tl.load(offsets_ptr + g), tl.load(offsets_ptr + g + 1)
    n = tl.zeros((BLOCK,), tl.float64)
    total = tl.zeros((BLOCK,), tl.float64)
    high = tl.full((BLOCK,), float("-inf"), tl.float64)
    low = tl.full((BLOCK,), float("inf"), tl.float64)
    for at0 in range(start, end, BLOCK):
        at = at0 + tl.arange(0, BLOCK)
        row, x, scored = read_scores(r_ptr, order_ptr, at, at < end)
        n += scored.to(tl.float64)
        total += x
        high = tl.maximum(high, tl.where(scored, x, float("-inf")))
        low = tl.minimum(low, tl.where(scored, x, float("inf")))
    count = tl.sum(n, 0)
    mean = tl.sum(total, 0) / tl.maximum(count, 1.0)
    varied = tl.max(high, 0) > tl.min(low, 0)
    squares = tl.zeros((BLOCK,), tl.float64)
    for at0 in range(start, end, BLOCK):
        at = at0 + tl.arange(0, BLOCK)
        row, x, scored = read_scores(r_ptr, order_ptr, at, at < end)
        squares += tl.where(scored, (x - mean) * (x - mean), 0.0)
    std = tl.sqrt(tl.sum(squares, 0) / tl.maximum(count - ddof, 1.0))
    factor = count * 0.0 + 1.0
    if SCALE == "std":
        factor = 1.0 / (std + eps)
    if SCALE == "loo":
        factor = count / tl.maximum(count - 1.0, 1.0)
    factor = tl.where(varied, factor, 0.0)
    for at0 in range(start, end, BLOCK):
        at = at0 + tl.arange(0, BLOCK)
        row, x, scored = read_scores(r_ptr, order_ptr, at, at < end)
        tl.store(
            advantage_ptr + row, tl.where(scored, (x - mean) * factor, 0.0).to(tl.float32), mask=at < end
        )
    tl.store(floats_ptr + g, mean.to(tl.float32))
    tl.store(floats_ptr + G + g, std.to(tl.float32))
    tl.store(ints_ptr + g, count.to(tl.int64))
    tl.store(ints_ptr + G + g, varied.to(tl.int64))
    tl.store(ints_ptr + 2 * G + g, end - start - count.to(tl.int64))


def forward(rewards, order, offsets, scale, eps, ddof):
    """See `advantage.segmented`, whose signature this has."""
    n, groups = len(rewards), len(offsets) - 1
    advantage = torch.empty(n, dtype=torch.float32, device=rewards.device)
    floats = advantage.new_empty(2, groups)
    ints = torch.empty(3, groups, dtype=torch.int64, device=rewards.device)
    if groups:
        advantage_kernel[(groups,)](
            rewards.contiguous(), order, offsets.contiguous(), advantage, floats, ints, groups, eps, ddof,
            scale, BLOCK, enable_fp_fusion=True,
        )  # fmt: skip
    mean, std, count, nans = (
        floats[0].clone(),
        floats[1].clone(),
        ints[0].clone(),
        ints[2].clone(),
    )  # no views
    return advantage, mean, std, count, ints[1] > 0, nans
