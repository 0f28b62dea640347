"""The first hour with a GPU in one command: all that is to be measured on one, in under nine minutes.

    python benchmarks/gpu.py                             # with a bf16 lap of a small model made on the spot
    python benchmarks/gpu.py --model=models/smollm2      # of SmolLM2, on the order world
    python benchmarks/gpu.py --cpu-rehearsal             # every part at a tiny size, without a GPU

Parts, each a process of its own with a budget of seconds:

- throughput: GRPO steps in bf16, whole weights and LoRA; seconds and bytes beside what --dry-run says of them
- golden: the kernels' and the attention's tests, against references and float64
- lap: a lap of the cycle in bf16, and its figures
- kernels: time, memory and errors of the kernels beside their peers, where those are installed

A part that fails or runs out of time ends alone. What is to be kept lies in --out (gpu-report): report.json,
report.md, and each part's output, written anew after every part. The status is 0 if all reached their end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

ROOT = Path(__file__).parents[1]
WITHIN = 530.0  # seconds of all parts together
SHOWN = 60  # lines of a part's output in the report


@dataclass
class Part:
    """One measurement: what is run, and for how long at most."""

    name: str
    command: list[str]
    budget: float  # seconds
    status: str = "not begun"
    seconds: float = 0.0
    figures: dict = field(default_factory=dict)
    output: list[str] = field(default_factory=list)  # its last lines


def parts(out: Path, model: str, memory: float, rehearsal: bool) -> list[Part]:
    """What is run on a device with so many bytes."""
    python, here = sys.executable, str(Path(__file__).parent)
    me = [python, __file__, f"--out={out}", "--work"]
    tests = ["tests/kernels", "tests/model/test_attention.py", "tests/model/test_precision.py"]
    size = ["--n=8192", "--d=4096", "--v=151936"] if memory > 60e9 else ["--n=2048", "--d=2048", "--v=151936"]
    kernels = [python, f"{here}/kernels.py", "--no-plot"]
    lap = [python, str(ROOT / "train.py"), "--phase=flywheel", "--laps=1", f"--dir={out / 'run'}"]
    if model:
        lap += [f"--config={ROOT / 'configs/order-smollm2-cpu.toml'}", f"--pretrained.folder={model}"]
        lap += ["--base.steps=40", "--grpo.steps=4", "--coldstart.problems=48", "--autolabel.problems=8"]
    else:
        lap += [f"--config={ROOT / 'configs/smoke.toml'}", "--base.steps=300"]
    lap += ["--parallel.precision=bf16"]
    if rehearsal:
        tests = ["tests/kernels/test_advantage.py", "-k", "reference"]
        size, lap = ["--quick", "--rounds=1"], [*lap, *TINY]
    else:
        size += ["--dtype=bfloat16"]
    golden = [python, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *tests]
    found = [
        Part("throughput", [*me, "tiny" if rehearsal else "large" if memory > 20e9 else "small"], 110),
        Part("golden", golden, 150),
        Part("lap", lap, 170),
        Part("kernels", [*kernels, *size], 100),
    ]
    for part in found if rehearsal else ():
        part.budget *= 4  # a busy CPU
    return found


# What is tried is that the parts run, not what they find
TINY = ["--phase=base", "--base.steps=20", "--world.held_out=4", "--world.problems=60", "--eval.greedy=false"]


def run_parts(todo: list[Part], out: Path, facts: dict, within: float = WITHIN) -> bool:
    """Each part in turn, for what is left of the time at most; the report is written after each. Whether all
    came to their end."""
    begin = time.monotonic()
    for part in todo:
        left = within - (time.monotonic() - begin)
        run_part(part, out / f"{part.name}.log", min(part.budget, left))
        print(f"{part.name}: {part.status}, {part.seconds:.0f} s", flush=True)
        write_report(out, facts, todo)
    return all(part.status == "done" for part in todo)


def run_part(part: Part, log: Path, seconds: float) -> None:
    """The part in a process group of its own, which is ended after so many seconds."""
    if seconds <= 0:
        part.status = "no time was left"
        return
    begin = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with open(log, "wb") as file:
        process = subprocess.Popen(
            part.command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            code = process.wait(seconds)
            part.status = "done" if code == 0 else f"failed with status {code}"
        except subprocess.TimeoutExpired:
            part.status = f"ended after its {seconds:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    part.seconds = round(time.monotonic() - begin, 1)
    lines = log.read_text(errors="replace").splitlines()
    found = [line.removeprefix("FIGURES ") for line in lines if line.startswith("FIGURES ")]
    part.figures = json.loads(found[-1]) if found else {}
    part.output = [line.rpartition("\r")[2] for line in lines if not line.startswith("FIGURES ")][-SHOWN:]


def write_report(out: Path, facts: dict, todo: list[Part]) -> None:
    (out / "report.json").write_text(json.dumps(facts | {"parts": [asdict(p) for p in todo]}, indent=1))
    lines = [f"# {facts['device']}", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    lines += ["| part | | s | at most |", "|---|---|---|---|"]
    lines += [f"| {p.name} | {p.status} | {p.seconds:.0f} | {p.budget:.0f} |" for p in todo]
    for p in todo:
        lines += ["", f"## {p.name}", "", f"`{' '.join(p.command)}`", ""]
        lines += [f"- {name}: {value}" for name, value in p.figures.items()]
        lines += ["", "```", *p.output, "```"] if p.output else []
    (out / "report.md").write_text("\n".join(lines) + "\n")


def facts_of(device: str) -> dict:
    import torch

    facts = {"device": f"a CPU ({os.cpu_count()} cores): a rehearsal, its figures say nothing", "bytes": 0}
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        facts = {"device": gpu.name, "bytes": gpu.total_memory, "capability": f"{gpu.major}.{gpu.minor}"}
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}
    return facts | versions | {"commit": head.stdout.strip() or "unknown", "began": time.strftime("%F %T")}


# What the part `throughput` does in its process

WORK = {  # size: config.json of the model, GRPO step, optimiser steps
    "tiny": ("", dict(prompts=2, samples=2, length=24, new=8), 2),
    "small": ("smollm2-135m", dict(prompts=4, samples=8, length=512, new=128), 3),
    "large": ("qwen3-1.7b", dict(prompts=2, samples=8, length=1024, new=256), 3),
}


def throughput(size: str) -> dict:
    """Seconds and bytes of GRPO steps in bf16, and what --dry-run says of the same."""
    import gc

    figures: dict = {}
    for rank in (32, 0):
        gc.collect()  # the model before
        name = "LoRA" if rank else "whole weights"
        try:
            figures |= {f"{name}, {k}": v for k, v in grpo_steps(size, rank).items()}
        except Exception as error:  # out of memory: the other way is measured all the same
            figures[f"{name}, error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return figures


def grpo_steps(size: str, lora: int) -> dict:
    import torch
    from throughput import DrawnRewards, Tokens, prompts_of

    from nanov2.distributed.ranks import Ranks
    from nanov2.model.decoder import Model
    from nanov2.model.lora import LoraConfig, add_adapters
    from nanov2.rl.config import GRPOConfig
    from nanov2.rl.grpo import Clock, rollout_groups, train_on_groups
    from nanov2.rl.optimizer import make_optimizer
    from nanov2.run.config import load_config
    from nanov2.run.costs import Costs
    from nanov2.run.plan import this_machine

    shape, work, steps = WORK[size]
    path = f"{ROOT}/configs/shapes/{shape}.json"
    flags = [f"--pretrained.shape={path}", "--pretrained.folder=-"] if shape else ["--model.embed_conv=0"]
    config = load_config(None, [*flags, "--parallel.precision=bf16", f"--lora.rank={lora}"])
    ranks, costs = Ranks(), Costs(config, 1, 1, this_machine(1)[1])
    ranks.use("none", "bf16")
    gpu = ranks.device.type == "cuda"
    with ranks.device:
        model = Model(costs.c).init_weights(torch.Generator(ranks.device).manual_seed(0))
    if lora:
        add_adapters(model, LoraConfig(lora), 0, half=True)
    model.set_precision("bf16")
    optimizer, clock, seconds = make_optimizer(model, 1e-6, 0.0), Clock(), []
    settings = GRPOConfig(
        prompts=work["prompts"], samples=work["samples"], max_tokens=work["new"], refill=0, checkpointing=True
    )
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    for step in range(steps):
        items = prompts_of(costs.c.vocab_size, work["prompts"], work["length"])
        groups, _ = rollout_groups(
            model, Tokens(), DrawnRewards(), lambda n, i=items: i, settings, ranks, step, clock
        )
        train_on_groups(model, optimizer, groups, settings, ranks, step)
        if gpu:
            torch.cuda.synchronize()
        clock.lap("train")
        seconds.append(clock.take())
    tokens, rows = work["new"] * work["samples"] * work["prompts"], settings.batch_rows
    planned = costs.decode(rows, work["prompts"], work["samples"], work["length"], work["new"])
    best = {kind: min(s[kind] for s in seconds) for kind in ("sample", "train")}
    figures = {
        "parameters": costs.params,
        "tokens sampled in a second": round(tokens / best["sample"]),
        "seconds to sample, planned": round(planned, 3),
        "seconds to sample": round(best["sample"], 3),
        "seconds to train": round(best["train"], 3),
        "bytes held, planned": round(costs.state() - 4 * costs.trained),  # gradients are set to None
    }
    if gpu:
        figures |= {"bytes held": torch.cuda.memory_allocated(), "peak": torch.cuda.max_memory_allocated()}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="where the report is written")
    parser.add_argument("--model", default="", help="model folder of SmolLM2 or the like, for the lap")
    parser.add_argument("--cpu-rehearsal", action="store_true", help="every part at a tiny size, on a CPU")
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print("FIGURES " + json.dumps(throughput(args.work)))
        return
    import torch

    if not args.cpu_rehearsal and not torch.cuda.is_available():
        sys.exit("error: torch sees no GPU here; --cpu-rehearsal runs every part at a tiny size without one")
    if args.model and not (Path(args.model) / "config.json").is_file():
        sys.exit(f"error: --model: {args.model} is no model folder (no config.json)")
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "run", ignore_errors=True)
    facts = facts_of("cpu" if args.cpu_rehearsal else "cuda")
    todo = parts(out, args.model, facts["bytes"], args.cpu_rehearsal)
    done = run_parts(todo, out, facts, 4 * WITHIN if args.cpu_rehearsal else WITHIN)
    print(f"report: {out / 'report.md'}")
    sys.exit(0 if done else 1)


if __name__ == "__main__":
    main()
