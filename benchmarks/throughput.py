"""Speed and memory of whole GRPO steps and of sampling, beside TRL and transformers, in one run.

    python benchmarks/throughput.py                  # small model, all parts, about ten minutes
    python benchmarks/throughput.py --smollm2        # also a model of SmolLM2-135M's shape (17 GB for TRL)
    python benchmarks/throughput.py --plot           # cost over group size and prompt length → throughput.png

Needs trl, transformers and datasets for the peers, matplotlib for the plot; says what is missing and
measures the rest. Every measurement is a process of its own, on one thread, with this project's allocator
settings for all; ours and the peer's take turns, and a figure is the median of the rounds. Both work on the
same architecture at the same size with random weights and random rewards, and always sample exactly the
stated number of new tokens. A GRPO step is one rollout and one optimiser step, no KL, no refill. The first
step of each process warms up and is left out. Each side is measured in fp32 and in bf16 (TRL: by autocast;
transformers: weights in bf16), and the ratio of the fastest is given beside those at equal precision.

"of the peak" is the share of the core's measured rate of products, in the same precision, that the matrix
products of our step would take alone: 2 FLOPs a weight and token forwards, 4 backwards, attention left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

SHAPES = {  # name: model, and what a GRPO step and a sampling pass take
    "small": {
        "model": dict(vocab_size=64, dim=128, n_layers=4, n_heads=4, n_kv_heads=4, ffn_dim=352),
        "grpo": dict(prompts=8, samples=16, length=128, new=64, steps=5),
        "sample": dict(prompts=8, samples=16, length=128, new=64, steps=5),
        "base": dict(prompts=16, samples=1, length=24, new=72, steps=12),
    },
    "smollm2": {  # the published config.json of HuggingFaceTB/SmolLM2-135M
        "model": dict(
            vocab_size=49152,
            dim=576,
            n_layers=30,
            n_heads=9,
            n_kv_heads=3,
            ffn_dim=1536,
            rope_theta=100_000.0,
            tie_embeddings=True,
        ),
        "grpo": dict(prompts=2, samples=8, length=256, new=64, steps=2),
        "sample": dict(prompts=2, samples=8, length=256, new=64, steps=2),
    },
}


class Tokens:
    """The few ids that the sampler needs; no token ends a row, so every row has its full length."""

    pad, end, task = 0, -1, {}


class DrawnRewards:
    """A task of one turn, whose items are prompts and whose rewards are drawn."""

    max_turns = max_given = 1

    def prompt(self, item):
        return item

    def next_turn(self, rollout):
        return None

    def rewards(self, items, rollouts):
        from nanov2.rl.task import Rewards

        return Rewards([random.random() for _ in rollouts])


def prompts_of(vocab_size: int, count: int, length: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(5, vocab_size) for _ in range(length)] for _ in range(count)]


def our_model(shape: dict, precision: str):
    import torch

    from nanov2.model.decoder import Model, ModelConfig

    model = Model(ModelConfig(embed_conv=0, **shape)).init_weights(torch.Generator().manual_seed(0))
    model.set_precision(precision)
    return model


def products(shape: dict, what: str, sizes: dict) -> float:
    """FLOPs of the matrix products of one of our steps."""
    dim, kv = shape["dim"], shape["dim"] * shape["n_kv_heads"] // shape["n_heads"]
    block = shape["n_layers"] * (2 * dim * dim + 2 * dim * kv + 3 * dim * shape["ffn_dim"])
    new = sizes["prompts"] * sizes["samples"] * sizes["new"]
    once = 2 * (block * (sizes["prompts"] * sizes["length"] + new) + dim * shape["vocab_size"] * new)
    return once * {"sample": 1, "base": 3, "grpo": 4}[what]


def ours_base(shape: dict, precision: str, prompts: int, samples: int, length: int, new: int, steps: int):
    """Supervised steps on documents."""
    from nanov2.model.packing import Completion, Pack
    from nanov2.rl.optimizer import make_optimizer
    from nanov2.rl.trainer import counted_tokens, supervised_loss

    model = our_model(shape, precision)
    optimizer = make_optimizer(model, 1e-6, 0.0)
    texts = prompts_of(shape["vocab_size"], prompts * samples, length + new)
    packs = [Pack(ids[:length], [Completion(ids[length:], [True] * new)]) for ids in texts]
    for _ in range(steps):
        supervised_loss(model, packs, counted_tokens(packs), backward=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def product_rate(precision: str, side: int = 1024) -> float:
    """FLOP/s of this process's products of square matrices, at their best of several."""
    import torch

    torch.set_num_threads(1)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b, best = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype), float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        torch.nn.functional.linear(a, b)
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best


def ours_grpo(
    shape: dict,
    precision: str,
    prompts: int,
    samples: int,
    length: int,
    new: int,
    steps: int,
    alone: bool = False,
):
    """Yields once per step. `alone`: every completion samples and trains with a copy of its prompt."""
    from nanov2.distributed.ranks import Ranks
    from nanov2.model.rollout import Sampling
    from nanov2.model.sampler import sample
    from nanov2.rl.config import GRPOConfig
    from nanov2.rl.grpo import Clock, rollout_groups, train_on_groups
    from nanov2.rl.optimizer import make_optimizer
    from nanov2.rl.task import Group

    model, task, ranks = our_model(shape, precision), DrawnRewards(), Ranks()
    ranks.use("none", precision)
    big = shape["dim"] > 128
    config = GRPOConfig(
        prompts=prompts, samples=samples, max_tokens=new, refill=0, micro_tokens=2048 if big else 4096
    )
    optimizer = make_optimizer(model, 1e-6, 0.0)
    for step in range(steps):
        items = prompts_of(shape["vocab_size"], prompts, length)
        if alone or samples == 1:  # groups of one have no variance, and would be left out of the training
            copies = [p for p in items for _ in range(samples)]
            rows = sample(model, Tokens(), copies, 1, Sampling(1.0, new), step)
            groups = [Group(r.prompt, [r], [random.random()]) for r in rows]
        else:
            groups, _ = rollout_groups(
                model, Tokens(), task, lambda n, i=items: i, config, ranks, step, Clock()
            )
        train_on_groups(model, optimizer, groups, config, ranks, step)
        yield


def ours_sample(shape: dict, precision: str, prompts: int, samples: int, length: int, new: int, steps: int):
    from nanov2.model.rollout import Sampling
    from nanov2.model.sampler import sample

    model = our_model(shape, precision)
    for step in range(steps):
        rows = sample(
            model,
            Tokens(),
            prompts_of(shape["vocab_size"], prompts, length),
            samples,
            Sampling(1.0, new),
            step,
        )
        assert sum(len(r.ids) for r in rows) == prompts * samples * new
        yield


def peer_model(shape: dict):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape["vocab_size"],
            hidden_size=shape["dim"],
            num_hidden_layers=shape["n_layers"],
            num_attention_heads=shape["n_heads"],
            num_key_value_heads=shape["n_kv_heads"],
            intermediate_size=shape["ffn_dim"],
            tie_word_embeddings=shape.get("tie_embeddings", False),
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            max_position_embeddings=2048,
        )
    ).float()


def transformers_sample(
    shape: dict, precision: str, prompts: int, samples: int, length: int, new: int, steps: int
):
    import torch

    model = peer_model(shape).eval()
    model = model.bfloat16() if precision == "bf16" else model
    for _ in range(steps):
        ids = torch.tensor(prompts_of(shape["vocab_size"], prompts, length)).repeat_interleave(samples, 0)
        with torch.no_grad():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                min_new_tokens=new,
                max_new_tokens=new,
            )
        assert out.shape == (prompts * samples, length + new)
        yield


def trl_grpo(shape: dict, precision: str, prompts: int, samples: int, length: int, new: int, steps: int):
    """TRL's trainer runs its own loop: yields the seconds of its steps."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    vocab = {w: i for i, w in enumerate(["<pad>", "<bos>", "<eos>", "<unk>"])}
    vocab |= {f"w{i}": i for i in range(4, shape["vocab_size"])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    texts = [" ".join(f"w{i}" for i in p) for p in prompts_of(shape["vocab_size"], prompts * steps, length)]
    marks = []

    class Timer(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            marks.append([time.perf_counter()])

        def on_step_end(self, *args, **kwargs):
            marks[-1].append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=peer_model(shape),
            reward_funcs=lambda completions, **_: [random.random() for _ in completions],
            args=GRPOConfig(
                output_dir=folder,
                use_cpu=True,
                bf16=precision == "bf16",
                per_device_train_batch_size=prompts * samples,
                num_generations=samples,
                max_completion_length=new,
                generation_kwargs={"min_new_tokens": new},
                max_steps=steps,
                beta=0.0,
                learning_rate=1e-6,
                gradient_checkpointing=False,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": texts}),
            processing_class=tokenizer,
            callbacks=[Timer()],
        )
        trainer.train()
    yield from (end - start for start, end in marks)


WORKERS = {
    ("nanov2", "base"): ours_base,
    ("nanov2", "grpo"): ours_grpo,
    ("TRL", "grpo"): trl_grpo,
    ("nanov2", "sample"): ours_sample,
    ("transformers", "sample"): transformers_sample,
}


def work(who: str, what: str, shape: str, precision: str, sizes: dict) -> None:
    """One measurement, in this process: seconds a step (median, without the first), peak memory, and the
    rate of products that the core reaches."""
    import torch

    torch.set_num_threads(1)
    random.seed(0)
    seconds, last = [], time.perf_counter()
    for given in WORKERS[who, what](SHAPES[shape]["model"], precision, **sizes):
        now = time.perf_counter()
        seconds.append(given if given is not None else now - last)
        last = now
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = product_rate(precision) if who == "nanov2" else 0.0
    if os.environ.get("RANK", "0") == "0":
        found = {"seconds": statistics.median(seconds[1:] or seconds), "mb": peak, "rate": rate}
        print("RESULT " + json.dumps(found))


def measure(who: str, what: str, shape: str, sizes: dict, precision: str = "fp32", ranks: int = 1) -> dict:
    """Runs `work` in a new process, or in one for each rank."""
    environment = (
        os.environ
        | {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(8 << 30), "MALLOC_TOP_PAD_": str(256 << 20)}
        | {"OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    )
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    asked = (who, what, shape, precision, json.dumps(sizes))
    command = [sys.executable, *torchrun, __file__, "--work", *asked]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    raise SystemExit(f"{who} {what} {shape} failed:\n{done.stderr[-2000:]}")


PEERS = {"base": ("", ""), "grpo": ("TRL", "trl"), "sample": ("transformers", "transformers")}


def compare(shape: str, rounds: int) -> None:
    print(f"\n{shape}: {SHAPES[shape]['model']}")
    print("| work | | precision | s a step | new tokens/s | peak MB | of the peak |")
    print("|---|---|---|---|---|---|---|")
    for what in [w for w in PEERS if w in SHAPES[shape]]:
        sizes, (peer, module) = SHAPES[shape][what], PEERS[what]
        if module and importlib.util.find_spec(module) is None:
            print(f"{module} is not installed: nothing to compare {what} with (pip install trl datasets)")
            peer = ""
        sides = [(name, kind) for name in ("nanov2", peer) if name for kind in ("fp32", "bf16")]
        found: dict[tuple[str, str], list[dict]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side in sides:
                found[side].append(measure(side[0], what, shape, sizes, side[1]))
        tokens = sizes["prompts"] * sizes["samples"] * sizes["new"]
        median = {side: statistics.median(f["seconds"] for f in rows) for side, rows in found.items()}
        for (name, kind), rows in found.items():
            s, mb = median[name, kind], statistics.median(f["mb"] for f in rows)
            needs = products(SHAPES[shape]["model"], what, sizes)
            shares = [needs / f["rate"] / f["seconds"] for f in rows if f["rate"]]
            share = f"{statistics.median(shares):.0%}" if shares else ""
            print(
                f"| {what} | {name} | {kind} | {s:.3f} | {tokens / s:,.0f} | {mb:,.0f} | {share} |",
                flush=True,
            )
        if peer:
            best = {name: min(("fp32", "bf16"), key=lambda k: median[name, k]) for name in ("nanov2", peer)}
            for ours, theirs in (("fp32", "fp32"), ("bf16", "bf16"), (best["nanov2"], best[peer])):
                pairs = zip(found["nanov2", ours], found[peer, theirs], strict=True)
                ratios = sorted(b["seconds"] / a["seconds"] for a, b in pairs)
                spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
                print(f"{what}: {peer} in {theirs} takes {spread} times ours in {ours}", flush=True)


def compare_ranks(rounds: int) -> None:
    """The same GRPO step on one rank and on two: each computes half of the groups."""
    sizes = SHAPES["small"]["grpo"]
    pairs = [
        [measure("nanov2", "grpo", "small", sizes, ranks=n)["seconds"] for n in (1, 2)] for _ in range(rounds)
    ]
    ratios = sorted(one / two for one, two in pairs)
    print(
        f"\ntwo ranks against one: {statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}) times"
    )


def plot(path: Path) -> None:
    """Seconds of our GRPO step over group size and over prompt length, with shared prompts and without."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    sweeps = (
        (
            "completions per prompt",
            [1, 2, 4, 8, 16, 32, 64],
            lambda x: dict(prompts=4, samples=x, length=512),
        ),
        ("prompt length", [64, 128, 256, 512, 1024, 2048], lambda x: dict(prompts=4, samples=8, length=x)),
    )
    for axis, (label, values, sizes) in zip(axes, sweeps, strict=True):
        for name, alone in (("prompt shared", False), ("every completion with its own prompt", True)):
            line = []
            for x in values:
                s = sizes(x) | {"new": 32, "steps": 3}
                if alone:
                    s |= {"alone": True}
                line.append(measure("nanov2", "grpo", "small", s)["seconds"])
                print(f"{label} {x}: {name} {line[-1]:.3f} s", flush=True)
            axis.plot(values, line, marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds a GRPO step")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smollm2", action="store_true", help="also a model of SmolLM2-135M's shape")
    parser.add_argument("--plot", action="store_true", help="only the plot over group size and prompt length")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        *asked, sizes = args.work
        work(*asked, json.loads(sizes))
    elif args.plot:
        plot(Path(__file__).with_name("throughput.png"))
    else:
        compare("small", args.rounds)
        compare_ranks(args.rounds)
        if args.smollm2:
            compare("smollm2", max(1, args.rounds - 2))


if __name__ == "__main__":
    main()
