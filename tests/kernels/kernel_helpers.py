"""What the kernels' tests share. Where there is no GPU, Triton kernels run under Triton's interpreter.

It must be chosen before Triton is first imported, which the package does only when a kernel is first run.
The interpreter's bfloat16 products are wrong, so low precision is tested in float16 there.
"""

import importlib.util
import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_TRITON = importlib.util.find_spec("triton") is not None
FAST_FORMS = ["cpu", "triton"] if HAS_TRITON else ["cpu"]  # each is held against "reference"
FORMS = ["reference", *FAST_FORMS]

if HAS_TRITON and DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language

    imported = type(triton.language.sum).__name__
    assert imported == "InterpretedFunction", "Triton was imported before its interpreter could be chosen"

torch.set_num_threads(1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def relative_error(found, expected):
    """The largest error, relative to the largest value."""
    if found.numel() == 0:
        return 0.0
    size = expected.double().abs().max().clamp(min=1e-30)
    return float((found.double() - expected.double()).abs().max() / size)
