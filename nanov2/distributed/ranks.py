"""Ranks: how the work is split, and the few collectives that the phases need.

Under torchrun every rank takes every `world`th prompt, and gradients are summed. Alone, everything here
is the identity. Randomness is drawn from (seed, purpose, index), never from a running generator, so the
split changes nothing but the order of floating-point sums, and a resumed run draws what it would have.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sys
from datetime import timedelta
from functools import cached_property
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

T = TypeVar("T")


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from anything that prints the same everywhere (numbers, strings, lists of them)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def derive_rng(*parts: object) -> random.Random:
    return random.Random(derive_seed(*parts))


def fast_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for products in bf16: a GPU from Ampere on, AMX, AVX-512 BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def leave(status: int = 0) -> NoReturn:
    """End this process at once, after what it has printed.

    A thread of gloo may still hold a tensor. Freeing it while the interpreter shuts down aborts the process
    (github.com/pytorch/pytorch/pull/179291), and a run that is done would end as one that failed.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(status)


class Ranks:
    """This process among the ranks. `device` is a GPU where there is one, else the CPU.

    `shard` ("none", "full", "hybrid"), `precision` ("fp32", "bf16") and `reduce` ("micro", "step") say how
    models are trained: see `use` and sharding.py.
    """

    shard, precision, reduce = "none", "fp32", "micro"

    def __init__(self, timeout: float = 7200.0):
        """`timeout`: seconds that a rank waits for the others before it gives up."""
        self.timeout = timedelta(seconds=timeout)
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        else:
            self.device = torch.device("cpu")
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=self.timeout)

    def use(self, shard: str, precision: str, reduce: str = "micro") -> None:
        """How models are trained from here on; with "auto", in bf16 where the hardware multiplies it fast.

        That is read off the hardware and not timed, so that a run that is stopped goes on as it began.
        """
        self.shard, self.precision, self.reduce = shard, precision, reduce
        if precision == "auto":
            self.precision = "bf16" if all(self.gather([fast_bf16(self.device)])) else "fp32"
            if self.main:
                print(f"precision: {self.precision}", file=sys.stderr, flush=True)

    @cached_property
    def writers(self) -> dist.ProcessGroup:
        """All ranks over gloo, for a thread that writes: its messages must not meet those of training."""
        return dist.new_group(backend="gloo", timeout=self.timeout)

    @property
    def sharded(self) -> bool:
        """Whether the ranks share each model in shards."""
        return self.shard != "none" and self.size > 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def mine(self, items: list[T]) -> list[T]:
        """This rank's share of a list: every `size`th, from `rank` on."""
        return items[self.rank :: self.size]

    def gather(self, mine: list[T]) -> list[T]:
        """All ranks' shares of a list, back in the order that `mine` took them from."""
        if self.size == 1:
            return mine
        shares: list[list[T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(shares, mine)
        out = []
        for i in range(max(map(len, shares))):
            out += [share[i] for share in shares if i < len(share)]
        return out

    def sum(self, sums: dict[str, float]) -> dict[str, float]:
        """Each value summed over ranks; every rank must pass the same names."""
        if self.size == 1:
            return sums
        names = sorted(sums)
        values = torch.tensor([float(sums[n]) for n in names], dtype=torch.float64, device=self.device)
        dist.all_reduce(values)
        return dict(zip(names, values.tolist(), strict=True))

    def sum_gradients(self, model: nn.Module) -> None:
        """Sum gradients over ranks, in one message. Losses carry global denominators, so it is no mean.

        Sharded models have summed theirs in the backward pass.
        """
        if self.size == 1 or isinstance(model, FSDPModule):
            return
        params = [p for p in model.parameters() if p.requires_grad]
        for p in params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.flatten() for p in params])
        dist.all_reduce(flat)
        for p, part in zip(params, flat.split([p.numel() for p in params]), strict=True):
            p.grad.copy_(part.view_as(p))

    def clip_gradients(self, model: nn.Module, max_norm: float) -> float:
        """Scale the gradients down to `max_norm`; returns the norm that the full gradient had (C17)."""
        norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def from_main(self, value: T) -> T:
        """The main rank's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()
