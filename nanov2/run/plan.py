"""Memory and time of a run before it is started: arithmetic on shapes and settings, no weights, no GPU.

    python train.py --dry-run --config=configs/qwen3-8b-8gpu.toml --ranks=8 --hardware=h100-80gb

Lengths are at their limits, so bytes are bounds. Seconds rest on the stated shares of a device's peak and are
worth a factor of two.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch

from nanov2.distributed.startup import cores
from nanov2.errors import InputError
from nanov2.method.config import JudgedConfig, LapSelfVerifyConfig, LapVerifier2Config, ProverConfig
from nanov2.rl.config import GRPOConfig
from nanov2.run.config import Config
from nanov2.run.costs import HARDWARE, Costs, Hardware, activation_bytes
from nanov2.run.phases import CYCLE, PHASES
from nanov2.run.start import memory_of

TRAINED = [phase.name for phase in CYCLE if phase.trains]
RUBRIC, PROBLEM, AGAIN = 350, 200, 100  # tokens of a chat model's prompts beside what models wrote
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

    @property
    def hours(self) -> float:
        return self.seconds * self.steps / 3600


@dataclass(frozen=True)
class Plan:
    params: int
    active: int  # that a token meets
    phases: dict[str, PhasePlan]  # of lap 1
    hours: float  # of the GRPO phases of all laps


def make_plan(config: Config, ranks: int, per_node: int, hardware: Hardware) -> Plan:
    """The arithmetic of every GRPO phase, on so many ranks."""
    costs = Costs(config, ranks, per_node, hardware)
    phases = {name: plan_phase(config, costs, name) for name in TRAINED}
    later = [plan_phase(config, costs, name, 2).hours for name in TRAINED if PHASES[name].laps == "all"]
    hours = sum(p.hours for p in phases.values()) + (config.laps - 1) * sum(later)
    return Plan(costs.params, costs.active, phases, hours)


@dataclass(frozen=True)
class Call:
    """One call of the sampler on a rank: `n` completions of `own` tokens for each of `prompts` prompts."""

    prompts: int
    n: int
    prompt: int  # tokens of a prompt
    own: int


@dataclass(frozen=True)
class Work:
    """What the rank that has most to do does in one step of a phase; the others wait for it."""

    settings: GRPOConfig
    groups: int
    prompt: int  # tokens of a prompt
    own: int  # and of a row, at most
    packs: int  # of each group
    asked: list[tuple[int, int]]  # (question, answer) in tokens of each frozen judge, wherever it is
    judge_samples: int
    judges: list[Call]  # of the frozen judges that this rank holds
    measured: list[Call]  # held-out items, each once, and their judgements

    @property
    def rows(self) -> int:
        return self.groups * self.settings.samples

    @property
    def rollouts(self) -> Call:
        return Call(self.groups, self.settings.samples, self.prompt, self.own)

    @property
    def trained(self) -> int:
        """Tokens that go through the backward pass."""
        return self.groups * (self.packs * self.prompt + self.settings.samples * self.own)

    @property
    def micro(self) -> int:
        """Tokens of a micro-batch, which holds at least one completion."""
        return min(max(self.settings.micro_tokens, self.prompt + self.own), self.trained)

    @property
    def frozen(self) -> int:
        """Models held beside the trained one: judges, and the reference of the KL."""
        return len(self.judges) + bool(self.settings.kl_coef)


def plan_phase(config: Config, x: Costs, name: str, lap: int = 1) -> PhasePlan:
    work = work_of(config, x.ranks, name, lap)
    g, rows = work.settings, work.settings.prompts * work.settings.samples
    held, sampling, training = held_bytes(work, x), sampling_bytes(work, x), training_bytes(work, x)
    ends = end_bytes(work, x)
    computed = compute_flops(work, x)
    answers = sum(work.judge_samples * call.own for call in work.judges)
    return PhasePlan(
        prompt=work.prompt,
        rows=rows,
        sampled=rows * work.own,
        trained=g.prompts * (work.packs * work.prompt + g.samples * work.own),
        judged=sum(rows * (question + work.judge_samples * answer) for question, answer in work.asked),
        flops=computed * g.prompts / work.groups + 2 * x.active * rows * (work.own + answers),
        held=held,
        sampling=sampling,
        training=training,
        ends=ends,
        peak=max(held + training, held - 4 * x.params / x.over + sampling, ends),
        seconds=decode_seconds(work, x) + computed / x.rate(),
        steps=g.steps,
    )


def work_of(config: Config, ranks: int, name: str, lap: int) -> Work:
    """What a phase's settings come to, in prompts, rows and tokens, on the rank that has most."""
    g, task, chat = config.phase(name, lap), PHASES[name].trains, bool(config.pretrained.folder)
    rubric, problem, given = (RUBRIC, PROBLEM, AGAIN) if chat else (2, WORLD_PROBLEM, 1)
    proof = (g if name == "selfverify" else config.generator).max_tokens
    questions = {"prove": rubric + problem, "verify": rubric + problem + proof}
    questions["meta"] = questions["verify"] + config.verifier.max_tokens
    answers = {"verify": config.verifier.max_tokens, "meta": config.meta.max_tokens}
    asked = [(questions[judge], answers[judge]) for judge in _judges(g, name)]

    turns = g.max_turns if isinstance(g, LapSelfVerifyConfig) else 1
    prompt, own = questions[task], g.max_tokens * turns + given * (turns - 1)
    groups = math.ceil(g.prompts / ranks)
    samples = g.judge_samples if isinstance(g, JudgedConfig) else 1
    local = [] if isinstance(g, JudgedConfig) and g.judge == "endpoint" else asked
    judges = [Call(groups * g.samples, samples, question, answer) for question, answer in local]

    known = config.eval.proofs if chat or task != "prove" else config.world.held_out * config.eval.samples
    items = math.ceil(known / ranks)
    rounds = config.eval.rounds * (1 if chat else 2) if name == "selfverify" else 1
    measured = [Call(items, 1, prompt, (g.max_tokens + given) * rounds)]
    if task == "prove":
        measured += [Call(items, samples, question, answer) for question, answer in local]
    # A pack holds a prompt and as many completions as fit.
    fit = max(1, (max(g.pack_tokens, 2 * prompt) - prompt) // own)
    return Work(g, groups, prompt, own, math.ceil(g.samples / fit), asked, samples, judges, measured)


def _judges(g: GRPOConfig, name: str) -> list[str]:
    """The task of each frozen judge that a phase asks."""
    if isinstance(g, LapVerifier2Config):
        return ["meta"] * g.meta_gate
    if not isinstance(g, ProverConfig):
        return []
    weighs = g.judge_rule == "gate" or (isinstance(g, LapSelfVerifyConfig) and g.reward == "alpha_beta")
    return ["verify", "meta"] if weighs else ["verify"]


def held_bytes(work: Work, x: Costs) -> float:
    """Weights, gradients and AdamW's moments over the shards, and each frozen model."""
    return (16 + 4 * work.frozen) * x.params / x.over


def sampling_bytes(work: Work, x: Costs) -> float:
    """On top of what is held, without gradients: whole copies of sharded models, and the largest call."""
    copies = x.unit * x.params * (1 + len(work.judges)) if x.sharded else 0
    return copies + max(_largest([work.rollouts, *work.judges], work, x, x.unit), _measuring(work, x, x.unit))


def _largest(calls: list[Call], work: Work, x: Costs, unit: int) -> float:
    rows = work.settings.batch_rows
    return max(x.sampler(unit, rows, call.prompts, call.n, call.prompt, call.own) for call in calls)


def _measuring(work: Work, x: Costs, unit: int) -> float:
    return _largest(work.measured, work, x, unit)


def training_bytes(work: Work, x: Costs) -> float:
    """On top of what is held: activations of a micro-batch and gathered blocks, or what the step takes."""
    c, unit, tokens = x.c, x.unit, work.micro
    scores = 4 * c.n_heads * tokens**2 if x.dense(unit) else 0
    block = activation_bytes(c, unit) * tokens + scores
    # All blocks', or each block's input and one block made again; and two more sorts of scores, going back.
    again = block + unit * c.dim * tokens * c.n_layers
    kept = (again if work.settings.checkpointing else block * c.n_layers) + 2 * scores
    gathered = unit * (2 * x.block + x.root) + (unit + 4) * max(x.block, x.root) if x.sharded else 4 * x.root
    # Afterwards: AdamW's roots on a GPU; the message in which whole models' gradients are summed.
    step = 4 * x.params / x.over * (x.hardware.gpu or (x.ranks > 1 and not x.sharded))
    return max(kept + gathered, step)


def end_bytes(work: Work, x: Costs) -> float:
    """In all before and after training, when models are whole in fp32, to measure and to save."""
    shards = (12 + 4 * work.frozen) * x.params / x.over if x.sharded else 0
    return 4 * x.params * (1 + work.frozen) + max(_measuring(work, x, 4), shards)


def compute_flops(work: Work, x: Costs) -> float:
    """Of training, and of reading prompts and questions: what a device does at its rate."""
    g = work.settings
    passes = g.epochs * (4 if g.checkpointing else 3)
    passes += (g.epochs * g.minibatches > 1) + g.epochs * bool(g.kl_coef)  # old and reference log-probs
    seen = work.micro if x.dense(x.unit) else work.prompt + work.own / 2  # keys of a completion's token
    forward = 2 * x.active * work.trained + x.attention_flops(work.trained, seen)
    reads = [
        (work.groups * work.prompt, work.prompt),
        *((c.prompts * c.prompt, c.prompt) for c in work.judges),
    ]
    read = sum(2 * x.active * tokens + x.attention_flops(tokens, length / 2) for tokens, length in reads)
    return passes * forward + read


def decode_seconds(work: Work, x: Costs) -> float:
    calls, rows = [work.rollouts, *work.judges], work.settings.batch_rows
    return sum(x.decode(rows, call.prompts, call.n, call.prompt, call.own) for call in calls)


def describe(plan: Plan, config: Config, ranks: int, name: str, hardware: Hardware) -> str:
    """The plan as a table, with a word on whether it fits."""
    share = f", {plan.active / 1e9:,.3g} billion active for a token" if plan.active < plan.params else ""
    lines = [
        f"{plan.params:,} parameters{share}; {ranks} rank(s), shard {config.parallel.shard}, {name}",
        "            prompt  rows     sampled     trained      judged         |"
        "   held +sampling or +training   ends   peak |   seconds       of   hours",
        "a step of   tokens           tokens      tokens      tokens   FLOPs |"
        "     GB        GB           GB     GB     GB |    a step    steps",
    ]
    for phase, p in plan.phases.items():
        counts = f"{p.prompt:7,} {p.rows:5,} {p.sampled:11,} {p.trained:11,} {p.judged:11,} {p.flops:7.1e}"
        gb = f"{p.held / 1e9:7.1f} {p.sampling / 1e9:9.1f} {p.training / 1e9:12.1f}"
        gb += f" {p.ends / 1e9:6.1f} {p.peak / 1e9:6.1f}"
        lines.append(f"{phase:10}  {counts} |{gb} | {p.seconds:9,.3g} {p.steps:8,} {p.hours:7,.2f}")
    laps = f"{config.laps} lap{'s' * (config.laps > 1)}"
    lines.append(
        f"all GRPO phases of {laps}: {plan.hours:,.2f} hours, without the base, measuring and labels"
    )
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
    if hardware not in (*HARDWARE, "this"):
        raise InputError(f"unknown hardware {hardware!r}; one of {', '.join(HARDWARE)}, this")
    if ranks < 1:
        raise InputError(f"--ranks must be at least 1, found {ranks}")
    name, device = this_machine(ranks) if hardware == "this" else (hardware, HARDWARE[hardware])
    plan = make_plan(config, ranks, min(ranks, 8), device)
    return describe(plan, config, ranks, name, device)


def this_machine(ranks: int) -> tuple[str, Hardware]:
    """This machine's GPU, or its cores and memory shared among ranks; peaks of unknown GPUs are an A100's."""
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        known = [h for name, h in HARDWARE.items() if name.split("-")[0] in gpu.name.lower()]
        peaks = known[0] if known else HARDWARE["a100-80gb"]
        return gpu.name, dataclasses.replace(peaks, memory=float(gpu.total_memory))
    core, n = HARDWARE["cpu-core"], cores() / ranks
    memory = memory_of(torch.device("cpu")) / ranks
    share = dataclasses.replace(core, flops=core.flops * n, fp32=core.fp32 * n, memory=memory)
    return f"this machine ({cores()} CPU cores)", share
