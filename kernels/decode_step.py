"""Decoding of small models on CPUs, in C++: compiled when it is first needed, kept for later runs.

Where there is no compiler, or `NANOV2_COMPILE=0` is set, `library()` is None and decoding goes on in PyTorch
(nanov2/model/cache.py), whose results differ by rounding.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ["-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-std=c++17", "-shared", "-fPIC"]

PANEL = 32  # outputs of a matrix side by side

Pointer, Count = ctypes.c_void_p, ctypes.c_int64


class Layer(ctypes.Structure):
    """Weights of a layer; matrices in panels."""

    _fields_ = [(n, Pointer) for n in ("norm1", "qkv", "output", "norm2", "gate_up", "down")]


class Decoder(ctypes.Structure):
    """A model, its cache, and what a call takes: `Decoder` of the source."""

    _fields_ = [
        *((n, Count) for n in ("layers", "dim", "heads", "kv_heads", "head_dim", "hidden")),
        *((n, Count) for n in ("convolution", "half")),
        ("epsilon", ctypes.c_float),
        *((n, Pointer) for n in ("layer", "embeddings", "convolved", "norm")),
        *((n, Count) for n in ("prompts", "prompt_room", "rows", "own_room")),
        *((n, Pointer) for n in ("prompt_kv", "own_kv", "prompt_lengths", "group", "lengths", "recent")),
        *((n, Pointer) for n in ("cosines", "sines", "which")),
        ("count", Count),
        *((n, Pointer) for n in ("tokens", "starts", "slots", "out")),
    ]


class Draw(ctypes.Structure):
    """What drawing takes: `Draw` of the source."""

    _fields_ = [
        *((n, Count) for n in ("dim", "vocabulary", "count", "limit")),
        ("temperature", ctypes.c_float),
        *((n, Pointer) for n in ("hidden", "panels", "uniforms", "which", "lengths", "tokens", "logprobs")),
    ]


def step(decoder: Decoder, rows: Tensor, threads: int) -> None:
    """One new token of these rows [n]."""
    _share(library().step, decoder, rows, threads, least=16)


def prefill(decoder: Decoder, prompts: Tensor, threads: int) -> None:
    """These [n] of the new prompts."""
    _share(library().prefill, decoder, prompts, threads, least=2)


def _share(work: Callable, decoder: Decoder, which: Tensor, threads: int, least: int) -> None:
    """Each computed alone: by up to so many threads, which have `least` or more each."""
    threads = max(1, min(threads, len(which) // least))
    parts = which.tensor_split(threads)
    calls = [Decoder.from_buffer_copy(decoder) for _ in parts]
    for call, part in zip(calls, parts, strict=True):
        call.which, call.count = part.data_ptr(), len(part)
    if threads == 1:
        work(calls[0])
    else:
        list(_pool(threads).map(work, calls))  # a call of C lets the others run


def draw(arguments: Draw) -> None:
    """A token of each row, and its log-prob."""
    library().draw(arguments)


def panels(weight: Tensor, half: bool) -> Tensor:
    """A matrix [N, K] in fp32 as `decode_step` reads it, rounded to bf16 with `half`."""
    (N, K), weight = weight.shape, weight.contiguous()
    out = weight.new_empty(-(-N // PANEL) * PANEL * K)
    library().pack(weight.data_ptr(), N, K, half, out.data_ptr())
    return out


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled source, or None where that cannot be had."""
    if os.environ.get("NANOV2_COMPILE") == "0":
        return None
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    try:
        compiled = ctypes.CDLL(str(_compiled(compiler))) if compiler else None
    except (OSError, subprocess.SubprocessError):
        compiled = None
    if compiled is None:
        if os.environ.get("RANK", "0") == "0":
            print("small models decode in PyTorch: a C++ compiler makes that faster", file=sys.stderr)
        return None
    for call in (compiled.step, compiled.prefill):
        call.argtypes, call.restype = [ctypes.POINTER(Decoder)], None
    compiled.draw.argtypes, compiled.draw.restype = [ctypes.POINTER(Draw)], None
    compiled.pack.argtypes, compiled.pack.restype = [Pointer, Count, Count, Count, Pointer], None
    return compiled


def _compiled(compiler: str) -> Path:
    """The library's file, made where it is not there: one for each source, compiler and kind of processor."""
    kind = [SOURCE.read_text(), *FLAGS, compiler, platform.machine(), _processor()]
    name = f"decode_step-{hashlib.sha256('|'.join(kind).encode()).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanov2"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        mine = not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
        if not mine:  # somebody else's code is not loaded
            raise PermissionError(folder)
    except (OSError, RuntimeError):
        folder = Path(tempfile.mkdtemp(prefix="nanov2-"))
    path = folder / name
    if not path.exists():
        made = folder / f"{name}.{os.getpid()}"  # ranks may compile at once; each puts a whole file there
        subprocess.run([compiler, *FLAGS, "-o", made, SOURCE], check=True, capture_output=True, timeout=120)
        made.replace(path)
    return path


def _processor() -> str:
    """What it can do: `-march=native` on one may be illegal on another that shares the folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
