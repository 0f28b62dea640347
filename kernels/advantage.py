"""Group-relative advantages: (R − mean) / (std + eps) within each group of the same prompt.

The standard deviation is the population's (ddof = 0) and eps = 1e-6 is added to it, by default: peers use
ddof 0 or 1 and eps 1e-4, 1e-6 or 1e-8 (C21). A group without variance is told by max == min (C9), never
by a small deviation: sixty-four rewards of 0.945 have a rounding-sized one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SCALES = ("std", "none", "loo")


class GroupStats(NamedTuple):
    """Per group [G], in the order of sorted group ids; NaN rewards are counted and otherwise left out."""

    group_id: Tensor
    reward_mean: Tensor
    reward_std: Tensor
    count: Tensor
    has_variance: Tensor
    nan_count: Tensor


def group_advantage_reference(
    rewards: Tensor, groups: Tensor, n_groups: int, scale: str, eps: float, ddof: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The specification, on dense group numbers [N] in 0 … n_groups−1; sums in float64."""
    valid = ~rewards.isnan()
    x = torch.where(valid, rewards, 0.0).double()

    def total(values: Tensor) -> Tensor:
        return torch.zeros(n_groups, dtype=torch.float64, device=x.device).index_add_(0, groups, values)

    count = total(valid.double())
    mean = total(x) / count.clamp(min=1)
    centred = torch.where(valid, x - mean[groups], 0.0)
    std = (total(centred**2) / (count - ddof).clamp(min=1)).sqrt()
    largest = torch.full_like(mean, -torch.inf).scatter_reduce_(
        0, groups, torch.where(valid, x, -torch.inf), "amax"
    )
    smallest = torch.full_like(mean, torch.inf).scatter_reduce_(0, groups, torch.where(valid, x, torch.inf), "amin")
    varied = largest > smallest
    if scale == "std":
        advantage = centred / (std + eps)[groups]
    elif scale == "loo":  # against the mean of the others: (R − mean) · n / (n − 1)
        advantage = centred * (count / (count - 1).clamp(min=1))[groups]
    else:
        advantage = centred
    advantage = torch.where(valid & varied[groups], advantage, 0.0)
    return advantage.float(), (mean.float(), std.float(), count.long(), varied, total((~valid).double()).long())


def group_advantage(
    rewards: Tensor,
    group_ids: Tensor | None = None,
    *,
    offsets: Tensor | None = None,
    gates: tuple[Tensor, ...] = (),
    scale: str = "std",
    eps: float = 1e-6,
    ddof: int = 0,
    impl: str | None = None,
) -> tuple[Tensor, GroupStats]:
    """Advantages of rewards within their groups.

    Args:
        rewards: [N] floats; NaN = the judge failed to answer: advantage 0, left out of the statistics.
        group_ids: [N] int64, any values in any order (C10); or `offsets` [G+1] of contiguous groups.
        gates: [N] tensors that the rewards are multiplied by (R_format, R_meta); a gate of 0 gives 0.
        scale: "std", "none" (Dr. GRPO) or "loo" (leave-one-out).

    Returns:
        advantages [N] float32, and GroupStats.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if impl not in (None, "reference"):
        raise ValueError(f"impl must be None or 'reference', got {impl!r}")
    if (group_ids is None) == (offsets is None):
        raise ValueError("give either group_ids or offsets")
    for gate in gates:
        rewards = torch.where((gate == 0) | (rewards == 0), 0.0, rewards * gate)
    if offsets is not None:
        ids = torch.arange(len(offsets) - 1, device=rewards.device)
        groups = ids.repeat_interleave(offsets.diff())
    else:
        ids, groups = torch.unique(group_ids, return_inverse=True)
    advantage, stats = group_advantage_reference(rewards, groups, len(ids), scale, eps, ddof)
    return advantage, GroupStats(ids, *stats)
