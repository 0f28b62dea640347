"""Compiles every Triton kernel for GPUs that need not be there, and reads what came out from the binaries.

    python tests/kernels/aot.py [TARGET …]     # one line of JSON a kernel, configuration and target

Registers and stack come from `cuobjdump -res-usage`, tensor-core instructions from the disassembly (both
tools come with Triton), shared memory from the compiler; on AMD all of them from the assembly's metadata.
Must run without TRITON_INTERPRET: tests/kernels/test_ahead_of_time.py starts it in a process of its own.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nanov2.kernels import (
    advantage_triton,
    linear_policy_loss_triton,
    logprob_triton,
    policy_loss_triton,
    product_triton,
)

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TENSOR_CORE = {
    "sm_80": r"\bHMMA\b",
    "sm_90": r"\bHGMMA\b",
    "sm_100": r"\bUTC\w*MMA\b",
    "gfx942": r"\bv_mfma_f32_",
}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
ALIGNED = ["tt.divisibility", 16]  # what the launcher finds for pointers and for sizes that 16 divides


def signature(kernel, types: dict[str, str], constants: dict) -> tuple[dict, dict, dict]:
    """Types, constants and alignment of every argument, as a launch with round sizes has them."""
    kinds = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    places = {name: (i,) for i, name in enumerate(kernel.arg_names)}
    aligned = {places[n]: [ALIGNED] for n, kind in kinds.items() if kind.startswith("*") or kind == "i32"}
    return kinds, {places[n]: value for n, value in constants.items()}, aligned


def cases(target: str):
    """(name, kernel, argument types, constants, options, whether tensor cores must be used) to compile."""
    floats = {"temperature": "fp32", "softcap": "fp32"}
    configurations = logprob_triton.configurations(TARGETS[target].backend)
    for dtype, chosen in (("bf16", configurations), ("fp32", configurations[:1])):
        inputs = {x: f"*{dtype}" for x in ("h_ptr", "w_ptr", "b_ptr")} | {"target_ptr": "*i64"} | floats
        sums = {x: "*fp32" for x in ("parts_ptr", "m_ptr", "d_total_ptr", "d_chosen_ptr", "d_moment_ptr")}
        flags = {"HAS_BIAS": True, "SOFTCAP": True, "MOMENT": True}  # all that a kernel can be asked for
        for c in chosen:
            options = {"num_warps": c.num_warps, "num_stages": c.num_stages}
            label = f"{dtype} {'×'.join(map(str, c.kwargs.values()))} w{c.num_warps} s{c.num_stages}"
            for kernel in (logprob_triton.forward_kernel, logprob_triton.dlogits_kernel):
                types = inputs | sums | {"dz_ptr": f"*{dtype}"}
                name = f"{kernel.fn.__name__} {label}"
                yield name, kernel, types, flags | c.kwargs, options, dtype == "bf16"
    yield from product_cases(target)
    yield from chunk_cases(target)
    tokens = ("logp_ptr", "old_ptr", "ref_ptr", "sampler_ptr", "advantage_ptr", "grad_ptr", "parts_ptr")
    types = {x: "*fp32" for x in tokens} | {"offsets_ptr": "*i64", "mask_ptr": "*u8"}
    types |= {x: "fp32" for x in ("clip_low", "clip_high", "kl_coef", "is_cap", "off_policy_delta")}
    for sequence in (False, True):
        flags = {"HAS_REF": True, "HAS_SAMPLER": True, "BY_ROW": sequence, "SEQUENCE": sequence}
        flags |= {"KL_WEIGHTED": True, "OFF_POLICY": True}
        sizes = {"BLOCK": policy_loss_triton.BLOCK, "PARTS": policy_loss_triton.PARTS}
        name = f"policy_kernel {'gspo' if sequence else 'dapo'}"
        yield name, policy_loss_triton.policy_kernel, types, flags | sizes, {"num_warps": 8}, False
    types = {x: "*fp32" for x in ("r_ptr", "advantage_ptr", "floats_ptr")}
    types |= {x: "*i64" for x in ("order_ptr", "offsets_ptr", "ints_ptr")}
    types |= {"eps": "fp32"}
    flags = {"SCALE": "std", "BLOCK": advantage_triton.BLOCK}
    yield "advantage_kernel", advantage_triton.advantage_kernel, types, flags, {}, False


def product_cases(target: str):
    """The product as ∂hidden and ∂weight of the log-prob take it, and of the policy loss: rows by a list."""
    sizes = product_triton.configuration(TARGETS[target].backend)
    options = {name: sizes.pop(name) for name in ("num_warps", "num_stages")}
    waiting = {"order_ptr": "*i64", "count_ptr": "*i64", "unit_ptr": "*fp32"}
    for dtype, some, transposed, out in (
        ("bf16", "", False, "fp32"),
        ("bf16", "", True, "bf16"),
        ("bf16", "m", False, "fp32"),
        ("bf16", "k", True, "fp32"),
        ("fp32", "k", True, "fp32"),
    ):
        types = {"a_ptr": f"*{dtype}", "b_ptr": f"*{dtype}", "out_ptr": f"*{out}"} | waiting
        unit_stride = {"a_m" if transposed else "a_k": 1}  # as the launcher specialises it
        constants = {"ADD": out == "fp32", "SOME": some} | unit_stride | sizes
        name = f"product_kernel {dtype} {some or 'all'}{' transposed' if transposed else ''}"
        yield name, product_triton.product_kernel, types, constants, options, dtype == "bf16"


def chunk_cases(target: str):
    """The two kernels of linear_policy_loss besides the product."""
    module = linear_policy_loss_triton
    for dtype in ("bf16", "fp32"):
        sizes = module.sizes_of(TARGETS[target].backend)
        options = {name: sizes.pop(name) for name in ("num_warps", "num_stages")}
        types = {x: f"*{dtype}" for x in ("h_ptr", "w_ptr", "e_ptr")}
        types |= {x: "*i64" for x in ("target_ptr", "order_ptr", "count_ptr")} | {"temperature": "fp32"}
        floats = ("parts_ptr", "m_ptr", "log_total_ptr", "logp_ptr", "entropy_ptr", "c_ptr", "bonus_ptr")
        types |= {x: "*fp32" for x in floats}
        yield f"scores_kernel {dtype}", module.scores_kernel, types, sizes, options, dtype == "bf16"
        flags = {"BONUS": True, "BN": module.ROWS, "BV": sizes["BV"]}
        yield f"dscores_kernel {dtype}", module.dscores_kernel, types, flags, {}, False


def nvidia_figures(compiled, target: str) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, sass = [
            subprocess.run([CUOBJDUMP, what, file.name], capture_output=True, text=True, check=True)
            for what in ("-res-usage", "-sass")
        ]
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage.stdout))
    return {
        "registers": int(found["REG"]),
        "spilled_bytes": int(found["STACK"]) + int(found["LOCAL"]),
        "shared_bytes": compiled.metadata.shared,
        "tensor_core": len(re.findall(TENSOR_CORE[target], sass.stdout)),
    }


def amd_figures(compiled, target: str) -> dict:
    assembly = compiled.asm["amdgcn"]
    found = {k: int(v) for k, v in re.findall(r"\.(\w+(?:_count|_size)):\s+(\d+)", assembly)}
    return {
        "registers": found["vgpr_count"],
        "spilled_bytes": found["private_segment_fixed_size"],
        "shared_bytes": max(found["group_segment_fixed_size"], compiled.metadata.shared),
        "tensor_core": len(re.findall(TENSOR_CORE[target], assembly)),
    }


def main(targets: list[str]) -> None:
    for target in targets or TARGETS:
        for name, kernel, types, constants, options, wanted in cases(target):
            start = time.perf_counter()
            kinds, constexprs, aligned = signature(kernel, types, constants)
            source = ASTSource(fn=kernel, signature=kinds, constexprs=constexprs, attrs=aligned)
            options = {"enable_fp_fusion": True, **options}
            compiled = triton.compile(source, target=TARGETS[target], options=options)
            read = amd_figures if TARGETS[target].backend == "hip" else nvidia_figures
            seconds = round(time.perf_counter() - start, 2)
            row = {"target": target, "kernel": name, "seconds": seconds, "wants_tensor_core": wanted}
            print(json.dumps(row | read(compiled, target), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
