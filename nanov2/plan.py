"""Memory and time of a run before it is started: arithmetic on shapes and settings, no weights, no GPU.

    python train.py --dry-run --config=configs/qwen3-8b-8gpu.toml --ranks=8 --hardware=h100-80gb

Bytes follow from what the code keeps (sharding.py, cache.py, attention.py); tests compare them with what it
really keeps. Seconds rest on the stated shares of a device's peak and are worth a factor of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from nanov2 import hf
from nanov2.config import Config, GRPOConfig
from nanov2.errors import InputError
from nanov2.model import Model, ModelConfig
from nanov2.tokenizer import Tokenizer

PHASES = ("verifier", "meta", "verifier2", "generator", "selfverify")
RUBRIC, PROBLEM = 350, 200  # tokens that a natural-language prompt takes beside what models wrote
WORLD_PROBLEM = 40
BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Hardware:
    """One rank's device. Peaks are the vendor's, dense; shares are assumptions."""

    flops: float  # FLOP/s of matrix products at their peak
    bandwidth: float  # bytes/s of memory
    memory: float  # bytes
    compute_share: float = 0.35  # of `flops` reached in training and in computing prompts
    bandwidth_share: float = 0.5  # of `bandwidth` reached in decoding


HARDWARE = {
    "cpu-core": Hardware(5e10, 1e10, 12e9, 0.8, 0.8),  # fp32, one core of a present server
    "a100-80gb": Hardware(312e12, 2.0e12, 80e9),  # NVIDIA's data sheets: bf16, dense
    "h100-80gb": Hardware(989e12, 3.35e12, 80e9),
    "h200-141gb": Hardware(989e12, 4.8e12, 141e9),
}


@dataclass(frozen=True)
class PhasePlan:
    """One GRPO step of a phase. Tokens are over all ranks, bytes on one rank; lengths are the limits."""

    prompt: int  # tokens of a prompt
    rows: int  # completions
    sampled: int  # tokens that the trained model samples at most
    trained: int  # tokens that go through the backward pass; a prompt counts once for its group
    judged: int  # tokens that frozen judges read and write
    judges: int  # frozen judges in this process
    held: float  # bytes held all the time: weights, gradients, optimiser, judges
    sampling: float  # bytes on top while sampling: models whole in compute precision, keys and values
    training: float  # bytes on top while training: gathered blocks, activations of a micro-batch
    seconds: float  # of a step
    steps: int

    @property
    def peak(self) -> float:
        return self.held + max(self.sampling, self.training)


@dataclass(frozen=True)
class Plan:
    """A run's arithmetic."""

    params: int
    active: int  # that a token meets
    phases: dict[str, PhasePlan]


def shape_of(config: Config) -> ModelConfig:
    """The model's shape: of the pretrained folder, of the file that stands for it, or of [model]."""
    if not config.pretrained.folder:
        return ModelConfig(**config.model.to_dict() | {"vocab_size": Tokenizer.for_world().vocab_size})
    paths = [Path(config.pretrained.folder) / "config.json", Path(config.pretrained.shape or "-")]
    for path in paths:
        if path.is_file():
            return hf.to_config(path)
    raise InputError(f"neither {paths[0]} nor pretrained.shape ({paths[1]}) is there: name one of them")


def activation_bytes(c: ModelConfig, unit: int) -> float:
    """Bytes a token that one block keeps for the backward pass."""
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    ffn = c.ffn_dim
    if c.experts:
        ffn = c.experts.moe_intermediate_size * (c.experts.num_experts_per_tok + c.experts.n_shared_experts)
    if c.latent:  # each head's query is as wide as the cache
        q, kv = c.n_heads * c.latent.width, c.latent.width
    # Residual and norms; gate, up, their products; queries and the output before and after rotation; k, v.
    return unit * (4 * (c.dim + ffn + q + kv) + 2 * (q + kv) * c.qk_norm)


def cache_bytes(c: ModelConfig, unit: int) -> int:
    """Bytes of keys and values of a token."""
    return unit * c.n_layers * c.cache_kinds * c.cache_heads * c.cache_dim


def make_plan(config: Config, ranks: int, per_node: int, hardware: Hardware) -> Plan:
    """The arithmetic of every GRPO phase of lap 1, on so many ranks."""
    shape = shape_of(config)
    with torch.device("meta"):
        model = Model(shape)
    phases = {
        name: _phase(config, name, shape, model.n_params, model.n_active, ranks, per_node, hardware)
        for name in PHASES
    }
    return Plan(model.n_params, model.n_active, phases)


def _prompts(config: Config) -> dict[str, int]:
    """Tokens of a prompt of each task; proofs and critiques at their limits."""
    rubric, problem = (RUBRIC, PROBLEM) if config.pretrained.folder else (2, WORLD_PROBLEM)
    verify = rubric + problem + config.generator.max_tokens
    meta = verify + config.verifier.max_tokens
    return {"prove": rubric + problem, "verify": verify, "meta": meta}


def _judges(config: Config, name: str) -> list[tuple[str, int]]:
    """(task, limit of an answer) of each frozen judge that a phase asks."""
    verifier, meta = ("verify", config.verifier.max_tokens), ("meta", config.meta.max_tokens)
    if name == "verifier2":
        return [meta] * config.verifier2.meta_gate
    if name == "selfverify" and config.selfverify.reward == "alpha_beta":
        return [verifier, meta]
    return [verifier] if name in ("generator", "selfverify") else []


def _phase(config, name, c: ModelConfig, params, active, ranks, per_node, hardware) -> PhasePlan:
    g: GRPOConfig = config.phase(name)
    lengths, sharded = _prompts(config), config.parallel.shard != "none" and ranks > 1
    unit = BYTES[config.parallel.precision] if sharded else 4
    over = {"none": 1, "full": ranks, "hybrid": min(per_node, ranks)}[config.parallel.shard]
    task = {"meta": "meta", "generator": "prove", "selfverify": "prove"}.get(name, "verify")
    prompt, rows, turns = lengths[task], g.prompts * g.samples, g.max_turns
    own = g.max_tokens * turns  # tokens of a row, at most
    sampled, prefill = rows * own, g.prompts * prompt
    judges = _judges(config, name)
    asked = rows * g.judge_samples
    judged = sum(rows * lengths[t] + asked * limit for t, limit in judges)
    local = [] if g.judge == "endpoint" else judges

    held = 16 * params / over + 4 * params / over * len(local)
    together = min(g.batch_rows, -(-rows // ranks))
    groups = -(-together // g.samples)
    cache = cache_bytes(c, unit) * (together * own + groups * prompt)
    sampling = cache + (unit * params * (1 + len(local)) if sharded else 0)
    tokens, block = min(g.micro_tokens, prefill + sampled), params / max(c.n_layers, 1)
    kept = activation_bytes(c, unit) * tokens
    layers = (unit * c.dim * tokens * c.n_layers + kept) if g.checkpointing else kept * c.n_layers
    training = layers + (unit * 3 * block if sharded else 0)

    rate = hardware.flops * hardware.compute_share * ranks
    decode = _decode(c, active, params, unit, together, prompt, own, rows / ranks, hardware)
    for t, limit in local:
        at_once = min(g.batch_rows, -(-asked // ranks))
        decode += _decode(c, active, params, unit, at_once, lengths[t], limit, asked / ranks, hardware)
    read = prefill + sum(rows * lengths[t] for t, _ in local)
    passes = (8 if g.checkpointing else 6) * active * (prefill + sampled) + 2 * active * read
    return PhasePlan(
        prompt,
        rows,
        sampled,
        prefill + sampled,
        judged,
        len(local),
        held,
        sampling,
        training,
        decode + passes / rate,
        g.steps,
    )


def _decode(c, active, params, unit, together, prompt, new, rows, hardware: Hardware) -> float:
    """Seconds to decode `rows` rows of `new` tokens: each step reads the weights and the rows' caches."""
    experts = 1 if not c.experts else min(1.0, active / params * together)  # weights that a step touches
    read = unit * params * experts + together * cache_bytes(c, unit) * (prompt + new / 2)
    compute = 2 * active * together / (hardware.flops * hardware.compute_share)
    step = max(read / (hardware.bandwidth * hardware.bandwidth_share), compute)
    return new * max(rows / together, 1.0) * step


def describe(plan: Plan, config: Config, ranks: int, name: str, hardware: Hardware) -> str:
    """The plan as a table, with a word on whether it fits."""
    share = f", {plan.active / 1e9:,.3g} billion active for a token" if plan.active < plan.params else ""
    lines = [
        f"{plan.params:,} parameters{share}; {ranks} rank(s), shard {config.parallel.shard}, {name}",
        "a step:      prompt   rows   sampled   trained    judged |"
        "  GB held sampling training     peak | s a step  hours",
    ]
    for phase, p in plan.phases.items():
        counts = f"{p.prompt:8,} {p.rows:6,} {p.sampled:9,} {p.trained:9,} {p.judged:9,}"
        gb = "".join(f"{x / 1e9:9.2f}" for x in (p.held, p.sampling, p.training, p.peak))
        hours = p.seconds * p.steps / 3600
        lines.append(f"{phase:11} {counts} |{gb} | {p.seconds:8.1f} {hours:6.2f}")
    worst = max(p.peak for p in plan.phases.values())
    fits = "fits into" if worst < 0.9 * hardware.memory else "does NOT fit into"
    lines.append(f"peak {worst / 1e9:,.1f} GB {fits} {hardware.memory / 1e9:,.0f} GB (a tenth kept free)")
    whole = max(p.sampling for p in plan.phases.values())
    if whole > 0.9 * hardware.memory:
        lines.append(
            f"each rank samples with its models whole, {whole / 1e9:,.0f} GB here: nanov2 has no tensor or "
            "expert parallelism, so sampling would have to be an endpoint's, with weights sent to it"
        )
    lines.append(
        "tokens at their limits, over all ranks; GB on one rank; seconds from "
        f"{hardware.compute_share:.0%} of {hardware.flops:.3g} FLOP/s and {hardware.bandwidth_share:.0%} of "
        f"{hardware.bandwidth:.3g} bytes/s"
    )
    return "\n".join(lines)


def dry_run(config: Config, ranks: int, hardware: str) -> str:
    """What `train.py --dry-run` prints."""
    if hardware not in HARDWARE:
        raise InputError(f"unknown hardware {hardware!r}; one of {', '.join(HARDWARE)}")
    plan = make_plan(config, ranks, min(ranks, 8), HARDWARE[hardware])
    return describe(plan, config, ranks, hardware, HARDWARE[hardware])
