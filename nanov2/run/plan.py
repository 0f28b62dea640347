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
from nanov2.run.costs import (
    BYTES,
    HARDWARE,
    TAKES,
    Costs,
    Hardware,
    activation_bytes,
    cache_bytes,
    precision_of,
    share_of,
)
from nanov2.run.phases import CYCLE, PHASES
from nanov2.run.start import check_lora, memory_of

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
    held: float  # the model in training with gradients and moments, frozen models; gradients not in sampling
    sampling: float  # on top while sampling: sharded models whole in compute precision, keys and values
    training: float  # on top while training: gathered blocks, activations of a micro-batch
    ends: float  # in all before and after training, when models are whole, to measure
    servers: float  # of rollout engines that the run starts on the same device
    peak: float  # of all
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
    served: list[Call]  # what engines sample: rollouts, and answers of judges that are served
    asks: bool  # whether a judge is served
    measured: list[Call]  # held-out items, each once, and their judgements, as far as this rank samples them

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
    ends, servers = end_bytes(work, x), x.servers(work.asks) * x.server()
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
        servers=servers,
        peak=max(held + training, held - 4 * x.trained / x.over + sampling, ends) + servers,
        seconds=decode_seconds(work, x) + computed / x.rate() + adapter_seconds(work, x),
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
    judge = g.judge if isinstance(g, JudgedConfig) else "run"
    local = asked if judge == "run" else []
    own_engine = config.rollout.engine == "own"

    def judged(prompts: int) -> list[Call]:
        return [Call(prompts, samples, question, answer) for question, answer in asked]

    rollouts = Call(groups, g.samples, prompt, own)
    served = [] if own_engine else [rollouts]
    served += judged(groups * g.samples) if judge == "engine" else []

    known = config.eval.proofs if chat or task != "prove" else config.world.held_out * config.eval.samples
    items = math.ceil(known / ranks)
    rounds = config.eval.rounds * (1 if chat else 2) if name == "selfverify" else 1
    measured = [Call(items, 1, prompt, (g.max_tokens + given) * rounds)] if own_engine else []
    if task == "prove" and local:
        measured += judged(items)
    # A pack holds a prompt and as many completions as fit.
    fit = max(1, (max(g.pack_tokens, 2 * prompt) - prompt) // own)
    packs, judges = math.ceil(g.samples / fit), judged(groups * g.samples) if local else []
    asks = judge == "engine" and bool(asked)
    return Work(g, groups, prompt, own, packs, asked, samples, judges, served, asks, measured)


def _judges(g: GRPOConfig, name: str) -> list[str]:
    """The task of each frozen judge that a phase asks."""
    if isinstance(g, LapVerifier2Config):
        return ["meta"] * g.meta_gate
    if not isinstance(g, ProverConfig):
        return []
    weighs = g.judge_rule == "gate" or (isinstance(g, LapSelfVerifyConfig) and g.reward == "alpha_beta")
    return ["verify", "meta"] if weighs else ["verify"]


def held_bytes(work: Work, x: Costs) -> float:
    """Weights, gradients and moments over the shards, and each frozen model."""
    return x.state(work.settings.optimizer) + x.whole() * work.frozen


def sampling_bytes(work: Work, x: Costs) -> float:
    """On top of what is held, without gradients: whole copies of sharded models, and the largest call."""
    here = [*_own_rollouts(work), *work.judges]
    copies = x.unit * x.params * (bool(_own_rollouts(work)) + len(work.judges)) if x.sharded else 0
    return copies + max(_largest(here, work, x, x.kv_unit), _largest(work.measured, work, x, x.kv_unit))


def _own_rollouts(work: Work) -> list[Call]:
    return [] if work.rollouts in work.served else [work.rollouts]


def _largest(calls: list[Call], work: Work, x: Costs, unit: int) -> float:
    rows = work.settings.batch_rows
    return max((x.sampler(unit, rows, c.prompts, c.n, c.prompt, c.own) for c in calls), default=0.0)


def training_bytes(work: Work, x: Costs) -> float:
    """On top of what is held: activations of a micro-batch and gathered blocks, or what the step takes."""
    c, unit, tokens = x.c, x.unit, work.micro
    scores = 4 * c.n_heads * tokens**2 if x.dense(unit) else 0
    mask = (1 + unit) * tokens**2 if x.masked(unit) else 0  # of truth values, and as what is added to scores
    attention = unit if x.sharded or x.hardware.gpu else 4  # CPUs attend in fp32
    block = activation_bytes(c, unit, x.stream, attention) * tokens + scores
    # All blocks', or each block's input and one block made again; and two more sorts of scores, going back.
    again = block + x.stream * c.dim * tokens * c.n_layers
    kept = (again if work.settings.checkpointing else block * c.n_layers) + 2 * scores
    kept += mask + 8 * c.dim * tokens  # the last hidden states and their gradient, in fp32
    if x.reduces_once and tokens < work.trained:  # whole gradients of the micro-batches before
        kept += 4 * x.trained
    message = 4 * x.trained * (x.ranks > 1 and not x.sharded)  # in which gradients are summed, afterwards
    return max(kept + _beside_blocks(x), message)


def _beside_blocks(x: Costs) -> float:
    """Blocks gathered from shards, or what waits of whole models: the gradient of the output weights, and on
    GPUs their copy in bf16 and its gradient; the adapters' copies."""
    if x.sharded:
        return x.unit * (2 * x.block + x.root) + (x.unit + 4) * max(x.block, x.root)
    if x.lora:
        return 2 * x.lora if x.unit == 2 else 0
    return (4 + 4 * (x.hardware.gpu and x.unit == 2)) * x.root


def end_bytes(work: Work, x: Costs) -> float:
    """In all before and after training, when models are whole, to measure; shards are in fp32, to be saved
    tensor by tensor."""
    measuring = _largest(work.measured, work, x, x.kv_unit)
    if not x.sharded:
        return x.weights() + x.whole() * work.frozen + measuring
    moments = 8 * x.params / x.over + x.whole() * work.frozen  # when training has just ended
    copies = x.unit * x.params * (1 + work.frozen)
    return x.weights() + copies + max(measuring, moments, 4 * x.root)


def compute_flops(work: Work, x: Costs) -> float:
    """Of training, and of reading prompts and questions: what a device does at its rate."""
    g = work.settings
    passes = g.epochs * (4 if g.checkpointing else 3)
    passes += (g.epochs * g.minibatches > 1) + g.epochs * bool(g.kl_coef)  # old and reference log-probs
    adapters = 2 * x.lora * work.trained * passes
    passes -= g.epochs * (x.lora > 0)  # frozen weights have no gradient
    seen = work.micro if x.masked(x.unit) else work.prompt + work.own / 2  # keys of a completion's token
    forward = 2 * x.active * work.trained + x.attention_flops(work.trained, seen)
    reads = [
        (work.groups * work.prompt, work.prompt),
        *((c.prompts * c.prompt, c.prompt) for c in work.judges),
    ]
    read = sum(2 * x.active * tokens + x.attention_flops(tokens, length / 2) for tokens, length in reads)
    return passes * forward + adapters + read


def adapter_seconds(work: Work, x: Costs) -> float:
    """Of what the adapters' small products in training move: on the way forward each reads what goes into a
    layer and adds to what comes out, which is read and written; on the way back the same with gradients."""
    g = work.settings
    sweeps = g.epochs * (7 + 5 * (2 if g.checkpointing else 1))  # over one side of all layers, for each token
    return sweeps * x.unit * x.sides * work.trained / (x.hardware.bandwidth * x.hardware.bandwidth_share)


def decode_seconds(work: Work, x: Costs) -> float:
    """Of sampling, here and by engines, and of their new weights."""
    rows, served = work.settings.batch_rows, 0.0
    here = [*_own_rollouts(work), *work.judges]
    seconds = sum(x.decode(rows, c.prompts, c.n, c.prompt, c.own) for c in here)
    for call in work.served:
        most = max(call.n, min(x.rollout.concurrency * call.n, _engine_rows(call, x)))
        served += x.decode(most, call.prompts, call.n, call.prompt, call.own, served=True)
    return seconds + served + (x.served() / TAKES if work.rollouts in work.served else 0.0)


def _engine_rows(call: Call, x: Costs) -> int:
    """How many rows of a call an engine's keys and values have room for; any number where it is elsewhere."""
    if not x.rollout.start:
        return 1 << 30
    return max(1, int(engine_tokens(x) / (call.own + call.prompt / call.n)))


def engine_tokens(x: Costs) -> float:
    """Tokens whose keys and values fit beside the weights of an engine that is started here."""
    share = x.server() if x.hardware.gpu else x.hardware.memory
    return max(0.0, (share - x.served()) / cache_bytes(x.c, BYTES[x.rollout.dtype]))


def describe(plan: Plan, config: Config, ranks: int, name: str, hardware: Hardware) -> str:
    """The plan as a table, with a word on whether it fits."""
    x = Costs(config, ranks, min(ranks, 8), hardware)
    share = f", {plan.active / 1e9:,.3g} billion active for a token" if plan.active < plan.params else ""
    lines = [
        f"{plan.params:,} parameters{share}{_trains(x)}; {ranks} rank(s), "
        f"shard {config.parallel.shard}, {name}",
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
    beside = " with its engines" * any(p.servers for p in phases)
    fits = "fits into" if worst < room else "does NOT fit into"
    lines.append(
        f"peak {worst / 1e9:,.1f} GB{beside} {fits} {hardware.memory / 1e9:,.0f} GB (a tenth kept free)"
    )
    if (weights := x.unit * plan.params) > room and x.sharded:
        lines.append(
            f"the weights alone, {weights / 1e9:,.0f} GB in {precision_of(config.parallel)}, are whole on "
            f"each rank when it samples and measures: that takes {math.ceil(weights / room)} times its memory"
        )
    if (held := max(p.held for p in phases)) > room:
        lines.append(f"what is held takes {math.ceil(held / room)} times the ranks that share it")
    if max(max(p.held + p.sampling, p.ends) for p in phases) > room:
        lines.append('sampling, ends: lower batch_rows or max_tokens, or judge = "endpoint", take less')
    if max(p.held + p.training for p in phases) > room:
        lines.append("training: lower micro_tokens, or checkpointing = true, take less")
    if why := x.masked(x.unit):
        lines.append(
            f"no variable-length kernel takes attention {why}: a mask of all pairs of a micro-batch's tokens "
            "does it, which is counted"
        )
    lines += _engine_lines(x, max(phases, key=lambda p: p.servers))
    peak = hardware.flops if x.unit == 2 else hardware.fp32
    launched = f", {1e6 * hardware.launch:g} µs an operator" if hardware.launch else ""
    lines.append(
        "tokens at their limits over all ranks, one round of sampling (refills add to it); GB on one rank; "
        f"seconds without measuring, from {hardware.compute_share:.0%} of {peak:.3g} FLOP/s and "
        f"{hardware.bandwidth_share:.0%} of {hardware.bandwidth:.3g} bytes/s{launched}: assumptions"
    )
    return "\n".join(lines)


def _trains(x: Costs) -> str:
    if not x.lora:
        return ""
    return f"; LoRA trains {x.lora:,}, beside weights in {'bf16' if x.halves else 'fp32'}"


def _engine_lines(x: Costs, phase: PhasePlan) -> list[str]:
    """What the engines take, and what their keys and values have room for."""
    r = x.rollout
    if r.engine == "own":
        return []
    files = (
        f"{r.engine}: new weights are {x.served() / 1e9:,.1f} GB in {r.folder} (host memory) for each step"
    )
    seconds = f"{x.served() / TAKES:,.1f} s to take at {TAKES / 1e9:g} GB/s"
    if not phase.servers:
        return [f"{files}, {seconds}; what its servers hold is not counted: they have GPUs of their own"]
    n, tokens = round(phase.servers / x.server()), engine_tokens(x)
    share = f" ({share_of(r):g} of it, see rollout.options)" if x.hardware.gpu else ""
    return [
        f"{files}, {seconds}; {n} server(s) here take {x.server() / 1e9:,.1f} GB each{share}, beside the "
        f"weights room for {tokens:,.0f} tokens"
    ]


def dry_run(config: Config, ranks: int, hardware: str) -> str:
    """What `train.py --dry-run` prints."""
    if hardware not in (*HARDWARE, "this"):
        raise InputError(f"unknown hardware {hardware!r}; one of {', '.join(HARDWARE)}, this")
    if ranks < 1:
        raise InputError(f"--ranks must be at least 1, found {ranks}")
    check_lora(config)
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
