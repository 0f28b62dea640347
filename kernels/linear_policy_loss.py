"""Output layer, log-prob, entropy and policy loss in one, with the gradient taken in the forward pass.

`linear_logprob` followed by `policy_loss` makes the logits twice: for the log-probs, and again in the
backward pass, when the loss has said what each token's coefficient c = ∂loss/∂logp is. But c is known as soon
as the token's log-prob is, wherever a token has a ratio of its own. So tokens are taken in chunks; of each

    e = exp(z − m), all logits of the chunk, in tiles with a maximum m each            product 1
    log-prob, entropy  →  c, loss, statistics
    ∂loss/∂z_j = c · ([j = target] − p_j) + entropy_coef · w · p_j · (log p_j + entropy)
    p_j = e_j · exp(m − log Σ e), w: the token's weight in the loss
    ∂hidden = ∂z W,  ∂weight += ∂zᵀ hidden                                             products 2 and 3

Three products instead of four, one exp a logit, and no tensor of all tokens × all entries. Masked tokens take
part in no product; tokens with c = 0 (clipped, or without an advantage) only in the first.

The ratio of a whole row needs every log-prob of the row first: there, and in nothing else, the two functions
run one after the other (`coefficients_need_rows` says where), with the same result.

The reference is the composition of the two references.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from nanov2.kernels import linear_policy_loss_cpu
from nanov2.kernels.common import pick, precise, triton_form
from nanov2.kernels.logprob import linear_logprob
from nanov2.kernels.logprob_cpu import merge
from nanov2.kernels.policy_loss import STATS, Options, checked_options, policy_loss, token_terms

PRECISIONS = ("fp32", "bf16")


class PolicyOutput(NamedTuple):
    """What a call found out besides the loss; nothing here has a gradient."""

    logp: Tensor  # [T], nats; 0 where the mask is False
    entropy: Tensor  # [T], nats; 0 where the mask is False
    stats: dict[str, Tensor]  # scalars by the names in policy_loss.STATS


# ── Reference, and the form for ratios of whole rows ──────────────────────────────────────────────────


def two_functions(
    hidden, weight, target, advantage, offsets, mask, old_logp, sampler_logp, temperature, entropy_coef,
    share, impl, process_group, loss_options,
) -> tuple[Tensor, PolicyOutput]:  # fmt: skip
    """`linear_logprob`, then `policy_loss`, then − entropy_coef · Σ share · entropy."""
    logp, entropy = linear_logprob(
        hidden,
        weight,
        torch.where(mask, target, -100),
        temperature=temperature,
        return_entropy=True,
        process_group=process_group,
        impl=impl,
    )
    old_logp = logp if old_logp is None else old_logp
    loss, stats = policy_loss(
        logp,
        old_logp,
        advantage,
        offsets,
        mask=mask,
        sampler_logp=sampler_logp,
        impl=impl,
        **loss_options,
    )
    if entropy_coef:
        loss = loss - entropy_coef * torch.dot(share, entropy)
    return loss, PolicyOutput(logp.detach(), entropy.detach(), stats)


def coefficients_need_rows(o: Options, old_given: bool, sampler_given: bool) -> bool:
    """Whether a token's coefficient depends on the log-probs of other tokens of its row."""
    off_policy = o.off_policy_delta < torch.inf and (old_given or sampler_given)
    if not o.sequence:
        return off_policy
    # On policy a row's ratio is 1, as its tokens' are: only sums over the row could tell them apart.
    return off_policy or old_given or sampler_given or bool(o.kl_coef and o.kl_weighted)


# ── The fused form: chunks of tokens, on any device ───────────────────────────────────────────────────


def fused(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    a: Tensor,
    share: Tensor,
    mask: Tensor,
    old_logp: Tensor | None,
    ref_logp: Tensor | None,
    sampler_logp: Tensor | None,
    temperature: float,
    entropy_coef: float,
    o: Options,
    bf16: bool,
    chunk: int,
    needs: list[bool],
    form: str,
    process_group=None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss [], log-probs and entropies [T], statistics, and gradients of hidden [T, D] and weight [V, D].

    `a` and `share` [T] are each token's advantage and weight in the sum, the division by the denominator
    included; `target` counts from this rank's first vocabulary entry.
    """
    wide = precise(hidden)
    kernels = linear_policy_loss_cpu if form == "cpu" else triton_form("linear_policy_loss")
    work = kernels.Chunks(hidden, weight, temperature, bf16, chunk, needs)
    logp, entropy = hidden.new_zeros(len(hidden), dtype=wide), hidden.new_zeros(len(hidden), dtype=wide)
    loss = logp.new_zeros(())
    totals = {name: logp.new_zeros(()) for name in STATS}
    for some in kernels.in_chunks(mask, work.rows):
        on = mask[some]
        sums = work.sums(some, on, target[some])
        if process_group is not None:
            parts = [torch.empty_like(sums) for _ in range(dist.get_world_size(process_group))]
            dist.all_gather(parts, sums, group=process_group)
            sums = torch.stack(merge(*torch.stack(parts, dim=1)))
        m, total, chosen, moment = sums
        log_total = total.log()
        new, spread = chosen - log_total, log_total - moment / total
        others = [None if x is None else x[some].to(wide) for x in (old_logp, ref_logp, sampler_logp)]
        old = new if others[0] is None else others[0]
        part, c, stats = token_terms(new, old, *others[1:], a[some], share[some], on, None, o)
        loss = loss + part - entropy_coef * torch.dot(torch.where(on, spread, 0.0), share[some])
        work.gradients(some, new, spread, m + log_total, c, -entropy_coef * share[some])
        logp[some], entropy[some] = torch.where(on, new, 0.0), torch.where(on, spread, 0.0)
        for name, value in stats.items():
            largest = name == "ratio_max"
            totals[name] = torch.maximum(totals[name], value) if largest else totals[name] + value
    dh, dw = work.finished()
    if process_group is not None and needs[0]:
        dist.all_reduce(dh, group=process_group)
    found = torch.stack([totals[name].to(wide) for name in STATS])
    return loss, logp, entropy, found, dh.to(hidden.dtype), dw.to(weight.dtype)


@torch.library.custom_op("nanov2::linear_policy_loss", mutates_args=())
def linear_policy_loss_op(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    a: Tensor,
    share: Tensor,
    mask: Tensor,
    old_logp: Tensor | None,
    ref_logp: Tensor | None,
    sampler_logp: Tensor | None,
    temperature: float,
    entropy_coef: float,
    options: list[float],
    bf16: bool,
    chunk: int,
    needs: list[bool],
    form: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `fused`; `options` are those of the loss, as numbers."""
    *found, dh, dw = fused(
        hidden, weight, target, a, share, mask, old_logp, ref_logp, sampler_logp, temperature, entropy_coef,
        Options(*options[:4], *map(bool, options[4:7]), options[7]), bf16, chunk, needs, form,
    )  # fmt: skip
    dh, dw = dh if needs[0] else torch.zeros_like(hidden), dw if needs[1] else torch.zeros_like(weight)
    return *found, dh, dw


@linear_policy_loss_op.register_fake
def _(hidden, weight, *_):
    wide, tokens = precise(hidden), hidden.shape[0]
    per_token = (hidden.new_empty(tokens, dtype=wide) for _ in range(2))
    scalar, stats = hidden.new_empty((), dtype=wide), hidden.new_empty(len(STATS), dtype=wide)
    return scalar, *per_token, stats, torch.empty_like(hidden), torch.empty_like(weight)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*output[4:])


def _backward(ctx, d_loss, *_):
    dh, dw = ctx.saved_tensors
    return (d_loss * dh).to(dh.dtype), (d_loss * dw).to(dw.dtype), *[None] * 14


linear_policy_loss_op.register_autograd(_backward, setup_context=_setup)


class _Eager(torch.autograd.Function):
    """The same without the dispatcher: the gradients are handed over, not copied."""

    @staticmethod
    def forward(ctx, *inputs):
        *found, dh, dw = fused(*inputs)
        ctx.gradients, ctx.needs = (dh, dw), inputs[14]
        ctx.mark_non_differentiable(*found[1:])
        return tuple(found)

    @staticmethod
    def backward(ctx, d_loss, *_):
        if ctx.gradients is None:
            raise RuntimeError("linear_policy_loss gives its gradient once: call it again")
        (dh, dw), ctx.gradients = ctx.gradients, None
        if d_loss.is_cuda or d_loss != 1:  # on a GPU asking would wait for the device
            dh.mul_(d_loss)
            dw.mul_(d_loss)
        return dh if ctx.needs[0] else None, dw if ctx.needs[1] else None, *[None] * 15


# ── The public function ───────────────────────────────────────────────────────────────────────────────


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    advantage: Tensor,
    offsets: Tensor,
    *,
    mask: Tensor | None = None,
    old_logp: Tensor | None = None,
    ref_logp: Tensor | None = None,
    sampler_logp: Tensor | None = None,
    is_cap: float | None = None,
    temperature: float = 1.0,
    entropy_coef: float = 0.0,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    kl_coef: float = 0.0,
    kl_weighted: bool = False,
    off_policy_delta: float | None = None,
    loss_type: str = "dapo",
    ratio: str | None = None,
    denominator: float | None = None,
    precision: str | None = None,
    process_group=None,
    chunk: int | None = None,
    impl: str | None = None,
) -> tuple[Tensor, PolicyOutput]:
    """The policy loss of tokens `target` under log_softmax(hidden weightᵀ / temperature), without the logits.

    Args:
        hidden: [T, D] states that predict the tokens of R rows, end to end; weight: [V, D].
        target: [T] int64, the tokens.
        advantage: [R]; offsets: [R+1]; mask: [T] bool, True where a token counts (None: all). A masked token
            takes part in nothing, whatever its hidden state and target hold.
        old_logp: [T], or None where the old policy is this one: then every ratio is exactly 1 (C6).
        temperature: > 0, divides the logits (C4).
        entropy_coef: of the entropy bonus: each token's entropy has the weight that its loss has.
        precision: "fp32"; "bf16": states and weights rounded to bfloat16 for the products, which are added
            up in float32 (log-probs, softmax and gradients' sums are float32 always); None: "bf16" for
            bfloat16 inputs, else "fp32".
        process_group: ranks that each hold a part of the vocabulary, as in `linear_logprob`.
        chunk: tokens at a time; None: as many as the form's buffer holds.
        The rest as in `policy_loss`.

    Returns:
        the loss, a scalar, differentiable in `hidden` and `weight`, once: its gradient is there already; and
        a PolicyOutput.

    Raises:
        ValueError: an unsupported option or shape. IndexError: a target outside the vocabulary, on a CPU.
    """
    form = pick(impl, hidden)
    o = checked_options(
        clip_low, clip_high, kl_coef, kl_weighted, is_cap, off_policy_delta, loss_type, ratio,
        denominator, ref_logp, sampler_logp,
    )  # fmt: skip
    mask = torch.ones_like(target, dtype=torch.bool) if mask is None else mask
    _check(hidden, weight, target, advantage, offsets, mask, (old_logp, ref_logp, sampler_logp))
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"precision must be None or one of {', '.join(PRECISIONS)}, got {precision!r}")
    if form == "triton" and hidden.dtype != weight.dtype:
        raise ValueError(f"impl='triton' needs one dtype, got {hidden.dtype} and {weight.dtype}")
    bf16 = precision == "bf16" or (precision is None and hidden.dtype == torch.bfloat16)
    a, share, denominator = _per_token(advantage, offsets, mask, o, denominator, precise(hidden))
    if form == "reference" or coefficients_need_rows(o, old_logp is not None, sampler_logp is not None):
        if bf16:
            hidden, weight = hidden.bfloat16(), weight.bfloat16()
        loss_options = {
            "ref_logp": ref_logp, "clip_low": clip_low, "clip_high": clip_high, "kl_coef": kl_coef,
            "kl_weighted": kl_weighted, "is_cap": is_cap, "off_policy_delta": off_policy_delta,
            "loss_type": loss_type, "ratio": ratio, "denominator": denominator,
        }  # fmt: skip
        return two_functions(
            hidden, weight, target, advantage, offsets, mask, old_logp, sampler_logp, temperature,
            entropy_coef, share, impl, process_group, loss_options,
        )  # fmt: skip
    start, end = 0, len(weight)
    if process_group is not None:
        sizes = [
            torch.zeros((), dtype=torch.int64, device=target.device) for _ in range(process_group.size())
        ]
        dist.all_gather(sizes, torch.tensor(len(weight), device=target.device), group=process_group)
        start, end = int(sum(sizes[: process_group.rank()])), int(sum(sizes))
    if not (hidden.is_cuda or torch.compiler.is_compiling()):
        outside = mask & ((target < 0) | (target >= end))
        if outside.any():
            raise IndexError(f"{int(outside.sum())} targets are outside the vocabulary 0 … {end - 1}")
    others = [None if x is None else x.detach() for x in (old_logp, ref_logp, sampler_logp)]
    needs = [torch.is_grad_enabled() and x.requires_grad for x in (hidden, weight)]
    inputs = (
        hidden, weight, target - start, a, share, mask, *others, float(temperature), float(entropy_coef),
    )  # fmt: skip
    if torch.compiler.is_compiling():
        options = [float(x) for x in o]
        loss, logp, entropy, stats, _, _ = linear_policy_loss_op(
            *inputs, options, bf16, chunk or 0, needs, form
        )
    else:
        loss, logp, entropy, stats = _Eager.apply(*inputs, o, bf16, chunk or 0, needs, form, process_group)
    stats = dict(zip(STATS, stats.detach().unbind(), strict=True))
    stats["rows"] = _counted(offsets, mask).gt(0).sum().to(loss.dtype)
    return loss, PolicyOutput(logp.detach(), entropy.detach(), stats)


def _counted(offsets: Tensor, mask: Tensor) -> Tensor:
    """[R] tokens of each row that count."""
    ends = torch.nn.functional.pad(mask.cumsum(0), (1, 0))
    return ends[offsets[1:]] - ends[offsets[:-1]]


def _per_token(advantage, offsets, mask, o: Options, denominator, dtype) -> tuple[Tensor, Tensor, float]:
    """Each token's advantage and weight in the loss [T], and the denominator that is in the weight."""
    lengths, counted = offsets.diff(), _counted(offsets, mask)
    if denominator is None:
        denominator = ((counted > 0).sum() if o.by_row else counted.sum()).clamp(min=1)
    share = mask.to(dtype) / denominator
    a = advantage.detach().to(dtype).repeat_interleave(lengths, output_size=len(mask))
    if o.by_row:
        share = share / counted.clamp(min=1).repeat_interleave(lengths, output_size=len(mask))
    return a, share, denominator


def _check(hidden, weight, target, advantage, offsets, mask, others) -> None:
    tokens = target.shape
    fits = len(tokens) == 1 and hidden.shape == (*tokens, weight.shape[-1]) and weight.dim() == 2
    fits = fits and all(x is None or x.shape == tokens for x in (mask, *others))
    if not fits or len(weight) == 0 or advantage.dim() != 1 or offsets.shape != (len(advantage) + 1,):
        raise ValueError(
            "need hidden [T, D], weight [V ≥ 1, D], target, mask and log-probs [T], offsets [R+1]"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, got {mask.dtype}")
    if not (hidden.is_cuda or torch.compiler.is_compiling()):
        if offsets[0] != 0 or offsets[-1] != tokens[0] or bool((offsets.diff() < 0).any()):
            raise ValueError(f"offsets must rise from 0 to T = {tokens[0]}")
