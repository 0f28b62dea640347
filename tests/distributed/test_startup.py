"""Before the first step: the allocator, threads that sleep while they wait, torchrun without its noise."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from scripts import ROOT, TINY

from nanov2.distributed.launch import threads_per_rank
from nanov2.distributed.startup import cores

FAULTS = """
import os, resource
from nanov2.distributed.startup import prepare
pid = os.getpid()
prepare()
import torch
torch.set_num_threads(1)
x = torch.ones(3_000_000)
for _ in range(20):
    y = x * 2 + 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    y = x * 2 + 1
after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(os.environ["OMP_WAIT_POLICY"], pid == os.getpid(), after - before)
"""


def test_freed_memory_stays_in_the_process_and_threads_sleep_while_they_wait():
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "OMP_WAIT"))}
    end = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, env=env, cwd=ROOT)
    policy, same, faults = end.stdout.split()
    assert (policy, same) == ("PASSIVE", "True"), end.stderr
    # 40 blocks of 12 MB would be 120,000; a kernel that reclaims idle pages, some
    assert int(faults) < 12_000


def test_cores_are_shared_among_the_ranks():
    assert threads_per_rank(["--nproc-per-node=1", "train.py"]) == cores()
    assert threads_per_rank(["--nproc_per_node", str(4 * cores()), "train.py"]) == 1
    assert threads_per_rank(["--nproc-per-node=gpu", "train.py"]) == 1


@pytest.mark.parametrize("how", ["Ctrl-C", "refused"])
def test_ranks_that_stop_or_are_refused_end_without_a_traceback(tmp_path, how):
    folder = tmp_path / "run"
    flags = ["--config=configs/smoke.toml", f"--dir={folder}", "--phase=base", *TINY, "--base.steps=5000"]
    command = [sys.executable, "-m", "nanov2", "torchrun", "--standalone", "--nproc-per-node=2", "train.py"]
    if how == "refused":
        end = subprocess.run(
            [*command, *flags, "--expert=none.jsonl"], capture_output=True, text=True, cwd=ROOT
        )
        assert end.returncode == 1 and "error: expert 'none.jsonl': no such file" in end.stderr
        assert "Traceback" not in end.stderr and "****" not in end.stderr, end.stderr
        assert end.stderr.count("error: ") == 1 and not folder.exists(), end.stderr
        return
    process = subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        start_new_session=True,
    )  # fmt: skip
    path = folder / "base" / "metrics.jsonl"
    for _ in range(600):
        time.sleep(0.1)
        if path.is_file() and path.read_text().count("\n") > 3:
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in err and "****" not in err
    assert err.count("the same command goes on") == 1, err
    assert json.loads(path.read_text().splitlines()[-1])["step"] > 2
