"""A rollout engine beside the own sampler: tokens, log-probs, new weights, and a lap whose server is killed.

    python benchmarks/engine.py --model=models/smollm2 --lap
    python benchmarks/engine.py --model=models/smollm2 --command='ENV/bin/python -m MODULE --model'

The engine is started on loopback, by `--command` where that lives in an environment of its own. For each
precision:

- greedy tokens of prompts of the order world, the engine's and the own sampler's
- samples at temperature 1: the engine's log-probs beside the trainer's of the same tokens, and the mean
  importance weight that GRPO would give them
- weights that have changed, and a server into which older ones were loaded behind the run's back

With --lap, a lap of the cycle on a few problems by `train.py`, whose server is killed once while it samples.
Its model must know the form of an answer already, as the base of a run of order-smollm2-cpu.toml does.
What is found goes to OUT/engine.json, and is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

ROOT = Path(__file__).parents[1]
LAP = (  # a lap of the cycle that only has to run
    "--base.steps=2 --base.batch=2 --base.lr=1e-6 --coldstart.problems=6 --coldstart.rounds=1 "
    "--coldstart.subset=8 --grpo.steps=2 --grpo.prompts=2 --grpo.samples=4 --world.problems=40 "
    "--world.hard_problems=20 --world.held_out=4 --world.validation=4 --eval.proofs=4 --eval.greedy=false "
    "--eval.pass_problems=1 --eval.demonstrations=4 --eval.shown=4 --autolabel.problems=2 "
    "--autolabel.n=2 --autolabel.m=1 --autolabel.k=1"
).split()


def compare(options, precision: str) -> dict:
    """Tokens, log-probs and weights of the engine beside the own sampler's and trainer's."""
    import torch

    from nanov2.distributed.ranks import Ranks
    from nanov2.domains.domain import open_domain
    from nanov2.hub.chat import load_model
    from nanov2.hub.engine import RolloutConfig, open_engine
    from nanov2.model.rollout import Sampling
    from nanov2.model.sampler import sample
    from nanov2.run.config import load_config

    config = load_config(ROOT / "configs/order-smollm2-cpu.toml", [f"pretrained.folder={options.model}"])
    model, tokenizer = load_model(options.model)
    model.set_precision(precision)
    if precision == "bf16":  # what is served is rounded; the own sampler computes with the same weights
        for p in model.parameters():
            p.data = p.data.bfloat16().float()
    domain = open_domain(config)
    language = domain.language(tokenizer)
    problems = domain.problems()["train"][: options.prompts]
    prompts = [language.ids(language.prove(p.problem)) for p in problems]
    rollout = RolloutConfig(
        options.engine, start=True, command=options.command, options=options.options, dtype=precision
    )
    begin = time.monotonic()
    log = options.out / f"server-{precision}.log"
    engine = open_engine(rollout, (), Ranks(), Path(options.model), log)
    found = {"prompts": len(prompts), "start_s": time.monotonic() - begin}

    def through(how: Sampling, n: int = 1) -> list:
        model.engine = engine
        try:
            return sample(model, tokenizer, prompts, n, how, 7)
        finally:
            model.engine = None

    def same(how: Sampling) -> int:
        theirs, ours = through(how), sample(model, tokenizer, prompts, 1, how, 7)
        differ = [_first_difference(a.ids, b.ids) for a, b in zip(theirs, ours, strict=True)]
        found.setdefault("first_differences", []).append([d for d in differ if d is not None])
        return sum(d is None for d in differ)

    try:
        begin = time.monotonic()
        engine.load(model)
        found["load_s"] = time.monotonic() - begin
        greedy = Sampling(0.0, options.tokens)
        found["greedy_equal"] = same(greedy)
        rollouts = through(Sampling(1.0, options.tokens), n=2)
        found |= _beside_the_trainer(model, rollouts)
        before = engine.version
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.01)
                p.data = p.data.bfloat16().float() if precision == "bf16" else p.data
        engine.changed()
        engine.load(model)
        found["greedy_equal_after_a_change"] = same(greedy)
        found["versions"] = [before, engine.version]
        old = Path(options.model).resolve()
        for path, body in engine.dialect.loading(old, "older"):  # behind the run's back
            engine.wire.post(engine.urls[0], path, body)
        found["greedy_equal_after_older_weights_were_refused"] = same(greedy)
    finally:
        engine.close()
    return found


def _first_difference(a: list[int], b: list[int]) -> int | None:
    if a == b:
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _beside_the_trainer(model, rollouts: list) -> dict:
    """Gaps of log-probs, and what GRPO would weigh the tokens with."""
    import torch

    from nanov2.model.packing import Completion, collate, make_packs
    from nanov2.rl.grpo import batch_logprobs

    gaps = []
    with torch.no_grad():
        for group in sorted({r.group for r in rollouts}):
            mine = [r for r in rollouts if r.group == group]
            packs = make_packs(
                mine[0].prompt, [Completion(r.ids, r.sampled, i) for i, r in enumerate(mine)], 4096
            )
            batch = collate(packs)
            sampled = torch.tensor([x for r in batch.rows.tolist() for x in mine[r].logprobs])
            gaps.append((batch_logprobs(model, batch, 1.0) - sampled)[batch.counted])
    gap = torch.cat(gaps)
    return {
        "tokens": len(gap),
        "largest_logprob_gap": gap.abs().max().item(),
        "mean_logprob_gap": gap.abs().mean().item(),
        "share_within_0.01": (gap.abs() <= 0.01).float().mean().item(),
        "mean_importance_weight": gap.exp().mean().item(),
    }


def lap(options) -> dict:
    """A lap by train.py, whose server is killed once, in 1B."""
    from nanov2.rl.logs import read_rows

    folder = options.out / "run"
    command = [
        *(sys.executable, str(ROOT / "train.py"), "--phase=flywheel"),
        *(f"--config={ROOT / 'configs/order-smollm2-cpu.toml'}", f"--dir={folder}", "--laps=1"),
        *(
            f"--pretrained.folder={options.model}",
            f"--rollout.engine={options.engine}",
            "--rollout.start=true",
        ),
        *(f"--rollout.command={options.command}", f"--rollout.options={options.options}", *LAP),
    ]
    killed: list[float] = []

    def kill() -> None:
        """The server, once 1B has made a step."""
        while not read_rows(folder / "verifier" / "metrics.jsonl"):
            time.sleep(0.5)
        for pid in _serving(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        killed.append(time.monotonic())

    threading.Thread(target=kill, daemon=True).start()
    begin = time.monotonic()
    with open(options.out / "lap.log", "wb") as log:
        status = subprocess.run(
            command, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": str(ROOT)}
        ).returncode
    rows = [row for path in sorted(folder.glob("*/metrics.jsonl")) for row in read_rows(path)]
    weights = [r["importance_weight"] for r in rows if "importance_weight" in r]
    return {
        "status": status,
        "seconds": time.monotonic() - begin,
        "killed": len(killed),
        "grpo_steps": len(weights),
        "importance_weights": [min(weights), max(weights)] if weights else [],
    }


def _serving(root: int) -> list[int]:
    """Processes below `root` that are the server: all below a keeper (nanov2/hub/keeper.py)."""
    children: dict[int, list[int]] = {}
    words: dict[int, str] = {}
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((proc / "stat").read_text().rpartition(")")[2].split()[1])
            words[int(proc.name)] = (proc / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):
            continue
        children.setdefault(parent, []).append(int(proc.name))

    def below(pid: int) -> list[int]:
        return [c for child in children.get(pid, []) for c in (child, *below(child))]

    return [c for pid in below(root) if "keeper.py" in words.get(pid, "") for c in below(pid)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a model folder")
    parser.add_argument("--engine", choices=("vllm", "sglang"), default="vllm")
    parser.add_argument("--command", default="", help="what starts the engine (rollout.command)")
    parser.add_argument(
        "--options", default="--max-model-len=2048", help="further options of it (rollout.options)"
    )
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--precision", nargs="*", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    parser.add_argument("--lap", action="store_true", help="also a lap whose server is killed")
    parser.add_argument("--out", type=Path, default=Path("engine-report"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict = {}
    work = [(precision, lambda p=precision: compare(options, p)) for precision in options.precision]
    for name, do in work + ([("lap", lambda: lap(options))] if options.lap else []):
        found[name] = do()
        print(f"{name}: {json.dumps(found[name], indent=1)}", flush=True)
        (options.out / "engine.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    from nanov2.distributed.startup import prepare

    prepare()
    main()
