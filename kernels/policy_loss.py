"""The clipped policy loss of GRPO and its variants, on rows of different lengths laid end to end.

Of token t in row r, with ratio ρ = exp(logp − old) and, for "gspo", one ρ a row from the mean of its tokens:

    loss = − w · min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A) + kl_coef · (e^d − d − 1),  d = ref − logp

    w = min(exp(old − sampler), is_cap), detached: what the sampler's own numerics change is weighted away
    e^d − d − 1 is the k3 estimate of KL(π ‖ π_ref) (Schulman), unweighted by ρ

"dapo" (arXiv 2503.14476) and "dr_grpo" (2503.20783) add all tokens up; "grpo" (2402.03300) and "gspo"
(2507.18071) add up the means of rows. The sum is divided by a denominator of the whole optimiser step, which
is why micro-batches and ranks give the same gradient however they are cut (C1).

The reference leaves the gradient to autograd. The CPU form and the Triton kernel (one program a row, in
`policy_loss_triton.py`) know it in closed form, ∂loss/∂logp = − w A ρ · [not clipped] + kl_coef · (1 − e^d),
and find loss, gradient and statistics in one pass: the backward pass only multiplies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanov2.kernels.common import pick, precise, triton_form

LOSS_TYPES = ("dapo", "grpo", "dr_grpo", "gspo")
STATS = (
    "tokens",  # that count
    "rows",  # with at least one token that counts
    "clip_low_count",  # tokens whose gradient the lower clip removed: A < 0 and ρ < 1 − clip_low
    "clip_high_count",  # … the upper clip: A > 0 and ρ > 1 + clip_high
    "kl_sum",  # k3 against the reference
    "approx_kl_sum",  # k3 of the old policy against this one
    "ratio_sum",
    "ratio_max",  # the one that is not a sum
    "is_weight_sum",
)

# ── Reference ─────────────────────────────────────────────────────────────────────────────────────────


def policy_loss_reference(
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
    loss_type: str,
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
    if loss_type == "gspo":  # one ratio a row: the geometric mean of its tokens'
        log_ratio = (row_sum(log_ratio) / counted.clamp(min=1))[row]
    ratio = log_ratio.exp()
    a = advantage.to(logp.dtype)[row]
    loss = -torch.minimum(ratio * a, ratio.clamp(1 - clip_low, 1 + clip_high) * a)
    weight = torch.ones_like(logp)
    if sampler_logp is not None:
        weight = torch.where(mask, old_logp - sampler_logp, zero).exp().clamp(max=is_cap)
        loss = loss * weight
    kl = torch.zeros_like(logp)
    if ref_logp is not None:
        d = torch.where(mask, ref_logp - logp, zero)
        kl = d.exp() - d - 1
        loss = loss + kl_coef * kl
    loss = torch.where(mask, loss, zero)
    if loss_type in ("grpo", "gspo"):
        loss = row_sum(loss) / counted.clamp(min=1)
    with torch.no_grad():
        moved = torch.where(mask, old_logp - logp, zero)
        ratio = torch.where(mask, ratio, zero)
        stats = [
            mask.sum(),
            (counted > 0).sum(),
            (mask & (a < 0) & (ratio < 1 - clip_low)).sum(),
            (mask & (a > 0) & (ratio > 1 + clip_high)).sum(),
            kl.sum(),
            (moved.exp() - moved - 1).sum(),
            ratio.sum(),
            ratio.max() if len(logp) else zero,
            torch.where(mask, weight, zero).sum(),
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
    clip_low: float,
    clip_high: float,
    kl_coef: float,
    is_cap: float,
    loss_type: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss before division, its gradient in logp [T], and the statistics."""
    lengths, by_row = offsets.diff(), loss_type in ("grpo", "gspo")
    zero = logp.new_zeros(())
    a = advantage.to(logp.dtype).repeat_interleave(lengths)
    row = torch.arange(len(lengths), device=logp.device).repeat_interleave(lengths)
    counted = logp.new_zeros(len(lengths)).index_add_(0, row, mask.to(logp.dtype))
    share = mask / counted.clamp(min=1)[row] if by_row else mask.to(logp.dtype)  # of each token in the sum
    log_ratio = token_log_ratio = torch.where(mask, logp - old_logp, zero)
    if loss_type == "gspo":
        log_ratio = torch.zeros_like(counted).index_add_(0, row, log_ratio * share)[row]
    ratio = log_ratio.exp()
    low = (a < 0) & (ratio < 1 - clip_low)
    high = (a > 0) & (ratio > 1 + clip_high)
    weight = share
    if sampler_logp is not None:
        is_weight = torch.where(mask, old_logp - sampler_logp, zero).exp_().clamp_(max=is_cap)
        weight = share * is_weight
    loss = -torch.dot(torch.minimum(ratio * a, ratio.clamp(1 - clip_low, 1 + clip_high) * a), weight)
    grad = torch.where(low | high, zero, ratio * a).neg_()
    if loss_type == "gspo":  # each token moves the ratio of the whole row by 1 / counted
        grad *= share * torch.zeros_like(counted).index_add_(0, row, weight)[row]
    else:
        grad *= weight
    kl_sum = zero
    if ref_logp is not None:
        d = torch.where(mask, ref_logp - logp, zero)
        up = d.expm1()
        loss = loss + kl_coef * torch.dot(up - d, share)
        grad -= kl_coef * up * share
        kl_sum = (up - d).sum()
    ratio = torch.where(mask, ratio, zero)
    stats = [
        mask.sum(),
        (counted > 0).sum(),
        (low & mask).sum(),
        (high & mask).sum(),
        kl_sum,
        ((-token_log_ratio).expm1_() + token_log_ratio).sum(),
        ratio.sum(),
        ratio.max() if len(logp) else zero,
        mask.sum() if sampler_logp is None else (is_weight * mask).sum(),
    ]
    return loss, grad, torch.stack([x.to(logp.dtype) for x in stats])


# ── Custom operator ───────────────────────────────────────────────────────────────────────────────────


def _forward(*inputs):
    run = fused if inputs[-1] == "cpu" else triton_form("policy_loss").forward
    return run(*inputs[:-1])


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
    loss_type: str,
    form: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss before division [], its gradient in logp [T], and the statistics [len(STATS)]."""
    return _forward(
        logp, old_logp, ref_logp, sampler_logp, advantage, offsets, mask, clip_low, clip_high, kl_coef,
        is_cap, loss_type, form,
    )  # fmt: skip


@policy_loss_op.register_fake
def _(logp, *_):
    return logp.new_empty(()), torch.empty_like(logp), logp.new_empty(len(STATS))


def _setup(ctx, inputs, output):
    ctx.save_for_backward(output[1])


def _backward(ctx, d_loss, _d_grad, _d_stats):
    (grad,) = ctx.saved_tensors
    return d_loss * grad, *[None] * 12


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
    is_cap: float | None = None,
    loss_type: str = "dapo",
    denominator: float | None = None,
    impl: str | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The negative clipped objective of packed rows, differentiable in `logp` alone.

    Args:
        logp, old_logp: [T] log-probs, in nats, of R rows' tokens, end to end: of the policy, and the old one.
        advantage: [R]; offsets: [R+1] int64 from 0 to T; row r is tokens offsets[r] … offsets[r+1]−1.
        mask: [T] bool, True where a token counts (None: all). What a masked position holds is never used.
        ref_logp: [T] under the reference policy, for `kl_coef` · k3 per token, unweighted by the ratio.
        sampler_logp, is_cap: the weight min(exp(old − sampler), is_cap), detached; give both or neither.
        clip_low, clip_high: the ratio is clipped to [1 − clip_low, 1 + clip_high].
        loss_type: "dapo" sums tokens (denominator: counted tokens of the whole step); "dr_grpo" too
            (denominator: rows × maximum completion length, always the caller's); "grpo" and "gspo" sum each
            row's token mean (denominator: rows); "gspo" has one ratio a row.
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
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type must be one of {', '.join(LOSS_TYPES)}, got {loss_type!r}")
    if (is_cap is None) != (sampler_logp is None):
        raise ValueError("give sampler_logp and is_cap together, or neither")
    if kl_coef and ref_logp is None:
        raise ValueError("kl_coef needs ref_logp")
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(f"need 0 ≤ clip_low ≤ 1 and clip_high ≥ 0, got {clip_low} and {clip_high}")
    if denominator is None and loss_type == "dr_grpo":
        raise ValueError("dr_grpo needs denominator = rows × maximum completion length")
    wide = precise(logp)
    fixed = [None if x is None else x.detach().to(wide) for x in (old_logp, ref_logp, sampler_logp)]
    mask = torch.ones_like(logp, dtype=torch.bool) if mask is None else mask
    options = float(clip_low), float(clip_high), float(kl_coef), float(is_cap or 0.0), loss_type
    inputs = logp.to(wide), *fixed, advantage.detach(), offsets, mask, *options
    if form == "reference":
        loss, stats = policy_loss_reference(*inputs)
    else:
        run = policy_loss_op if torch.compiler.is_compiling() else _Eager.apply
        loss, _, stats = run(*inputs, form)
    stats = dict(zip(STATS, stats.detach().unbind(), strict=True))
    if denominator is None:
        denominator = stats["tokens" if loss_type == "dapo" else "rows"].clamp(min=1)
    return loss / denominator, stats


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
