"""The clipped policy loss of GRPO and its variants, on rows of different lengths laid end to end.

Of token t in row r, with ratio ρ = exp(logp − old), or one ρ a row from the mean of its tokens' log-ratios:

    loss = − w · min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A) + kl_coef · κ · (e^d − d − 1)

    d = ref − logp

    w = min(exp(old − sampler), is_cap), detached: what the sampler's own numerics change is weighted away;
        0 in a row with A < 0 whose tokens have, on average, lost more than `off_policy_delta` nats since
        they were sampled (the off-policy sequence mask of DeepSeek-V3.2, arXiv 2512.02556, section 3.1)
    e^d − d − 1 is the k3 estimate of KL(π ‖ π_ref) (Schulman); κ = 1, or κ = ρ with `kl_weighted`, which
        makes its gradient an unbiased one of KL(π ‖ π_ref) (the same section; the default of TRL)

"dapo" (arXiv 2503.14476) and "dr_grpo" (2503.20783) add all tokens up; "grpo" (2402.03300) and "gspo"
(2507.18071: "grpo" with one ratio a row) add up the means of rows. The sum is divided by a denominator of the
whole optimiser step, which is why micro-batches and ranks give the same gradient however they are cut (C1).

The reference leaves the gradient to autograd. The CPU form and the Triton kernel (one program a row, in
`policy_loss_triton.py`) know it in closed form and find loss, gradient and statistics in one pass: the
backward pass only multiplies. Of a token with its own ratio,

    ∂loss/∂logp = − w A ρ · [not clipped] + kl_coef · (1 − e^d), or with `kl_weighted` + kl_coef · ρ · (−d)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nanov2.kernels.common import pick, precise, triton_form

LOSS_TYPES = ("dapo", "grpo", "dr_grpo", "gspo")
RATIOS = ("token", "sequence")
STATS = (
    "tokens",  # that count
    "rows",  # with at least one token that counts
    "clip_low_count",  # tokens whose gradient the lower clip removed: A < 0 and ρ < 1 − clip_low
    "clip_high_count",  # … the upper clip: A > 0 and ρ > 1 + clip_high
    "kl_sum",  # k3 against the reference, unweighted
    "approx_kl_sum",  # k3 of the old policy against this one
    "ratio_sum",
    "ratio_max",  # the one that is not a sum
    "is_weight_sum",
    "off_policy_rows",  # rows that `off_policy_delta` masked
)
RATIO_MAX = STATS.index("ratio_max")


class Options(NamedTuple):
    """The numbers and choices of a loss, as every form takes them."""

    clip_low: float
    clip_high: float
    kl_coef: float
    is_cap: float
    by_row: bool  # the means of rows are added up, not their tokens
    sequence: bool  # one ratio a row
    kl_weighted: bool
    off_policy_delta: float  # inf: no row is masked


# ── Reference ─────────────────────────────────────────────────────────────────────────────────────────


def policy_loss_reference(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor | None,
    sampler_logp: Tensor | None,
    advantage: Tensor,
    offsets: Tensor,
    mask: Tensor,
    o: Options,
) -> tuple[Tensor, Tensor]:
    """The specification: the loss before division, and statistics in the order of STATS.

    Masked positions are replaced before any exp, so that NaN and inf there change nothing (C3).
    """
    lengths = offsets.diff()
    row = torch.arange(len(lengths), device=logp.device).repeat_interleave(lengths)  # row of each token
    zero = logp.new_zeros(())

    def row_sum(x: Tensor) -> Tensor:
        return x.new_zeros(len(lengths)).index_add(0, row, x)

    counted = row_sum(mask.to(logp.dtype))
    log_ratio = torch.where(mask, logp - old_logp, zero)
    if o.sequence:  # one ratio a row: the geometric mean of its tokens'
        log_ratio = (row_sum(log_ratio) / counted.clamp(min=1))[row]
    ratio = log_ratio.exp()
    a = advantage.to(logp.dtype)[row]
    loss = -torch.minimum(ratio * a, ratio.clamp(1 - o.clip_low, 1 + o.clip_high) * a)
    weight = torch.ones_like(logp)
    if sampler_logp is not None:
        weight = torch.where(mask, old_logp - sampler_logp, zero).exp().clamp(max=o.is_cap)
        loss = loss * weight
    sampled = old_logp if sampler_logp is None else sampler_logp
    lost = row_sum(torch.where(mask, sampled - logp.detach(), zero)) / counted.clamp(min=1)
    off_policy = (advantage < 0) & (lost > o.off_policy_delta)
    loss = torch.where(off_policy[row], zero, loss)
    kl = torch.zeros_like(logp)
    if ref_logp is not None:
        d = torch.where(mask, ref_logp - logp, zero)
        kl = d.exp() - d - 1
        loss = loss + o.kl_coef * (kl * ratio if o.kl_weighted else kl)
    loss = torch.where(mask, loss, zero)
    if o.by_row:
        loss = row_sum(loss) / counted.clamp(min=1)
    with torch.no_grad():
        moved = torch.where(mask, old_logp - logp, zero)
        ratio, live = torch.where(mask, ratio, zero), mask & ~off_policy[row]
        stats = [
            mask.sum(),
            (counted > 0).sum(),
            (live & (a < 0) & (ratio < 1 - o.clip_low)).sum(),
            (live & (a > 0) & (ratio > 1 + o.clip_high)).sum(),
            kl.sum(),
            (moved.exp() - moved - 1).sum(),
            ratio.sum(),
            ratio.max() if len(logp) else zero,
            torch.where(mask, weight, zero).sum(),
            off_policy.sum(),
        ]
    return loss.sum(), torch.stack([x.to(logp.dtype) for x in stats])


# ── CPU form: loss, gradient and statistics in one pass ───────────────────────────────────────────────


def fused(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor | None,
    sampler_logp: Tensor | None,
    advantage: Tensor,
    offsets: Tensor,
    mask: Tensor,
    o: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss before division, its gradient in logp [T], and the statistics."""
    lengths, zero = offsets.diff(), logp.new_zeros(())
    row = torch.arange(len(lengths), device=logp.device).repeat_interleave(lengths)

    def row_sum(x: Tensor) -> Tensor:
        return x.new_zeros(len(lengths)).index_add_(0, row, x)

    counted = row_sum(mask.to(logp.dtype))

    def row_mean(x: Tensor) -> Tensor:
        """[T] → the mean of each token's row, on every token of the row; x is 0 where nothing counts."""
        return (row_sum(x) / counted.clamp(min=1))[row]

    a = advantage.to(logp.dtype)
    off_policy = torch.zeros_like(a, dtype=torch.bool)
    if o.off_policy_delta < torch.inf:
        sampled = old_logp if sampler_logp is None else sampler_logp
        lost = row_sum(torch.where(mask, sampled - logp, zero)) / counted.clamp(min=1)
        off_policy = (a < 0) & (lost > o.off_policy_delta)
    loss, grad, stats = token_terms(
        logp,
        old_logp,
        ref_logp,
        sampler_logp,
        a[row],
        mask / counted.clamp(min=1)[row] if o.by_row else mask.to(logp.dtype),
        mask,
        ~off_policy[row],
        o,
        row_mean if o.sequence else None,
    )
    rows = {"rows": (counted > 0).sum(), "off_policy_rows": off_policy.sum()}
    return loss, grad, torch.stack([(stats | rows)[name].to(logp.dtype) for name in STATS])


def token_terms(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor | None,
    sampler_logp: Tensor | None,
    a: Tensor,
    share: Tensor,
    mask: Tensor,
    live: Tensor | None,
    o: Options,
    row_mean: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The loss of some tokens before division, its gradient in logp [T], and their share of the statistics.

    `a`, `share` and `live` [T] are the advantage of each token, its weight in the sum (0 where it is masked)
    and False in rows that are too far off policy (None: there are none). With `row_mean` a row has one
    ratio, and the tokens must be those of whole rows; without it they may be any.
    """
    zero = logp.new_zeros(())
    log_ratio = moved = torch.where(mask, logp - old_logp, zero)
    if row_mean is not None:
        log_ratio = row_mean(moved)
    ratio = log_ratio.exp()
    low = (a < 0) & (ratio < 1 - o.clip_low)
    high = (a > 0) & (ratio > 1 + o.clip_high)
    weight, is_weight = share, mask
    if sampler_logp is not None:
        is_weight = torch.where(mask, old_logp - sampler_logp, zero).exp_().clamp_(max=o.is_cap) * mask
        weight = share * is_weight
    if live is not None:
        weight = weight * live
    loss = -torch.dot(torch.minimum(ratio * a, ratio.clamp(1 - o.clip_low, 1 + o.clip_high) * a), weight)
    grad = torch.where(low | high, zero, ratio * a).neg_()
    grad *= weight if row_mean is None else row_mean(weight)  # a token moves its row's ratio by 1 / counted
    kl = zero
    if ref_logp is not None:
        d = torch.where(mask, ref_logp - logp, zero)
        up = d.expm1()
        kl = up - d
        if not o.kl_weighted:
            loss = loss + o.kl_coef * torch.dot(kl, share)
            grad -= o.kl_coef * up * share
        else:
            loss = loss + o.kl_coef * torch.dot(kl * ratio, share)
            slope = -d * share if row_mean is None else row_mean(kl * share) - up * share
            grad += o.kl_coef * ratio * slope
    if row_mean is not None:
        grad = torch.where(mask, grad, zero)
    ratio, live = torch.where(mask, ratio, zero), mask if live is None else mask & live
    stats = {
        "tokens": mask.sum(),
        "clip_low_count": (low & live).sum(),
        "clip_high_count": (high & live).sum(),
        "kl_sum": kl.sum(),
        "approx_kl_sum": ((-moved).expm1_() + moved).sum(),
        "ratio_sum": ratio.sum(),
        "ratio_max": ratio.max() if len(logp) else zero,
        "is_weight_sum": is_weight.sum(),
    }
    return loss, grad, stats


# ── Custom operator ───────────────────────────────────────────────────────────────────────────────────


def _forward(*inputs):
    *tensors, form = inputs[:7] + inputs[-1:]
    run = fused if form == "cpu" else triton_form("policy_loss").forward
    return run(*tensors, Options(*inputs[7:-1]))


@torch.library.custom_op("nanov2::policy_loss", mutates_args=())
def policy_loss_op(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor | None,
    sampler_logp: Tensor | None,
    advantage: Tensor,
    offsets: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
    is_cap: float,
    by_row: bool,
    sequence: bool,
    kl_weighted: bool,
    off_policy_delta: float,
    form: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss before division [], its gradient in logp [T], and the statistics [len(STATS)]."""
    return _forward(
        logp, old_logp, ref_logp, sampler_logp, advantage, offsets, mask, clip_low, clip_high, kl_coef,
        is_cap, by_row, sequence, kl_weighted, off_policy_delta, form,
    )  # fmt: skip


@policy_loss_op.register_fake
def _(logp, *_):
    return logp.new_empty(()), torch.empty_like(logp), logp.new_empty(len(STATS))


def _setup(ctx, inputs, output):
    ctx.save_for_backward(output[1])


def _backward(ctx, d_loss, _d_grad, _d_stats):
    (grad,) = ctx.saved_tensors
    return d_loss * grad, *[None] * 15


policy_loss_op.register_autograd(_backward, setup_context=_setup)


class _Eager(torch.autograd.Function):
    """The operator without the dispatcher, which costs as much as the arithmetic of 8,000 tokens."""

    forward = staticmethod(lambda *inputs: _forward(*inputs))
    setup_context = staticmethod(_setup)
    backward = staticmethod(_backward)


# ── The public function ───────────────────────────────────────────────────────────────────────────────


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
    kl_weighted: bool = False,
    is_cap: float | None = None,
    off_policy_delta: float | None = None,
    loss_type: str = "dapo",
    ratio: str | None = None,
    denominator: float | None = None,
    impl: str | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The negative clipped objective of packed rows, differentiable in `logp` alone.

    Args:
        logp, old_logp: [T] log-probs, in nats, of R rows' tokens, end to end: of the policy, and the old one.
        advantage: [R]; offsets: [R+1] int64 from 0 to T; row r is tokens offsets[r] … offsets[r+1]−1.
        mask: [T] bool, True where a token counts (None: all). What a masked position holds is never used.
        ref_logp: [T] under the reference policy, for `kl_coef` · k3 per token; `kl_weighted` multiplies it
            by the (unclipped) ratio.
        sampler_logp, is_cap: the weight min(exp(old − sampler), is_cap), detached; give both or neither.
        clip_low, clip_high: the ratio is clipped to [1 − clip_low, 1 + clip_high].
        off_policy_delta: ≥ 0, or None: a row with negative advantage has no policy loss, but its KL, where
            the mean of sampler − logp, or of old − logp without a sampler's, is above this.
        loss_type: "dapo" sums tokens (denominator: counted tokens of the whole step); "dr_grpo" too
            (denominator: rows × maximum completion length, always the caller's); "grpo" and "gspo" sum each
            row's token mean (denominator: rows); "gspo" is "grpo" with one ratio a row. TRL's "bnpo" is
            "dapo" with denominator None.
        ratio: "token" or "sequence" (one a row, under every normalisation); None: as the loss type has it.
        denominator: of the *whole* step, so that micro-batches and ranks add up (C1); None: of this call,
            counting as the numerator does (C2): rows with no token that counts are no rows.
        impl: None picks by device; "reference", "cpu" or "triton".

    Returns:
        the loss, a scalar (0 where nothing counts, with gradient 0), float32 (float64 for float64 logp); and
        detached scalars by the names in STATS: sums, not means, so that micro-batches and ranks add up.

    Raises:
        ValueError: an unsupported option or shape, or offsets (on a CPU) that do not run from 0 to T.
    """
    form = _check(logp, old_logp, advantage, offsets, mask, ref_logp, sampler_logp, impl)
    o = checked_options(
        clip_low, clip_high, kl_coef, kl_weighted, is_cap, off_policy_delta, loss_type, ratio,
        denominator, ref_logp, sampler_logp,
    )  # fmt: skip
    wide = precise(logp)
    fixed = [None if x is None else x.detach().to(wide) for x in (old_logp, ref_logp, sampler_logp)]
    mask = torch.ones_like(logp, dtype=torch.bool) if mask is None else mask
    inputs = logp.to(wide), *fixed, advantage.detach(), offsets, mask
    if form == "reference":
        loss, stats = policy_loss_reference(*inputs, o)
    else:
        run = policy_loss_op if torch.compiler.is_compiling() else _Eager.apply
        loss, _, stats = run(*inputs, *o, form)
    stats = dict(zip(STATS, stats.detach().unbind(), strict=True))
    if denominator is None:
        denominator = stats["tokens" if loss_type == "dapo" else "rows"].clamp(min=1)
    return loss / denominator, stats


def checked_options(
    clip_low, clip_high, kl_coef, kl_weighted, is_cap, off_policy_delta, loss_type, ratio, denominator,
    ref_logp, sampler_logp,
) -> Options:  # fmt: skip
    """The arguments of a loss as options; raises on what does not fit together."""
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type must be one of {', '.join(LOSS_TYPES)}, got {loss_type!r}")
    if ratio not in (None, *RATIOS):
        raise ValueError(f"ratio must be None or one of {', '.join(RATIOS)}, got {ratio!r}")
    if loss_type == "gspo" and ratio == "token":
        raise ValueError("gspo has one ratio a row: with ratio='token' it is grpo")
    if (is_cap is None) != (sampler_logp is None):
        raise ValueError("give sampler_logp and is_cap together, or neither")
    if kl_coef and ref_logp is None:
        raise ValueError("kl_coef needs ref_logp")
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(f"need 0 ≤ clip_low ≤ 1 and clip_high ≥ 0, got {clip_low} and {clip_high}")
    if off_policy_delta is not None and not off_policy_delta >= 0:
        raise ValueError(f"off_policy_delta must be at least 0 or None, got {off_policy_delta}")
    if denominator is None and loss_type == "dr_grpo":
        raise ValueError("dr_grpo needs denominator = rows × maximum completion length")
    return Options(
        float(clip_low),
        float(clip_high),
        float(kl_coef),
        float(is_cap or 0.0),
        by_row=loss_type in ("grpo", "gspo"),
        sequence=loss_type == "gspo" or ratio == "sequence",
        kl_weighted=bool(kl_weighted),
        off_policy_delta=torch.inf if off_policy_delta is None else float(off_policy_delta),
    )


def _check(logp, old_logp, advantage, offsets, mask, ref_logp, sampler_logp, impl) -> str:
    """The form that runs; raises on shapes that do not fit."""
    tokens, rows = logp.shape, advantage.shape
    per_token = [x for x in (old_logp, mask, ref_logp, sampler_logp) if x is not None]
    fits = len(tokens) == len(rows) == 1 and all(x.shape == tokens for x in per_token)
    if not fits or offsets.shape != (rows[0] + 1,):
        raise ValueError("log-probs and mask must be [T], advantage [R] and offsets [R+1]")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, got {mask.dtype}")
    if not (logp.is_cuda or torch.compiler.is_compiling()):
        if offsets[0] != 0 or offsets[-1] != tokens[0] or bool((offsets.diff() < 0).any()):
            raise ValueError(f"offsets must rise from 0 to T = {tokens[0]}")
    return pick(impl, logp)
