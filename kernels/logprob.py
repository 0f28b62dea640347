"""Log-probs (and entropies) of chosen tokens from hidden states: log_softmax(softcap(h Wᵀ + b) / T)[target].

The logits z [N, V] are never held: they are made a tile at a time, in float32 (float64 for float64
inputs), and made again in the backward pass. A tile sums each of its rows up in four numbers,

    m = max z      total = Σ exp(z − m)      chosen = z[target] − m      moment = Σ exp(z − m) · (z − m)

and `merge` joins the sums of tiles, of splits of a GPU and of ranks alike. With all of them together

    log-prob = chosen − log total ≤ 0 (C20)        entropy = log total − moment / total
    ∂/∂z_j   = exp(z_j − m) · (∂total + ∂moment · (1 + z_j − m)) + ∂chosen · [j = target]

Read on in this order: the reference here (the specification); `logprob_cpu.py`, the chunked form that CPUs
run; `logprob_triton.py`, imported at first use, so that machines without Triton never need it; then the
custom operators and `linear_logprob`, below.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from nanov2.kernels import logprob_cpu
from nanov2.kernels.common import GatherRanks, SumGradient, pick, precise, triton_form
from nanov2.kernels.logprob_cpu import merge

# ── Reference ─────────────────────────────────────────────────────────────────────────────────────────


def linear_logprob_reference(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    return_entropy: bool = False,
    ignore_index: int = -100,
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-prob, and entropy [N], with all logits [N, V] in memory: the specification."""
    wide, ignored = precise(hidden), ignored_rows(hidden, target, ignore_index)
    if ignored is not None:  # C3: `where`, never a product, for these rows may hold NaN
        hidden, target = torch.where(ignored[:, None], 0.0, hidden), torch.where(ignored, 0, target)
    logits = hidden.to(wide) @ weight.to(wide).T
    if bias is not None:
        logits = logits + bias.to(wide)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if temperature != 1.0:
        logits = logits / temperature  # C4: the same temperature everywhere
    every = torch.log_softmax(logits, dim=-1)
    logp = every.gather(1, target[:, None])[:, 0].clamp(max=0.0)  # C20: rounding must not make it above 0
    entropy = -(every.exp() * every).sum(dim=-1) if return_entropy else logp
    if ignored is not None:
        logp, entropy = torch.where(ignored, 0.0, logp), torch.where(ignored, 0.0, entropy)
    return (logp, entropy) if return_entropy else logp


def ignored_rows(hidden: Tensor, target: Tensor, ignore_index: int) -> Tensor | None:
    """[N] bool, or None where it costs nothing to see (on a CPU) that there are none: that saves copies."""
    ignored = target == ignore_index
    known = not (hidden.is_cuda or torch.compiler.is_compiling())
    return None if known and not ignored.any() else ignored


# ── Custom operators ──────────────────────────────────────────────────────────────────────────────────


def _forward(*inputs, **store):
    run = logprob_cpu.forward if inputs[-1] == "cpu" else triton_form("logprob").forward
    return run(*inputs[:-1], **store)


def _run_backward(*inputs, **store):
    run = logprob_cpu.backward if inputs[-1] == "cpu" else triton_form("logprob").backward
    return run(*inputs[:-1], **store)


@torch.library.custom_op("nanov2::linear_sums", mutates_args=())
def linear_sums(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    temperature: float,
    softcap: float | None,
    with_moment: bool,
    form: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """m, total, chosen and moment [N] of the whole vocabulary: see the top of the file."""
    return _forward(hidden, weight, bias, target, temperature, softcap, with_moment, form)


@linear_sums.register_fake
def _(hidden, weight, bias, target, temperature, softcap, with_moment, form):
    return tuple(hidden.new_empty(hidden.shape[0], dtype=precise(hidden)) for _ in range(4))


@torch.library.custom_op("nanov2::linear_sums_backward", mutates_args=())
def linear_sums_backward(
    d_total: Tensor,
    d_chosen: Tensor,
    d_moment: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    m: Tensor,
    temperature: float,
    softcap: float | None,
    with_moment: bool,
    needs: list[bool],
    form: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden [N, D], weight [V, D] and bias [V]; of no meaning where `needs` says no."""
    sums = d_total, d_chosen, d_moment
    return _run_backward(
        *sums, hidden, weight, bias, target, m, temperature, softcap, with_moment, needs, form
    )


@linear_sums_backward.register_fake
def _(d_total, d_chosen, d_moment, hidden, weight, bias, target, m, *_):
    return torch.empty_like(hidden), torch.empty_like(weight), m.new_empty(weight.shape[0])


def _setup(ctx, inputs, output):
    hidden, weight, bias, target, *ctx.options, ctx.form = inputs
    ctx.save_for_backward(hidden, weight, bias, target, output[0])


def _gradients(ctx, run, d_sums) -> tuple:
    bias, m, needs = ctx.saved_tensors[2], ctx.saved_tensors[4], list(ctx.needs_input_grad[:3])
    d_sums = (torch.zeros_like(m) if d is None else d.contiguous() for d in d_sums)
    dh, dw, db = run(*d_sums, *ctx.saved_tensors, *ctx.options, needs, ctx.form)
    db = db.to(bias.dtype) if needs[2] else None
    return dh if needs[0] else None, dw if needs[1] else None, db, *[None] * 5


linear_sums.register_autograd(
    lambda ctx, _d_m, *d_sums: _gradients(ctx, linear_sums_backward, d_sums), setup_context=_setup
)


class _Eager(torch.autograd.Function):
    """The same without the dispatcher, which would hold on to ∂weight until autograd has copied it, and with
    what only an eager call can have: logits that wait in the memory of ∂weight (see `logprob_cpu.kept`)."""

    @staticmethod
    def forward(ctx, *inputs):
        *inputs, differentiable = inputs
        hidden, weight, form = inputs[0], inputs[1], inputs[-1]
        wanted = differentiable and weight.requires_grad and form == "cpu" and weight.is_contiguous()
        ctx.store = {"store": torch.empty_like(weight)} if wanted and weight.dtype == precise(hidden) else {}
        output = _forward(*inputs, **ctx.store)
        _setup(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx, _d_m, *d_sums):
        store, ctx.store = ctx.store, {}  # used once: a second backward pass makes all logits again
        return *_gradients(ctx, partial(_run_backward, **store), d_sums), None


# ── The public function ───────────────────────────────────────────────────────────────────────────────


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    return_entropy: bool = False,
    ignore_index: int = -100,
    process_group=None,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """log_softmax(softcap(hidden weightᵀ + bias) / temperature)[target], without the logits in memory.

    Args:
        hidden: [N, D] float16, bfloat16, float32 or float64; weight: [V, D]; bias: [V] or None.
        target: [N] int64, in 0 … V−1 or `ignore_index`.
        temperature: > 0, divides the logits; the same for policy, old policy and reference (C4).
        softcap: c > 0 replaces each logit x by c·tanh(x / c).
        return_entropy: also return the entropy of each row, in nats, differentiable.
        ignore_index: rows with this target give 0 and no gradient, whatever their hidden state holds.
        process_group: ranks that each hold a part of the vocabulary, in order of rank: `weight` [V_rank, D]
            and `bias` [V_rank] are this rank's, `hidden` and `target` (in the whole vocabulary) are the same
            on all. Every rank gets the whole result and must go on to the same loss; the gradient of
            `hidden` is then whole on every rank, and that of `weight` this rank's part.
        impl: None picks by device; "reference", "cpu" (chunked, on any device) or "triton".

    Returns:
        [N] log-probs in nats, never above 0, float32 (float64 for float64 inputs); with `return_entropy`
        a pair of them and the entropies. First derivatives only.

    Raises:
        ValueError: an unsupported option or shape. IndexError: a target outside the vocabulary, on a CPU;
        on a GPU, where asking would wait for the device, its log-prob is −inf.
    """
    form = _check(hidden, weight, target, bias, temperature, softcap, process_group, impl)
    start, end = 0, len(weight)
    if process_group is not None:
        sizes = GatherRanks.apply(torch.tensor(len(weight), device=target.device), process_group)
        start, end = sizes[: dist.get_rank(process_group)].sum(), sizes.sum()
    if not (hidden.is_cuda or torch.compiler.is_compiling()):
        outside = ((target < 0) | (target >= end)) & (target != ignore_index)
        if outside.any():
            raise IndexError(f"{int(outside.sum())} targets are outside the vocabulary 0 … {int(end) - 1}")
    single = form == "cpu" and process_group is None and len(hidden) * len(weight) <= logprob_cpu.TILE
    if form == "reference" or single:  # one tile is the whole problem: nothing to cut
        return linear_logprob_reference(
            hidden,
            weight,
            target,
            bias=bias,
            temperature=temperature,
            softcap=softcap,
            return_entropy=return_entropy,
            ignore_index=ignore_index,
        )
    ignored, local = ignored_rows(hidden, target, ignore_index), target - start
    if ignored is not None:
        hidden, local = torch.where(ignored[:, None], 0.0, hidden), torch.where(ignored, -1, local)
    if process_group is not None:
        hidden = SumGradient.apply(hidden, process_group)
    inputs = hidden, weight, bias, local, float(temperature), softcap, return_entropy, form
    if torch.compiler.is_compiling():
        sums = linear_sums(*inputs)
    else:
        sums = _Eager.apply(*inputs, torch.is_grad_enabled())
    if process_group is not None:
        sums = merge(*GatherRanks.apply(torch.stack(sums), process_group).unbind(1))
    _, total, chosen, moment = sums
    log_total = total.log()
    logp, entropy = chosen - log_total, log_total - moment / total
    if ignored is not None:
        logp, entropy = torch.where(ignored, 0.0, logp), torch.where(ignored, 0.0, entropy)
    return (logp, entropy) if return_entropy else logp


def _check(hidden, weight, target, bias, temperature, softcap, process_group, impl) -> str:
    """The form that runs; raises on what no form supports."""
    form = pick(impl, hidden)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be above 0 or None, got {softcap}")
    if form == "triton" and hidden.dtype != weight.dtype:
        raise ValueError(f"impl='triton' needs one dtype, got {hidden.dtype} and {weight.dtype}")
    if process_group is not None and form == "reference":
        raise ValueError("process_group needs impl None, 'cpu' or 'triton'")
    (n, d), (v, d_weight) = hidden.shape, weight.shape
    if d != d_weight or target.shape != (n,) or (bias is not None and bias.shape != (v,)) or v == 0:
        shapes = [tuple(x.shape) for x in (hidden, weight, target)]
        raise ValueError(f"hidden [N, D], weight [V ≥ 1, D], target [N], bias [V] do not fit: {shapes}")
    return form
