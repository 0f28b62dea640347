"""Triton kernels of `logprob.py`: the logits of a tile of tokens and vocabulary entries live in registers.

    forward   grid: blocks of BN tokens × splits of the vocabulary. A program walks over its split, BV
              entries at a time, and keeps the four sums of each token, moved to the new maximum as it rises
              (the online softmax of flash attention). `logprob_cpu.merge` joins the splits, which are there
              only so that a few thousand tokens fill a whole GPU.
    backward  for one stretch of C vocabulary entries after the other: a kernel makes the logits again and
              writes ∂loss/∂logits [N, C] in the dtype of the weights, and two products
              (`product_triton.py`) turn them into ∂hidden (added up in float32, with one read and one
              write of it a stretch) and this stretch of ∂weight (whole at once, as it sums over all
              tokens). No atomics: two runs give the same bits.

Sums and logits are float32 whatever the inputs are. float32 inputs are multiplied in full precision ("ieee"),
not in TF32, so the matrix units are for float16 and bfloat16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanov2.kernels.logprob_cpu import merge
from nanov2.kernels.product_triton import BACKEND, add_product

STRETCH = 64 << 20  # bytes of ∂loss/∂logits in memory at once, at least
LOWEST = tl.constexpr(-3.0e38)  # in place of −inf: finite, so that 0 · LOWEST is 0 and not NaN


def configurations(backend: str) -> list[triton.Config]:
    """Tile shapes to try on "cuda" or "hip"; a test compiles every one of them for every target.

    BYTES of the hidden dimension at a time, so that a shape asks for the same shared memory at any dtype.
    """
    shapes = {  # BN, BV, BYTES, warps, stages
        "cuda": [(128, 128, 128, 8, 3), (64, 256, 64, 8, 3)],
        "hip": [(128, 128, 64, 8, 2), (64, 64, 128, 4, 2)],
        "interpreter": [(64, 256, 256, 1, 1)],  # few, large blocks: its time goes by their number
    }[backend]
    return [
        triton.Config({"BN": n, "BV": v, "BYTES": size}, num_warps=warps, num_stages=stages)
        for n, v, size, warps, stages in shapes
    ]


tuned = triton.autotune(configurations(BACKEND), key=["V", "D"])


@triton.jit
def logits_tile(
    h_ptr, w_ptr, b_ptr, rows, cols, row_ok, col_ok, D, h_stride, w_stride, temperature, softcap,
    HAS_BIAS: tl.constexpr, SOFTCAP: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Logits [BN, BV], float32, of tokens `rows` and vocabulary entries `cols`."""
    BD: tl.constexpr = BYTES // (h_ptr.dtype.element_ty.primitive_bitwidth // 8)
    acc = tl.zeros((BN, BV), tl.float32)
    h_rows = h_ptr + rows.to(tl.int64)[:, None] * h_stride  # int64: rows × stride passes 2³¹
    w_rows = w_ptr + cols.to(tl.int64)[:, None] * w_stride
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)[None, :]
        h = tl.load(h_rows + d, mask=row_ok[:, None] & (d < D), other=0.0)  # [BN, BD]
        w = tl.load(w_rows + d, mask=col_ok[:, None] & (d < D), other=0.0)  # [BV, BD]
        acc = tl.dot(h, tl.trans(w), acc, input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(b_ptr + cols, mask=col_ok, other=0.0).to(tl.float32)[None, :]
    if SOFTCAP:  # tanh(x) from e^(−2|x|), which cannot overflow
        small = tl.exp(-2.0 * tl.abs(acc) / softcap)
        bounded = softcap * (1.0 - small) / (1.0 + small)
        acc = tl.where(acc < 0, -bounded, bounded)
    return acc / temperature


@triton.jit
def forward_kernel(
    h_ptr, w_ptr, b_ptr, target_ptr, parts_ptr, N, V, D, h_stride, w_stride, width, temperature, softcap,
    HAS_BIAS: tl.constexpr, SOFTCAP: tl.constexpr, MOMENT: tl.constexpr,
    BN: tl.constexpr, BV: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """m, total, chosen and moment of BN tokens over one split of the vocabulary → parts [4, splits, N]."""
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    split, row_ok = tl.program_id(1), rows < N
    target = tl.load(target_ptr + rows, mask=row_ok, other=-1)
    end = tl.minimum(split * width + width, V)
    m = tl.full((BN,), LOWEST, tl.float32)
    chosen = tl.full((BN,), float("-inf"), tl.float32)
    total = tl.zeros((BN,), tl.float32)
    moment = tl.zeros((BN,), tl.float32)
    for v0 in range(split * width, end, BV):
        cols = v0 + tl.arange(0, BV)
        col_ok = cols < end
        z = logits_tile(
            h_ptr, w_ptr, b_ptr, rows, cols, row_ok, col_ok, D, h_stride, w_stride, temperature, softcap,
            HAS_BIAS, SOFTCAP, BN, BV, BYTES,
        )  # fmt: skip
        is_target = col_ok[None, :] & (cols[None, :] == target[:, None])
        chosen = tl.maximum(chosen, tl.max(tl.where(is_target, z, float("-inf")), 1))
        z = tl.where(col_ok[None, :], z, LOWEST)
        risen = tl.maximum(m, tl.max(z, 1))
        scale = tl.exp(m - risen)  # 0 in the first step
        shifted = z - risen[:, None]
        e = tl.exp(shifted)
        if MOMENT:  # the steps before, moved to the new m, and this one
            moment = scale * (moment + (m - risen) * total) + tl.sum(e * shifted, 1)
        total = scale * total + tl.sum(e, 1)
        m = risen
    splits = tl.num_programs(1).to(tl.int64)
    out = parts_ptr + split.to(tl.int64) * N + rows
    tl.store(out, m, mask=row_ok)
    tl.store(out + splits * N, total, mask=row_ok)
    tl.store(out + 2 * splits * N, chosen - m, mask=row_ok)
    tl.store(out + 3 * splits * N, moment, mask=row_ok)


@triton.jit
def dlogits_kernel(
    h_ptr, w_ptr, b_ptr, target_ptr, m_ptr, d_total_ptr, d_chosen_ptr, d_moment_ptr, dz_ptr,
    N, V, D, h_stride, w_stride, v_start, width, temperature, softcap,
    HAS_BIAS: tl.constexpr, SOFTCAP: tl.constexpr, MOMENT: tl.constexpr,
    BN: tl.constexpr, BV: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """∂loss/∂(h Wᵀ + b) of BN tokens × BV vocabulary entries → dz [N, width], entries from v_start on."""
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    local = tl.program_id(1) * BV + tl.arange(0, BV)
    cols = v_start + local
    row_ok, col_ok = rows < N, (local < width) & (cols < V)
    z = logits_tile(
        h_ptr, w_ptr, b_ptr, rows, cols, row_ok, col_ok, D, h_stride, w_stride, temperature, softcap,
        HAS_BIAS, SOFTCAP, BN, BV, BYTES,
    )  # fmt: skip
    target = tl.load(target_ptr + rows, mask=row_ok, other=-1)
    m = tl.load(m_ptr + rows, mask=row_ok, other=0.0)
    scale = tl.load(d_total_ptr + rows, mask=row_ok, other=0.0)[:, None]
    d_chosen = tl.load(d_chosen_ptr + rows, mask=row_ok, other=0.0)
    if MOMENT:
        d_moment = tl.load(d_moment_ptr + rows, mask=row_ok, other=0.0)
        scale = scale + d_moment[:, None] * (1.0 + z - m[:, None])
    dz = tl.exp(z - m[:, None]) * scale
    dz += tl.where(cols[None, :] == target[:, None], d_chosen[:, None], 0.0)
    if SOFTCAP:  # 1 − tanh²
        dz *= 1.0 - (z * temperature / softcap) * (z * temperature / softcap)
    out = dz_ptr + rows.to(tl.int64)[:, None] * width + local[None, :]
    dz = (dz / temperature).to(dz_ptr.dtype.element_ty)
    tl.store(out, dz, mask=row_ok[:, None] & col_ok[None, :])


forward_tuned, dlogits_tuned = tuned(forward_kernel), tuned(dlogits_kernel)


def _splits(n: int, v: int, device: torch.device) -> tuple[int, int]:
    """Splits of the vocabulary, and their width: programs for four waves, but 2,048 entries at least."""
    units = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    wanted = max(1, 4 * units // max(triton.cdiv(n, 64), 1))
    width = max(triton.cdiv(v, wanted), 2048 if device.type == "cuda" else 512)
    width = triton.cdiv(width, 256) * 256
    return triton.cdiv(v, width), width


def forward(hidden, weight, bias, target, temperature, softcap, with_moment):
    """See `logprob_cpu.forward`, whose signature this has."""
    hidden, weight = rows_contiguous(hidden), rows_contiguous(weight)
    (n, d), v = hidden.shape, len(weight)
    splits, width = _splits(n, v, hidden.device)
    parts = torch.empty(4, splits, n, dtype=torch.float32, device=hidden.device)
    if n:
        forward_tuned[lambda meta: (triton.cdiv(n, meta["BN"]), splits)](
            hidden, weight, bias, target, parts, n, v, d, hidden.stride(0), weight.stride(0), width,
            temperature, softcap or 1.0, bias is not None, softcap is not None, with_moment,
            enable_fp_fusion=True,
        )  # fmt: skip
    return merge(*parts)


def backward(
    d_total, d_chosen, d_moment, hidden, weight, bias, target, m, temperature, softcap, with_moment, needs
):
    """See `logprob_cpu.backward`, whose signature this has."""
    hidden, weight = rows_contiguous(hidden), rows_contiguous(weight)
    (n, d), v = hidden.shape, len(weight)
    dh = torch.empty(n, d, dtype=torch.float32, device=hidden.device)
    dw, db = torch.zeros_like(weight), m.new_zeros(v)
    unit = m.new_ones(())
    if hidden.dtype == torch.float16 and n:  # gradients of 1e-8 would be lost: measured by the largest
        unit = torch.stack([d_total, d_chosen, d_moment]).abs().max().clamp(min=1e-30)
        d_total, d_chosen, d_moment = d_total / unit, d_chosen / unit, d_moment / unit
    width = stretch_width(n, v, d, hidden.element_size())
    for v0 in range(0, v if n else 0, width):
        part = slice(v0, min(v0 + width, v))
        dz = torch.empty(n, part.stop - v0, dtype=hidden.dtype, device=hidden.device)
        dlogits_tuned[lambda meta, dz=dz: (triton.cdiv(n, meta["BN"]), triton.cdiv(dz.shape[1], meta["BV"]))](
            hidden, weight, bias, target, m, d_total, d_chosen, d_moment, dz, n, v, d,
            hidden.stride(0), weight.stride(0), v0, dz.shape[1], temperature, softcap or 1.0,
            bias is not None, softcap is not None, with_moment, enable_fp_fusion=True,
        )  # fmt: skip
        if needs[0]:
            add_product(dh, dz, weight[part], unit, add=v0 > 0)
        if needs[1]:
            add_product(dw[part], dz.T, hidden, unit, add=False)
        if needs[2]:
            db[part] = dz.sum(0, dtype=torch.float32) * unit
    return dh.to(hidden.dtype), dw, db


def stretch_width(n: int, v: int, d: int, size: int) -> int:
    """Vocabulary entries in a stretch: ∂loss/∂logits takes STRETCH bytes, or what ∂hidden takes in float32.

    Each stretch reads and writes ∂hidden once: with memory that grows as ∂hidden does there are V / 2D
    stretches of 16-bit numbers, whatever the number of tokens.
    """
    entries = max(STRETCH, 4 * n * d) // (size * max(n, 1))
    return min(v, triton.cdiv(max(entries, 256), 256) * 256)


def rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
