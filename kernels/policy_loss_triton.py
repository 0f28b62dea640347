"""The Triton kernel of `policy_loss.py`: one program a row of tokens, all rows in one launch, no padding.

A program reads its row's tokens BLOCK at a time. Where the loss needs a number of the whole row first (how
many tokens count, the ratio of the sequence), a first pass finds it; the main pass computes the loss, its
gradient in logp and the statistics together, so a token is read once and its gradient written once. Rows
leave eleven sums each, which are added up in a fixed order: two runs give the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nanov2.kernels.policy_loss import RATIO_MAX, STATS

BLOCK = 1024
PARTS = 1 + len(STATS)  # the loss, and the statistics


@triton.jit
def policy_kernel(
    logp_ptr, old_ptr, ref_ptr, sampler_ptr, advantage_ptr, offsets_ptr, mask_ptr, grad_ptr, parts_ptr,
    clip_low, clip_high, kl_coef, is_cap, off_policy_delta,
    HAS_REF: tl.constexpr, HAS_SAMPLER: tl.constexpr, BY_ROW: tl.constexpr, SEQUENCE: tl.constexpr,
    KL_WEIGHTED: tl.constexpr, OFF_POLICY: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Row r = program: ∂loss/∂logp of its tokens → grad [T], its loss and statistics → parts [R, PARTS]."""
    r = tl.program_id(0)
    start, end = tl.load(offsets_ptr + r), tl.load(offsets_ptr + r + 1)
    zero = tl.zeros((BLOCK,), tl.float32)
    a = zero + tl.load(advantage_ptr + r).to(tl.float32)

    n, moved, weights, lost, kls = zero, zero, zero, zero, zero  # first pass: tokens that count, Σ log ρ, …
    for t0 in range(start, end, BLOCK):
        t = t0 + tl.arange(0, BLOCK)
        on = tl.load(mask_ptr + t, mask=t < end, other=0) != 0
        n += on.to(tl.float32)
        if SEQUENCE or OFF_POLICY:  # what a masked position holds is never read (C3)
            logp = tl.load(logp_ptr + t, mask=on, other=0.0)
            old = tl.load(old_ptr + t, mask=on, other=0.0)
            sampled = old
            moved += logp - old
            if HAS_SAMPLER:
                sampled = tl.load(sampler_ptr + t, mask=on, other=0.0)
                weights += tl.where(on, tl.minimum(tl.exp(old - sampled), is_cap), 0.0)
            lost += sampled - logp
            if HAS_REF and KL_WEIGHTED:
                d = tl.load(ref_ptr + t, mask=on, other=0.0) - logp
                kls += tl.exp(d) - 1.0 - d
    counted = tl.sum(n, 0)
    per_token = 1.0 / tl.maximum(counted, 1.0)
    share = per_token if BY_ROW else counted * 0.0 + 1.0  # of a token in the row's sum
    row_log_ratio = tl.sum(moved, 0) * per_token
    row_weight = (tl.sum(weights, 0) if HAS_SAMPLER else counted) * per_token
    row_kl = tl.sum(kls, 0) * per_token
    live = counted * 0.0 + 1.0
    if OFF_POLICY:
        row_a = tl.load(advantage_ptr + r).to(tl.float32)
        live = tl.where((row_a < 0) & (tl.sum(lost, 0) * per_token > off_policy_delta), 0.0, 1.0)

    loss, lows, highs, approx, ratios, is_weights, largest = zero, zero, zero, zero, zero, zero, zero
    kls = zero
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
        objective = tl.minimum(ratio * a, clipped * a) * weight * live
        grad = tl.where(low | high, 0.0, -ratio * a) * live
        grad *= row_weight if SEQUENCE else weight  # a token moves the ratio of the whole row by 1 / counted
        kl = zero
        if HAS_REF:
            d = tl.load(ref_ptr + t, mask=on, other=0.0) - logp
            kl = tl.exp(d) - 1.0 - d
            slope = 1.0 - tl.exp(d)
            if KL_WEIGHTED:
                slope = ratio * (slope + row_kl) if SEQUENCE else -ratio * d
            grad += kl_coef * slope
        tl.store(grad_ptr + t, tl.where(on, grad * share, 0.0), mask=t < end)
        penalty = kl_coef * kl * ratio if KL_WEIGHTED else kl_coef * kl
        loss += tl.where(on, (penalty - objective) * share, 0.0)
        lows += low.to(tl.float32) * live
        highs += high.to(tl.float32) * live
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
    tl.store(out + 10, 1.0 - live)


def forward(logp, old_logp, ref_logp, sampler_logp, advantage, offsets, mask, o):
    """See `policy_loss.fused`, whose signature this has."""
    rows = len(advantage)
    grad = torch.empty_like(logp)
    parts = torch.zeros(rows, PARTS, dtype=torch.float32, device=logp.device)
    tokens = [None if x is None else x.contiguous() for x in (logp, old_logp, ref_logp, sampler_logp)]
    if rows:
        policy_kernel[(rows,)](
            *tokens, advantage.contiguous(), offsets.contiguous(), mask.contiguous().view(torch.uint8), grad,
            parts, o.clip_low, o.clip_high, o.kl_coef, o.is_cap, o.off_policy_delta, ref_logp is not None,
            sampler_logp is not None, o.by_row, o.sequence, o.kl_weighted, o.off_policy_delta < torch.inf,
            BLOCK, PARTS, num_warps=8, enable_fp_fusion=True,
        )  # fmt: skip
    sums = parts.sum(0)
    if rows:
        sums[1 + RATIO_MAX] = parts[:, 1 + RATIO_MAX].max()  # the one that is not a sum
    return sums[0].clone(), grad, sums[1:].clone()
