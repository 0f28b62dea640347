"""Log-probs (and entropies) of chosen tokens from hidden states: log_softmax(softcap(h Wᵀ + b) / T)[target].

The logits z [N, V] are never held: they are made a tile at a time, in float32 (float64 for float64
inputs), and made again in the backward pass. A tile sums each of its rows up in four numbers,

    m = max z      total = Σ exp(z − m)      chosen = z[target] − m      moment = Σ exp(z − m) · (z − m)

and `merge` joins the sums of tiles, of splits of a GPU and of ranks alike. With all of them together

    log-prob = chosen − log total ≤ 0 (C20)        entropy = log total − moment / total
    ∂/∂z_j   = exp(z_j − m) · (∂total + ∂moment · (1 + z_j − m)) + ∂chosen · [j = target]

Read on in this order: the reference (the specification), the chunked form that CPUs run, the custom
operators, a vocabulary split over ranks, and `linear_logprob`. The Triton kernels are in
`logprob_triton.py`, which is imported at first use: machines without Triton never need it.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from kernels.common import pick, precise, triton_form

TILE = 1 << 20  # logits in one tile of the chunked form: 4 MB, so that passes over it stay in the caches
ROWS = 2048  # tokens in one tile of the chunked form, at most, where the problem takes several tiles


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


# ── Chunked CPU form ──────────────────────────────────────────────────────────────────────────────────


def merge(m: Tensor, total: Tensor, chosen: Tensor, moment: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four sums [S, N] of S vocabulary parts → those [N] of the whole; differentiable but for m."""
    largest = m.detach().amax(0)
    shift = m.detach() - largest
    scale = shift.exp()
    return (
        largest,
        (scale * total).sum(0),
        (chosen + shift).amax(0),  # −inf wherever the target is not among the part's entries
        (scale * (moment + shift * total)).sum(0),
    )


def tile_shape(n: int, v: int) -> tuple[int, int]:
    """Tokens and vocabulary entries in one tile."""
    rows = max(min(n, ROWS), 1)
    return rows, min(v, max(TILE // rows, 1))


def tile_logits(
    h: Tensor, w: Tensor, bias: Tensor | None, temperature: float, softcap: float | None
) -> Tensor:
    """Logits z of one tile, in the precision of h [n, D], from w [v, D] and bias [v]."""
    w = w.to(h.dtype)
    z = torch.mm(h, w.T) if bias is None else torch.addmm(bias.to(h.dtype), h, w.T)
    if softcap is not None:
        z.div_(softcap).tanh_().mul_(softcap)
    return z if temperature == 1.0 else z.div_(temperature)


def locate(target: Tensor, v0: int, v1: int) -> tuple[Tensor, Tensor]:
    """Columns [n, 1] of the targets in the vocabulary's part v0 … v1, and whether they are there."""
    at = target[:, None] - v0
    return at.clamp(0, v1 - v0 - 1), (at >= 0) & (at < v1 - v0)


def chunked_forward(hidden, weight, bias, target, temperature, softcap, with_moment):
    """m, total, chosen and moment [N] each."""
    (n, v), h = (len(hidden), len(weight)), hidden.to(precise(hidden))
    rows, width = tile_shape(n, v)
    parts = h.new_zeros(4, -(-v // width), n)
    for v0 in range(0, v, width):
        v1 = min(v0 + width, v)
        b = None if bias is None else bias[v0:v1]
        for n0 in range(0, n, rows):
            m, total, chosen, moment = parts[:, v0 // width, n0 : n0 + rows]
            z = tile_logits(h[n0 : n0 + rows], weight[v0:v1], b, temperature, softcap)
            torch.amax(z, 1, out=m)
            at, here = locate(target[n0 : n0 + rows], v0, v1)
            z.sub_(m[:, None])
            chosen.copy_(torch.where(here, z.gather(1, at), -torch.inf)[:, 0])
            e = z.exp() if with_moment else z.exp_()
            torch.sum(e, 1, out=total)
            if with_moment:
                torch.sum(z.mul_(e), 1, out=moment)
    return merge(*parts)


def chunked_backward(d_total, d_chosen, d_moment, hidden, weight, bias, target, m, *options):
    """Gradients of hidden, weight and bias, a tile at a time; of no meaning where `needs` says no."""
    (n, v), h = (len(hidden), len(weight)), hidden.to(precise(hidden))
    temperature, softcap, with_moment, needs = options
    rows, width = tile_shape(n, v)
    dh, db = torch.empty_like(h), h.new_zeros(v)
    dw = torch.empty_like(weight) if n else torch.zeros_like(weight)
    d_total, d_chosen, d_moment = (d[:, None] / temperature for d in (d_total, d_chosen, d_moment))
    for v0 in range(0, v, width):
        part = slice(v0, min(v0 + width, v))
        b, w = None if bias is None else bias[part], weight[part].to(h.dtype)
        dw_part = dw[part] if dw.dtype == h.dtype else torch.zeros_like(w)
        for n0 in range(0, n, rows):
            some = slice(n0, n0 + rows)
            dz = tile_logits(h[some], w, b, temperature, softcap)
            slope = None if softcap is None else 1 - (dz * (temperature / softcap)).square_()
            dz.sub_(m[some, None])
            scale = d_total[some] if not with_moment else (dz + 1).mul_(d_moment[some]).add_(d_total[some])
            dz.exp_().mul_(scale)
            at, here = locate(target[some], part.start, part.stop)
            dz.scatter_add_(1, at, torch.where(here, d_chosen[some], 0.0))
            if softcap is not None:
                dz.mul_(slope)
            if needs[0]:
                dh[some].addmm_(dz, w, beta=float(v0 > 0))  # β = 0: written, not added to
            if needs[1]:
                dw_part.addmm_(dz.T, h[some], beta=float(n0 > 0))
            if needs[2]:
                db[part].add_(dz.sum(0))
        if dw_part.dtype != dw.dtype:
            dw[part] = dw_part
    return dh.to(hidden.dtype), dw, db


# ── Custom operators ──────────────────────────────────────────────────────────────────────────────────


def _forward(*inputs):
    run = chunked_forward if inputs[-1] == "cpu" else triton_form("logprob").forward
    return run(*inputs[:-1])


def _run_backward(*inputs):
    run = chunked_backward if inputs[-1] == "cpu" else triton_form("logprob").backward
    return run(*inputs[:-1])


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
    """The same without the dispatcher, which would hold on to dW until autograd has copied it."""

    forward = staticmethod(lambda *inputs: _forward(*inputs))
    setup_context = staticmethod(_setup)
    backward = staticmethod(lambda ctx, _d_m, *d_sums: _gradients(ctx, _run_backward, d_sums))


# ── A vocabulary split over ranks ─────────────────────────────────────────────────────────────────────


class _GatherRanks(torch.autograd.Function):
    """[…] of each rank → [ranks, …] on all. Every rank goes on to the same loss, so each keeps its slice."""

    @staticmethod
    def forward(ctx, x: Tensor, group) -> Tensor:
        ctx.rank = dist.get_rank(group)
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad[ctx.rank], None


class _SumGradient(torch.autograd.Function):
    """The identity; its gradient is summed over ranks, each of which saw a part of the vocabulary."""

    @staticmethod
    def forward(ctx, x: Tensor, group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad = grad.clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


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
        sizes = _GatherRanks.apply(torch.tensor(len(weight), device=target.device), process_group)
        start, end = sizes[: dist.get_rank(process_group)].sum(), sizes.sum()
    if not (hidden.is_cuda or torch.compiler.is_compiling()):
        outside = ((target < 0) | (target >= end)) & (target != ignore_index)
        if outside.any():
            raise IndexError(f"{int(outside.sum())} targets are outside the vocabulary 0 … {int(end) - 1}")
    single = form == "cpu" and process_group is None and len(hidden) * len(weight) <= TILE
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
        hidden = _SumGradient.apply(hidden, process_group)
    run = linear_sums if torch.compiler.is_compiling() else _Eager.apply
    sums = run(hidden, weight, bias, local, float(temperature), softcap, return_entropy, form)
    if process_group is not None:
        sums = merge(*_GatherRanks.apply(torch.stack(sums), process_group).unbind(1))
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
    if process_group is not None and form == "reference":
        raise ValueError("process_group needs impl None, 'cpu' or 'triton'")
    (n, d), (v, d_weight) = hidden.shape, weight.shape
    if d != d_weight or target.shape != (n,) or (bias is not None and bias.shape != (v,)) or v == 0:
        shapes = [tuple(x.shape) for x in (hidden, weight, target)]
        raise ValueError(f"hidden [N, D], weight [V ≥ 1, D], target [N], bias [V] do not fit: {shapes}")
    return form
