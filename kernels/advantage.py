"""Group-relative advantages: (R − mean) / (std + eps) among the completions of the same prompt.

The standard deviation is the population's (ddof = 0) and eps = 1e-6 is added to it, unless told otherwise:
peers use ddof 0 or 1 and eps 1e-4, 1e-6 or 1e-8, so both are named here and tested (C21). A group without
variance is told by max == min (C9), never by a small deviation: sixty-four rewards of 0.945 have one of
rounding's size. A NaN reward, of a judge that failed to answer, is no score: it is counted, left out of its
group's statistics, and gets advantage 0 (C11).

Sums are taken in float64: rewards are few, and a deviation of nearly equal numbers needs the digits. The
reference is a loop over groups; the CPU form does all groups at once, and the Triton kernel (one program a
group, in `advantage_triton.py`) in one launch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nanov2.kernels.common import pick, triton_form

SCALES = ("std", "none", "loo")
Statistics = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class GroupStats(NamedTuple):
    """One entry per group [G], in the order of sorted ids (or of `offsets`)."""

    group_id: Tensor  # int64: the caller's id, or the group's number where offsets were given
    reward_mean: Tensor  # float32; 0 for a group without a score
    reward_std: Tensor  # float32, with the call's ddof, without eps
    count: Tensor  # int64: rewards that are scores
    has_variance: Tensor  # bool: max > min; all other groups have advantage 0
    nan_count: Tensor  # int64: rewards that are not scores


# ── Reference ─────────────────────────────────────────────────────────────────────────────────────────


def group_advantage_reference(
    rewards: Tensor, members: list[Tensor], scale: str, eps: float, ddof: int
) -> tuple[Tensor, ...]:
    """The specification: advantages [N], then GroupStats without ids; members[g] are group g's rows."""
    rewards = rewards.double()
    advantage = torch.zeros_like(rewards)
    rows = []
    for member in members:
        of_group = rewards[member]
        scores = of_group[~of_group.isnan()]
        n = len(scores)
        mean = scores.sum() / max(n, 1)
        std = ((scores - mean).square().sum() / max(n - ddof, 1)).sqrt()
        varied = n > 0 and bool(scores.max() > scores.min())
        factor = {"std": 1 / (std + eps), "none": 1.0, "loo": n / max(n - 1, 1)}[scale]
        if varied:  # "loo" compares with the mean of the others: (R − mean) · n / (n − 1)
            advantage[member] = torch.where(of_group.isnan(), 0.0, (of_group - mean) * factor)
        rows.append((float(mean), float(std), n, varied, len(of_group) - n))
    kinds = (torch.float32, torch.float32, torch.int64, torch.bool, torch.int64)
    columns = zip(*rows, strict=True) if rows else [[]] * 5
    stats = (torch.tensor(x, dtype=k, device=rewards.device) for x, k in zip(columns, kinds, strict=True))
    return advantage.float(), *stats


# ── CPU form: all groups at once ──────────────────────────────────────────────────────────────────────


def segmented(
    rewards: Tensor, order: Tensor, offsets: Tensor, scale: str, eps: float, ddof: int
) -> Statistics:
    """Group g's rows are order[offsets[g] : offsets[g + 1]]; a sum is one pass over sorted rewards."""
    x = rewards.double()[order]
    scored = ~x.isnan()
    x = torch.where(scored, x, 0.0)
    sizes = offsets.diff()
    group = torch.arange(len(sizes), device=x.device).repeat_interleave(sizes)

    def total(values: Tensor) -> Tensor:
        return x.new_zeros(len(sizes)).index_add_(0, group, values)

    count = total(scored.double())
    mean = total(x) / count.clamp(min=1)
    centred = torch.where(scored, x - mean[group], 0.0)
    std = (total(centred.square()) / (count - ddof).clamp(min=1)).sqrt()
    high, low = torch.where(scored, x, -torch.inf), torch.where(scored, x, torch.inf)
    high = torch.full_like(mean, -torch.inf).scatter_reduce_(0, group, high, "amax")
    low = torch.full_like(mean, torch.inf).scatter_reduce_(0, group, low, "amin")
    varied = high > low
    if scale == "std":
        factor = 1 / (std + eps)
    else:
        factor = count / (count - 1).clamp(min=1) if scale == "loo" else torch.ones_like(mean)
    advantage = torch.empty_like(x)
    advantage[order] = centred * torch.where(varied, factor, 0.0)[group]
    return advantage.float(), mean.float(), std.float(), count.long(), varied, sizes - count.long()


# ── Custom operator ───────────────────────────────────────────────────────────────────────────────────


def _run(rewards, order, offsets, scale, eps, ddof, form) -> Statistics:
    run = segmented if form == "cpu" else triton_form("advantage").forward
    return run(rewards, order, offsets, scale, eps, ddof)


@torch.library.custom_op("nanov2::group_advantage", mutates_args=())
def group_advantage_op(
    rewards: Tensor,
    order: Tensor,
    offsets: Tensor,
    scale: str,
    eps: float,
    ddof: int,
    form: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Advantages [N], and mean, std, count, has_variance, nan_count [G]. Rewards have no gradient."""
    return _run(rewards, order, offsets, scale, eps, ddof, form)


@group_advantage_op.register_fake
def _(rewards, order, offsets, scale, eps, ddof, form):
    n_groups = offsets.shape[0] - 1
    kinds = (torch.float32, torch.float32, torch.int64, torch.bool, torch.int64)
    stats = (rewards.new_empty(n_groups, dtype=kind) for kind in kinds)
    return torch.empty_like(rewards, dtype=torch.float32), *stats


# ── The public function ───────────────────────────────────────────────────────────────────────────────


def group_advantage(
    rewards: Tensor,
    group_ids: Tensor | None = None,
    *,
    offsets: Tensor | None = None,
    scale: str = "std",
    eps: float = 1e-6,
    ddof: int = 0,
    impl: str | None = None,
) -> tuple[Tensor, GroupStats]:
    """Advantages of rewards within their groups, which may be of any and of different sizes.

    Args:
        rewards: [N] floats; NaN = the judge failed to answer: advantage 0, left out of the statistics (C11).
        group_ids: [N] int64, any values in any order (C10); or
        offsets: [G+1] int64 from 0 to N: group g is rows offsets[g] … offsets[g+1]−1, and may be empty.
        scale: "std" (GRPO: over std + eps), "none" (Dr. GRPO: R − mean) or "loo" (leave-one-out, RLOO).
        eps: added to the standard deviation; ddof: 0 divides its sum by n, 1 by n − 1 (C21).
        impl: None picks by device; "reference", "cpu" or "triton".

    Returns:
        advantages [N] float32, exactly 0 in groups without variance (C9); and GroupStats.

    Raises:
        ValueError: an unsupported option or shape, or offsets (on a CPU) that do not run from 0 to N.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, got {ddof}")
    if (group_ids is None) == (offsets is None):
        raise ValueError("give either group_ids or offsets")
    n = len(rewards)
    if rewards.shape != (n,) or (offsets is None and group_ids.shape != (n,)):
        raise ValueError(f"rewards and group_ids must be [N], N = {n}")
    form, rewards = pick(impl, rewards), rewards.detach()
    if offsets is not None:
        _check_offsets(offsets, n)
        ids = torch.arange(len(offsets) - 1, device=rewards.device)
        order = torch.arange(n, device=rewards.device)
    else:
        by_id, order = torch.sort(group_ids, stable=True)
        ids, sizes = torch.unique_consecutive(by_id, return_counts=True)
        offsets = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
    if form == "reference":
        members = list(order.split(offsets.diff().tolist()))
        return _named(ids, group_advantage_reference(rewards, members, scale, eps, ddof))
    run = group_advantage_op if torch.compiler.is_compiling() else _run
    return _named(ids, run(rewards, order, offsets, scale, float(eps), ddof, form))


def _named(ids: Tensor, outputs: Statistics) -> tuple[Tensor, GroupStats]:
    advantage, *stats = outputs
    return advantage, GroupStats(ids, *stats)


def _check_offsets(offsets: Tensor, n: int) -> None:
    if offsets.dim() != 1 or len(offsets) == 0:
        raise ValueError(f"offsets must be [G+1], got shape {tuple(offsets.shape)}")
    if not (offsets.is_cuda or torch.compiler.is_compiling()):
        if offsets[0] != 0 or offsets[-1] != n or bool((offsets.diff() < 0).any()):
            raise ValueError(f"offsets must rise from 0 to N = {n}")
