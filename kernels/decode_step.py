"""The decoding step of small models on CPUs, in C++: compiled when it is first needed, kept for later runs.

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
import tempfile
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


class Step(ctypes.Structure):
    """What a step takes: `Step` of the source."""

    _fields_ = [
        *(
            (n, Count)
            for n in ("layers", "dim", "heads", "kv_heads", "head_dim", "hidden", "convolution", "half")
        ),
        ("epsilon", ctypes.c_float),
        *((n, Pointer) for n in ("layer", "embeddings", "convolved", "norm")),
        *((n, Count) for n in ("prompts", "prompt_room", "key_room", "rows", "own_room")),
        *((n, Pointer) for n in ("prompt_keys", "prompt_kv", "own_kv")),
        *((n, Pointer) for n in ("prompt_lengths", "group", "lengths", "recent", "cosines", "sines")),
        *((n, Pointer) for n in ("which", "tokens")),
        ("count", Count),
        ("out", Pointer),
    ]


class Draw(ctypes.Structure):
    """What drawing takes: `Draw` of the source."""

    _fields_ = [
        *((n, Count) for n in ("dim", "vocabulary", "count", "limit")),
        ("temperature", ctypes.c_float),
        *((n, Pointer) for n in ("hidden", "panels", "uniforms", "which", "lengths", "tokens", "logprobs")),
    ]


def run(step: Step, rows: Tensor, threads: int) -> None:
    """A step of these rows [n] int64, each computed alone: by up to so many threads, of 16 rows at least."""
    threads = max(1, min(threads, len(rows) // 16))
    parts = [part for part in rows.tensor_split(threads)]
    steps = [Step.from_buffer_copy(step) for _ in parts]
    for one, part in zip(steps, parts, strict=True):
        one.which, one.count = part.data_ptr(), len(part)
    if threads == 1:
        library().decode_step(steps[0])
    else:
        list(_pool(threads).map(library().decode_step, steps))  # a call of C lets the others run


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
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if os.environ.get("NANOV2_COMPILE") == "0" or compiler is None:
        return None
    try:
        compiled = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError):
        return None
    compiled.decode_step.argtypes, compiled.decode_step.restype = [ctypes.POINTER(Step)], None
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
        if folder.stat().st_uid != os.getuid():  # somebody else's code is not loaded
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
