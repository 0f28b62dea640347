"""The Triton kernel of `policy_loss.py`: one program a row of tokens, all rows in one launch, no padding.

A program reads its row's tokens BLOCK at a time. Where the loss needs a number of the whole row first (how
many tokens count, the ratio of the sequence), a first pass finds it; the main pass computes the loss, its
gradient in logp and the statistics together, so a token is read once and its gradient written once. Rows
leave ten sums each, which are added up in a fixed order: two runs give the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024
PARTS = 10  # the loss, and the nine of policy_loss.STATS


@triton.jit
def policy_kernel(
    logp_ptr, old_ptr, ref_ptr, sampler_ptr, advantage_ptr, offsets_ptr, mask_ptr, grad_ptr, parts_ptr,
    clip_low, clip_high, kl_coef, is_cap,
    HAS_REF: tl.constexpr, HAS_SAMPLER: tl.constexpr, BY_ROW: tl.constexpr, SEQUENCE: tl.constexpr,
    BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Row r = program: ∂loss/∂logp of its tokens → grad [T], its loss and statistics → parts [R, PARTS]."""
    r = tl.program_id(0)
    start, end = tl.load(offsets_ptr + r), tl.load(offsets_ptr + r + 1)
    zero = tl.zeros((BLOCK,), tl.float32)
    a = zero + tl.load(advantage_ptr + r).to(tl.float32)

    n, moved, weights = zero, zero, zero  # first pass: tokens that count, Σ log ρ, Σ w
    for t0 in range(start, end, BLOCK):
        t = t0 + tl.arange(0, BLOCK)
        on = tl.load(mask_ptr + t, mask=t < end, other=0) != 0
        n += on.to(tl.float32)
        if SEQUENCE:  # `where` through the load's mask: what a masked position holds is never read (C3)
            old = tl.load(old_ptr + t, mask=on, other=0.0)
            moved += tl.load(logp_ptr + t, mask=on, other=0.0) - old
            if HAS_SAMPLER:
                sampler = tl.load(sampler_ptr + t, mask=on, other=0.0)
                weights += tl.where(on, tl.minimum(tl.exp(old - sampler), is_cap), 0.0)
    counted = tl.sum(n, 0)
    share = 1.0 / tl.maximum(counted, 1.0) if BY_ROW else counted * 0.0 + 1.0  # of a token in the row's sum
    row_log_ratio = tl.sum(moved, 0) * share
    row_weight = (tl.sum(weights, 0) if HAS_SAMPLER else counted) * share

    loss, lows, highs, kls, approx, ratios, is_weights = zero, zero, zero, zero, zero, zero, zero
    largest = zero
    for t0 in range(start, end, BLOCK):
        t = t0 + tl.arange(0, BLOCK)
        on = tl.load(mask_ptr + t, mask=t < end, other=0) != 0
        logp = tl.load(logp_ptr + t, mask=on, other=0.0)
        old = tl.load(old_ptr + t, mask=on, other=0.0)
        log_ratio = logp - old
        ratio = tl.exp(zero + row_log_ratio) if SEQUENCE else tl.exp(log_ratio)
        low = on & (a < 0) & (ratio < 1.0 - clip_low)
        high = on & (a > 0) & (ratio > 1.0 + clip_high)
        clipped = tl.minimum(tl.maximum(ratio, 1.0 - clip_low), 1.0 + clip_high)
        weight = zero + 1.0
        if HAS_SAMPLER:
            weight = tl.minimum(tl.exp(old - tl.load(sampler_ptr + t, mask=on, other=0.0)), is_cap)
        objective = tl.minimum(ratio * a, clipped * a) * weight
        grad = tl.where(low | high, 0.0, -ratio * a)
        grad *= row_weight if SEQUENCE else weight  # a token moves the ratio of the whole row by 1 / counted
        kl = zero
        if HAS_REF:
            d = tl.load(ref_ptr + t, mask=on, other=0.0) - logp
            kl = tl.exp(d) - 1.0 - d
            grad += kl_coef * (1.0 - tl.exp(d))
        tl.store(grad_ptr + t, tl.where(on, grad * share, 0.0), mask=t < end)
        loss += tl.where(on, (kl_coef * kl - objective) * share, 0.0)
        lows += low.to(tl.float32)
        highs += high.to(tl.float32)
        kls += tl.where(on, kl, 0.0)
        approx += tl.where(on, tl.exp(-log_ratio) - 1.0 + log_ratio, 0.0)
        ratios += tl.where(on, ratio, 0.0)
        largest = tl.maximum(largest, tl.where(on, ratio, 0.0))
        is_weights += tl.where(on, weight, 0.0)
    out = parts_ptr + r.to(tl.int64) * PARTS
    tl.store(out, tl.sum(loss, 0))
    tl.store(out + 1, counted)
    tl.store(out + 2, (counted > 0).to(tl.float32))
    tl.store(out + 3, tl.sum(lows, 0))
    tl.store(out + 4, tl.sum(highs, 0))
    tl.store(out + 5, tl.sum(kls, 0))
    tl.store(out + 6, tl.sum(approx, 0))
    tl.store(out + 7, tl.sum(ratios, 0))
    tl.store(out + 8, tl.max(largest, 0))
    tl.store(out + 9, tl.sum(is_weights, 0))


def forward(
    logp, old_logp, ref_logp, sampler_logp, advantage, offsets, mask, clip_low, clip_high, kl_coef, is_cap,
    loss_type,
):  # fmt: skip
    """See `policy_loss.fused`, whose signature this has."""
    rows = len(advantage)
    grad = torch.empty_like(logp)
    parts = torch.zeros(rows, PARTS, dtype=torch.float32, device=logp.device)
    tokens = [None if x is None else x.contiguous() for x in (logp, old_logp, ref_logp, sampler_logp)]
    if rows:
        policy_kernel[(rows,)](
            *tokens, advantage.contiguous(), offsets.contiguous(), mask.contiguous().view(torch.uint8), grad,
            parts, clip_low, clip_high, kl_coef, is_cap, ref_logp is not None, sampler_logp is not None,
            loss_type in ("grpo", "gspo"), loss_type == "gspo", BLOCK, PARTS, num_warps=8,
            enable_fp_fusion=True,
        )  # fmt: skip
    sums = parts.sum(0)
    if rows:
        sums[8] = parts[:, 8].max()  # ratio_max, the one that is not a sum
    return sums[0].clone(), grad, sums[1:].clone()
