"""Memory and time of a run before it is started: arithmetic on shapes and settings, no weights, no GPU.

    python train.py --dry-run --config=configs/qwen3-8b-8gpu.toml --ranks=8 --hardware=h100-80gb

Lengths are at their limits, so bytes are bounds. Seconds rest on the stated shares of a device's peak and are
worth a factor of two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nanov2.errors import InputError
from nanov2.method.config import JudgedConfig, SelfVerifyConfig
from nanov2.run.config import Config
from nanov2.run.costs import HARDWARE, Costs, Hardware, activation_bytes

PHASES = ("verifier", "meta", "verifier2", "generator", "selfverify")
TASKS = {"meta": "meta", "generator": "prove", "selfverify": "prove"}  # what a phase trains; others: verify
RUBRIC, PROBLEM, AGAIN = 350, 200, 100  # tokens of natural-language prompts beside what models wrote
WORLD_PROBLEM = 40
FREE = 0.1  # share of the memory kept free, for fragments and the allocator


@dataclass(frozen=True)
class PhasePlan:
    """One GRPO step of a phase. Tokens are over all ranks, in one round of sampling; bytes are one rank's."""

    prompt: int  # tokens of a prompt
    rows: int  # completions
    sampled: int  # tokens that the trained model samples
    trained: int  # tokens that go through the backward pass; a prompt counts once for each pack
    judged: int  # tokens that frozen judges read and write
    flops: float  # all of them
    held: float  # 16 B a parameter over the shards, 4 B for each frozen model; while sampling 4 B less
    sampling: float  # on top while sampling: sharded models whole in compute precision, keys and values
    training: float  # on top while training: gathered blocks, activations of a micro-batch
    ends: float  # in all before and after training, when models are whole in fp32, to measure and to save
    peak: float
    seconds: float  # of a step
    steps: int


@dataclass(frozen=True)
class Plan:
    params: int
    active: int  # that a token meets
    phases: dict[str, PhasePlan]


def make_plan(config: Config, ranks: int, per_node: int, hardware: Hardware) -> Plan:
    """The arithmetic of every GRPO phase of lap 1, on so many ranks."""
    costs = Costs(config, ranks, per_node, hardware)
    return Plan(costs.params, costs.active, {name: _phase(config, costs, name) for name in PHASES})


def _judges(config: Config, name: str) -> list[tuple[str, int]]:
    """(task, limit of an answer) of each frozen judge that a phase asks."""
    verifier, meta = ("verify", config.verifier.max_tokens), ("meta", config.meta.max_tokens)
    if name == "verifier2":
        return [meta] * config.verifier2.meta_gate
    if name == "selfverify" and config.selfverify.reward == "alpha_beta":
        return [verifier, meta]
    return [verifier] if name in ("generator", "selfverify") else []


def _phase(config: Config, x: Costs, name: str) -> PhasePlan:
    c, N, unit, ranks = x.c, x.params, x.unit, x.ranks
    g, task = config.phase(name), TASKS.get(name, "verify")
    natural = bool(config.pretrained.folder)
    rubric, problem = (RUBRIC, PROBLEM) if natural else (2, WORLD_PROBLEM)
    proof = (config.selfverify if name == "selfverify" else config.generator).max_tokens
    lengths = {"prove": rubric + problem, "verify": rubric + problem + proof}
    lengths["meta"] = lengths["verify"] + config.verifier.max_tokens
    prompt, rows, given = lengths[task], g.prompts * g.samples, AGAIN if natural else 1
    own_turns = g.max_turns if isinstance(g, SelfVerifyConfig) else 1
    own = g.max_tokens * own_turns + given * (own_turns - 1)  # tokens of a row, at most
    judges, judged = _judges(config, name), g if isinstance(g, JudgedConfig) else JudgedConfig()
    local = [] if judged.judge == "endpoint" else judges
    frozen = len(local) + bool(g.kl_coef)  # and the reference
    mine = math.ceil(g.prompts / ranks)  # groups of the rank that has most; the others wait for it

    # Tokens. A pack holds a prompt and as many completions as fit, a micro-batch at least one pack.
    packs = math.ceil(g.samples / max(1, (max(g.pack_tokens, 2 * prompt) - prompt) // own))
    own_trained = mine * (packs * prompt + g.samples * own)
    tokens = min(max(g.micro_tokens, prompt + own), own_trained)

    # Bytes.
    copies = unit * N * (1 + len(local)) if x.sharded else 0
    turns = config.eval.rounds * (1 if natural else 2) if name == "selfverify" else 1
    known = config.eval.proofs if natural or task != "prove" else config.world.held_out * config.eval.samples
    items = math.ceil(known / ranks)

    def measuring(unit: int) -> float:  # each held-out item once, and judged
        asked = [(items, judged.judge_samples, lengths[t], limit) for t, limit in local if task == "prove"]
        asked.append((items, 1, prompt, (g.max_tokens + given) * turns))
        return max(x.sampler(unit, g.batch_rows, *a) for a in asked)

    rollouts = [(mine, g.samples, prompt, own)]
    rollouts += [(mine * g.samples, judged.judge_samples, lengths[t], limit) for t, limit in local]
    sampling = copies + max(measuring(unit), *(x.sampler(unit, g.batch_rows, *a) for a in rollouts))
    held = (16 + 4 * frozen) * N / x.over
    scores = 4 * c.n_heads * tokens**2 if x.dense(unit) else 0
    kept = activation_bytes(c, unit) * tokens + scores
    # All blocks', or each block's input and one block made again; and two more sorts of scores, going back.
    kept = (kept + unit * c.dim * tokens * c.n_layers if g.checkpointing else kept * c.n_layers) + 2 * scores
    gathered = unit * (2 * x.block + x.root) + (unit + 4) * max(x.block, x.root) if x.sharded else 4 * x.root
    # Afterwards: AdamW's roots on a GPU; the message in which whole models' gradients are summed.
    after = 4 * N / x.over * (x.hardware.gpu or (ranks > 1 and not x.sharded))
    training = max(kept + gathered, after)
    whole = 4 * N * (1 + frozen)
    ends = whole + max(measuring(4), (12 + 4 * frozen) * N / x.over if x.sharded else 0)
    peak = max(held + training, held - 4 * N / x.over + sampling, ends)

    # Time, of the rank that has most.
    passes = (
        g.epochs * (4 if g.checkpointing else 3) + (g.epochs * g.minibatches > 1) + g.epochs * bool(g.kl_coef)
    )
    seen = tokens if x.dense(unit) else prompt + own / 2  # keys of a completion's token
    forward = 2 * x.active * own_trained + x.attention_flops(own_trained, seen)
    read = 2 * x.active * mine * prompt + x.attention_flops(mine * prompt, prompt / 2)
    seconds = x.decode(g.batch_rows, *rollouts[0])
    for t, limit in local:
        questions = mine * g.samples
        read += 2 * x.active * questions * lengths[t] + x.attention_flops(
            questions * lengths[t], lengths[t] / 2
        )
        seconds += x.decode(g.batch_rows, questions, judged.judge_samples, lengths[t], limit)
    flops = (passes * forward + read) * g.prompts / mine
    flops += 2 * x.active * rows * (own + sum(judged.judge_samples * limit for _, limit in local))
    return PhasePlan(
        prompt=prompt,
        rows=rows,
        sampled=rows * own,
        trained=g.prompts * (packs * prompt + g.samples * own),
        judged=sum(rows * (lengths[t] + judged.judge_samples * limit) for t, limit in judges),
        flops=flops,
        held=held,
        sampling=sampling,
        training=training,
        ends=ends,
        peak=peak,
        seconds=seconds + (passes * forward + read) / x.rate(),
        steps=g.steps,
    )


def describe(plan: Plan, config: Config, ranks: int, name: str, hardware: Hardware) -> str:
    """The plan as a table, with a word on whether it fits."""
    share = f", {plan.active / 1e9:,.3g} billion active for a token" if plan.active < plan.params else ""
    lines = [
        f"{plan.params:,} parameters{share}; {ranks} rank(s), shard {config.parallel.shard}, {name}",
        "a step:     prompt   rows     sampled     trained      judged   FLOPs |"
        " GB: held +sampling or +training   ends   peak | s a step  hours",
    ]
    for phase, p in plan.phases.items():
        counts = f"{p.prompt:7,} {p.rows:6,} {p.sampled:11,} {p.trained:11,} {p.judged:11,} {p.flops:7.1e}"
        gb = f"{p.held / 1e9:9.1f} {p.sampling / 1e9:9.1f} {p.training / 1e9:12.1f}"
        gb += f" {p.ends / 1e9:6.1f} {p.peak / 1e9:6.1f}"
        lines.append(f"{phase:10} {counts} |{gb} | {p.seconds:8,.0f} {p.seconds * p.steps / 3600:6,.1f}")
    room, phases = (1 - FREE) * hardware.memory, plan.phases.values()
    worst = max(p.peak for p in phases)
    fits = "fits into" if worst < room else "does NOT fit into"
    lines.append(f"peak {worst / 1e9:,.1f} GB {fits} {hardware.memory / 1e9:,.0f} GB (a tenth kept free)")
    if (weights := 4 * plan.params) > room:
        lines.append(
            f"the weights alone, {weights / 1e9:,.0f} GB in fp32, {weights / 2e9:,.0f} in bf16, are whole on "
            f"each rank while it samples: that takes tensor or expert parallelism over "
            f"{math.ceil(weights / room)} ranks or more, which nanov2 does not have, or an endpoint that "
            "samples with the weights of each step"
        )
    if (held := max(p.held for p in phases)) > room:
        lines.append(f"what is held takes {math.ceil(held / room)} times the ranks that share it")
    if max(max(p.held + p.sampling, p.ends) for p in phases) > room:
        lines.append('sampling, ends: lower batch_rows or max_tokens, or judge = "endpoint", take less')
    if max(p.held + p.training for p in phases) > room:
        lines.append("training: lower micro_tokens, or checkpointing = true, take less")
    half = config.parallel.precision != "fp32" and config.parallel.shard != "none" and ranks > 1
    peak = hardware.flops if half else hardware.fp32
    lines.append(
        "tokens at their limits over all ranks, one round of sampling (refills add to it); GB on one rank; "
        f"seconds without measuring, from {hardware.compute_share:.0%} of {peak:.3g} FLOP/s and "
        f"{hardware.bandwidth_share:.0%} of {hardware.bandwidth:.3g} bytes/s: assumptions"
        + "; with flash-attn installed"
        * (half and hardware.gpu)
    )
    return "\n".join(lines)


def dry_run(config: Config, ranks: int, hardware: str) -> str:
    """What `train.py --dry-run` prints."""
    if hardware not in HARDWARE:
        raise InputError(f"unknown hardware {hardware!r}; one of {', '.join(HARDWARE)}")
    if ranks < 1:
        raise InputError(f"--ranks must be at least 1, found {ranks}")
    plan = make_plan(config, ranks, min(ranks, 8), HARDWARE[hardware])
    return describe(plan, config, ranks, hardware, HARDWARE[hardware])
