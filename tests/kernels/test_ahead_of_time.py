"""Every kernel, in every shipped configuration, compiles for every target and fits, by its binary."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_helpers import HAS_TRITON

ROOT = Path(__file__).parents[2]
SHARED_LIMIT = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "gfx942": 64}  # KB that a block may have
SPILL_LIMIT = 192  # bytes a thread: of 255 registers, one in five; beyond it a configuration is not shipped

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """What aot.py prints, from a process without the interpreter and with an empty cache."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).parent / "aot.py")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_configuration_is_compiled_for_every_target(figures):
    for target, configurations in (("sm_80", 2), ("sm_90", 2), ("sm_100", 2), ("gfx942", 2)):
        names = [row["kernel"] for row in figures if row["target"] == target]
        for kernel in ("forward_kernel bf16", "dlogits_kernel bf16"):
            assert sum(name.startswith(kernel) for name in names) == configurations
        for kernel, cases in (("product_kernel", 5), ("scores_kernel", 2), ("dscores_kernel", 2)):
            assert sum(name.startswith(kernel) for name in names) == cases
        for kernel in ("policy_kernel dapo", "policy_kernel gspo", "advantage_kernel"):
            assert kernel in names


def test_no_kernel_asks_for_more_shared_memory_than_can_be_launched(figures):
    for row in figures:
        assert row["shared_bytes"] <= SHARED_LIMIT[row["target"]] * 1024, row


def test_no_kernel_spills_beyond_the_stated_figure(figures):
    for row in figures:
        assert row["registers"] <= 512 if row["target"] == "gfx942" else row["registers"] <= 255, row
        assert row["spilled_bytes"] <= SPILL_LIMIT, row


def test_16_bit_products_run_on_tensor_cores(figures):
    for row in figures:
        if row["wants_tensor_core"]:
            assert row["tensor_core"] > 0, row
