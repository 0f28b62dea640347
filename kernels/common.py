"""What the three kernel files share: which form runs where, and in which precision."""

from __future__ import annotations

import importlib
import os

import torch
import torch.distributed as dist
from torch import Tensor

FORMS = ("reference", "cpu", "triton")


def precise(x: Tensor) -> torch.dtype:
    """The dtype of all arithmetic and sums: float64 for float64 inputs, and float32 for every other (C13)."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def pick(impl: str | None, x: Tensor) -> str:
    """The form that runs: the caller's choice, or Triton on a GPU and the chunked PyTorch form elsewhere.

    The chunked form is plain PyTorch and runs on any device; it is also the one for float64 on a GPU.
    """
    if impl is None:
        return "triton" if x.is_cuda and x.dtype != torch.float64 else "cpu"
    if impl not in FORMS:
        raise ValueError(f"impl must be None or one of {', '.join(FORMS)}, got {impl!r}")
    if impl == "triton" and not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("impl='triton' needs tensors on a GPU, or TRITON_INTERPRET=1")
    if impl == "triton" and x.dtype == torch.float64:
        raise ValueError("impl='triton' computes in float32: float64 inputs need 'cpu' or 'reference'")
    return impl


ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] @ b [K, N], by the faster library on a CPU.

    Where the processor has AVX-512 oneDNN uses it; MKL does so on Intel's processors alone, and takes twice
    the time on others. The choice depends on the machine alone, so a run repeats bit by bit.
    """
    if ONEDNN and a.dtype == torch.float32 and not a.is_cuda and a.numel() and b.numel():
        return torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
    return torch.mm(a, b)


def triton_form(name: str):
    """The module of Triton kernels `kernels.<name>_triton`, imported at first use: CPUs never load Triton."""
    try:
        return importlib.import_module(f"nanov2.kernels.{name}_triton")
    except ImportError as error:
        if error.name and error.name.split(".")[0] == "triton":
            raise ValueError("Triton is not installed (pip install triton): use impl='cpu'") from error
        raise


class GatherRanks(torch.autograd.Function):
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


class SumGradient(torch.autograd.Function):
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
