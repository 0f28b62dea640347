"""What must happen before torch is imported. Each script calls `prepare()` first.

glibc gives large freed blocks back to the system and faults them in again, step after step; on a small
model on CPUs that costs from a few per cent of a training step to half of it. And OpenMP's threads spin while
they wait for each other: beside other work two threads are then several times slower than one.
"""

from __future__ import annotations

import ctypes
import os
import platform

# glibc's numbers of its settings (malloc.h), and their values
ALLOCATOR = {
    -4: 0,  # M_MMAP_MAX: no block gets a mapping of its own
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD: give nothing back before 2 GiB are free
    -2: 256 << 20,  # M_TOP_PAD: grow in steps of 256 MiB
}


def prepare() -> None:
    """Set the allocator (glibc only, unless MALLOC_… variables do) and let waiting threads sleep."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns about what does not matter here
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
    if platform.libc_ver()[0] == "glibc" and not any(name.startswith("MALLOC_") for name in os.environ):
        libc = ctypes.CDLL(None)
        for number, value in ALLOCATOR.items():
            libc.mallopt(number, value)


def set_threads() -> int:
    """Share the machine's cores among its ranks, unless OMP_NUM_THREADS says; returns threads per rank."""
    import torch

    if os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads()
    threads = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    return threads


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
