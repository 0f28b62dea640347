"""The clipped policy loss of GRPO and its variants, on packed ragged rows."""

from __future__ import annotations

import torch
from torch import Tensor

LOSS_TYPES = ("dapo", "grpo", "dr_grpo", "gspo")


def policy_loss_reference(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    offsets: Tensor,
    mask: Tensor,
    ref_logp: Tensor | None,
    sampler_logp: Tensor | None,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
    is_cap: float | None,
    loss_type: str,
    denominator: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The specification. Masked positions are replaced before any exp, so NaN and inf there change nothing."""
    lengths = offsets.diff()
    rows = torch.arange(len(lengths), device=logp.device).repeat_interleave(lengths)  # row of each token
    zero = logp.new_zeros(())

    def row_sum(x: Tensor) -> Tensor:
        return x.new_zeros(len(lengths)).index_add(0, rows, x)

    counted = row_sum(mask.to(logp.dtype))
    log_ratio = torch.where(mask, logp - old_logp, zero)
    if loss_type == "gspo":  # one ratio a sequence: the geometric mean of its tokens'
        log_ratio = (row_sum(log_ratio) / counted.clamp(min=1))[rows]
    ratio = log_ratio.exp()
    a = advantage[rows].to(logp.dtype)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(ratio * a, clipped * a)
    weight = torch.ones_like(logp)
    if is_cap is not None:
        weight = torch.where(mask, old_logp - sampler_logp, zero).exp().clamp(max=is_cap).detach()
        loss = loss * weight
    kl = torch.zeros_like(logp)
    if ref_logp is not None:  # k3: r − 1 − log r with r = π_ref / π, not weighted by the ratio
        d = torch.where(mask, ref_logp - logp, zero)
        kl = d.exp() - d - 1
        loss = loss + kl_coef * kl
    loss = torch.where(mask, loss, zero)
    if loss_type in ("grpo", "gspo"):
        loss = row_sum(loss) / counted.clamp(min=1)
    with torch.no_grad():
        moved = torch.where(mask, old_logp - logp, zero)
        stats = {
            "tokens": mask.sum(),
            "rows": (counted > 0).sum(),
            "clip_low_count": (mask & (a < 0) & (ratio < 1 - clip_low)).sum(),
            "clip_high_count": (mask & (a > 0) & (ratio > 1 + clip_high)).sum(),
            "kl_sum": torch.where(mask, kl, zero).sum(),
            "approx_kl_sum": (moved.exp() - moved - 1).sum(),
            "ratio_sum": torch.where(mask, ratio, zero).sum(),
            "ratio_max": torch.where(mask, ratio, zero).max() if len(logp) else zero,
            "is_weight_sum": torch.where(mask, weight, zero).sum(),
        }
    return loss.sum() / denominator, stats


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    offsets: Tensor,
    *,
    mask: Tensor | None = None,
    ref_logp: Tensor | None = None,
    sampler_logp: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    kl_coef: float = 0.0,
    is_cap: float | None = None,
    loss_type: str = "dapo",
    denominator: float | None = None,
    impl: str | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The negative clipped objective of packed rows.

    Args:
        logp, old_logp: [T] log-probs of R rows' tokens, end to end; offsets: [R+1]; advantage: [R].
        mask: [T] bool, True where a token counts (None: all).
        ref_logp: [T] of the reference policy, for `kl_coef` · k3 per token, unweighted by the ratio.
        sampler_logp, is_cap: the weight min(exp(old − sampler), is_cap), detached; give both or neither.
        clip_low, clip_high: the ratio is clipped to [1 − clip_low, 1 + clip_high].
        loss_type: "dapo" sums tokens (denominator: counted tokens of the whole step); "dr_grpo" too
            (denominator: rows × maximum length, always the caller's); "grpo" and "gspo" sum each row's
            token mean (denominator: rows); "gspo" has one ratio a row.
        denominator: of the *whole* step, so that micro-batches and ranks add up (C1); None: of this call.

    Returns:
        the scalar loss, and sums (not means) of statistics, detached, so that micro-batches add up.
    """
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type must be one of {', '.join(LOSS_TYPES)}, got {loss_type!r}")
    if (is_cap is None) != (sampler_logp is None):
        raise ValueError("give sampler_logp and is_cap together, or neither")
    if kl_coef and ref_logp is None:
        raise ValueError("kl_coef needs ref_logp")
    if impl not in (None, "reference"):
        raise ValueError(f"impl must be None or 'reference', got {impl!r}")
    if mask is None:
        mask = torch.ones_like(logp, dtype=torch.bool)
    if denominator is None:
        if loss_type == "dr_grpo":
            raise ValueError("dr_grpo needs denominator = rows × maximum length")
        if loss_type == "dapo":
            denominator = max(int(mask.sum()), 1)
        else:
            denominator = max(len(advantage), 1)
    return policy_loss_reference(
        logp,
        old_logp,
        advantage,
        offsets,
        mask,
        ref_logp,
        sampler_logp,
        clip_low,
        clip_high,
        kl_coef,
        is_cap,
        loss_type,
        denominator,
    )
