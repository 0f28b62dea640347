"""kill -9 at random moments of a small flywheel: it goes on, and ends as if nothing had happened.

    python benchmarks/kill.py --kills=50                   # one process
    python benchmarks/kill.py --kills=50 --ranks=2 --shard=full

First an undisturbed run. Then flywheels of the same seed are killed, process group and all, after random
times, and started again, until each is done; until so many kills are spent. Each must leave, byte for byte,
the same figures, weights and records as the undisturbed run, and the same figures of every single step, so
that every item was used once and in its turn. Exits with 1 where one does not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
TINY = [  # phases of a few steps, each with a snapshot after it
    "--config=configs/smoke.toml",
    "--base.steps=240",
    "--world.held_out=10",
    "--world.validation=6",
    "--grpo.steps=3",
    "--autolabel.problems=8",
]
TIMES = ("seconds", "tokens_per_second")


def start(folder: Path, ranks: int, settings: list[str]) -> subprocess.Popen:
    command = [sys.executable, "train.py", f"--dir={folder}", *settings]
    if ranks > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command[1:1] = launcher
    with open(f"{folder}.log", "a") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the process and all its children. torchrun puts each rank into a session of its own."""
    family = [process.pid]
    for pid in family:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                family += [int(child) for child in task.read_text().split()]
            except OSError:
                pass
    for pid in family:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait()


def results(folder: Path) -> dict[str, object]:
    """What a run leaves, but for the times that it took."""
    out: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name in ("model.safetensors", "eval.json", "samples.jsonl"):
            out[name] = path.read_bytes()
        elif path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            out[name] = [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
            if [row["step"] for row in rows] != list(range(len(rows))):
                raise SystemExit(f"{path}: not every step once")
        elif path.suffix == ".jsonl":
            out[name] = path.read_bytes()
    return out


def phase_of(folder: Path) -> str:
    """The phase that is under way: the one whose folder changed last."""
    under_way = [p.parent for p in folder.rglob("metrics.jsonl") if not (p.parent / "phase.json").is_file()]
    return str(under_way[0].relative_to(folder)) if under_way else "between phases"


def disturbed(folder: Path, rng: random.Random, longest: float, spend: int, args, settings) -> list[str]:
    """Run to the end, killed at most `spend` times on the way. Returns the phases in which it was killed."""
    killed = []
    while True:
        process = start(folder, args.ranks, settings)
        wait = rng.uniform(0, longest) if len(killed) < spend else None
        try:
            code = process.wait(wait)
        except subprocess.TimeoutExpired:
            kill(process)
            killed.append(phase_of(folder))
            print(f"  killed after {wait:5.1f} s in {killed[-1]}", flush=True)
            continue
        if code:
            raise SystemExit(f"{folder}: ended with {code}; see {folder}.log")
        return killed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--each", type=int, default=4, help="at most so many kills of one flywheel")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--shard", default="none")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--dir", type=Path, default=Path("runs/kill"))
    args = parser.parse_args()
    shutil.rmtree(args.dir, ignore_errors=True)
    args.dir.mkdir(parents=True)
    settings, rng = [*TINY, f"--parallel.shard={args.shard}"], random.Random(args.seed)

    begin = time.time()
    disturbed(args.dir.resolve() / "undisturbed", rng, 0, 0, args, settings)
    took = time.time() - begin
    expected = results(args.dir / "undisturbed")
    print(f"undisturbed: {took:.0f} s, {len(expected)} files to compare", flush=True)
    kills: list[str] = []
    runs = 0
    while len(kills) < args.kills:
        runs += 1
        folder = args.dir.resolve() / f"run{runs}"
        spend = min(args.each, args.kills - len(kills))
        kills += disturbed(folder, rng, 0.7 * took, spend, args, settings)
        found = results(folder)
        different = [n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n)]
        print(f"run {runs}: {len(kills)} kills so far, {len(different)} of {len(expected)} files differ")
        if different:
            raise SystemExit(f"{folder} differs from the undisturbed run in {', '.join(sorted(different))}")
        shutil.rmtree(folder)
    counts = {phase: kills.count(phase) for phase in dict.fromkeys(kills)}
    print(json.dumps({"kills": len(kills), "runs": runs, "all equal": True, "killed in": counts}))


if __name__ == "__main__":
    main()
