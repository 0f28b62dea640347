"""What must happen before torch is imported. Each script calls `prepare()` first.

glibc gives large freed blocks back to the system and faults them in again, step after step; on a small
model on CPUs that costs from a few per cent of a training step to half of it. The settings below keep
freed memory in the process. They are read when a process starts, so the script starts itself once more.
"""

from __future__ import annotations

import os
import platform
import sys

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),  # no block is so large that it gets a mapping of its own
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),  # give nothing back before 8 GiB are free
    "MALLOC_TOP_PAD_": str(256 << 20),  # grow in steps of 256 MiB
}


def prepare() -> None:
    """Set the allocator (glibc only) and keep quiet where torch warns about what does not matter here."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if platform.libc_ver()[0] != "glibc" or os.environ.get("NANOV2_STARTED"):
        return
    os.environ["NANOV2_STARTED"] = "1"
    for name, value in ALLOCATOR.items():
        os.environ.setdefault(name, value)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def set_threads() -> int:
    """Share the machine's cores among its ranks, unless OMP_NUM_THREADS says; returns threads per rank."""
    import torch

    if os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    return threads
