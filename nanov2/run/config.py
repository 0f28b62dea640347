"""Settings: a TOML file and `--section.field=value` overrides, read into typed dataclasses.

A training section such as [verifier] starts from [grpo]; what it states itself wins. An unknown field or
a bad type is an error that names the nearest valid one.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

from nanov2.domains.natural.data import DataConfig
from nanov2.domains.order.demos import Noise
from nanov2.domains.order.world import Difficulty
from nanov2.errors import InputError
from nanov2.hub.endpoint import EndpointConfig
from nanov2.model.decoder import ModelConfig


@dataclass(frozen=True)
class WorldConfig:
    """How hard the problems of the embedded world are, and how many are held out."""

    labelled_chain: tuple[int, int] = (2, 4)  # steps of the shortest proof, labelled difficulty
    labelled_facts: tuple[int, int] = (4, 8)  # facts in all
    hard_chain: tuple[int, int] = (4, 5)  # the harder problems: longer chains, more distractors
    hard_facts: tuple[int, int] = (7, 10)
    lap_chain: int = 0  # so many more steps of the harder problems' proofs in each later lap
    lap_facts: int = 0  # and so many more facts
    problems: int = 4000  # size of 𝒟p, labelled difficulty
    hard_problems: int = 3000  # size of the harder 𝒟p, for autolabel and later laps
    held_out: int = 400  # held-out problems of each difficulty; never trained on
    validation: int = 96  # further ones, for watching and stopping a phase

    def __post_init__(self):
        _ = self.labelled, self.hard  # impossible difficulties are refused here

    @property
    def labelled(self) -> Difficulty:
        return Difficulty(self.labelled_chain, self.labelled_facts)

    @property
    def hard(self) -> Difficulty:
        return self.hard_in(1)

    def hard_in(self, lap: int) -> Difficulty:
        """The harder problems of a lap."""
        chain, facts = (lap - 1) * self.lap_chain, (lap - 1) * self.lap_facts
        return Difficulty(
            tuple(n + chain for n in self.hard_chain), tuple(n + facts for n in self.hard_facts)
        )

    @property
    def gets_harder(self) -> bool:
        return bool(self.lap_chain or self.lap_facts)


@dataclass(frozen=True)
class BaseConfig:
    """Supervised training of the base on imperfect demonstrations."""

    steps: int = 3000  # optimiser steps
    batch: int = 32  # documents a step, over all ranks
    lr: float = 2e-3  # peak learning rate
    warmup: int = 50  # steps of linear warm-up
    decay: float = 0.4  # last share of the steps in which the learning rate falls linearly to 5%
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    skip_norm: float = 1000.0  # a step whose gradient norm is above it, or not finite, is skipped and counted
    max_skipped: int = 5  # so many skipped steps in a row end the phase, with the batch saved
    eval_every: int = 500  # steps between measurements on held-out demonstrations
    save_every: int = 500  # steps between checkpoints
    keep: int = 2  # so many of the newest checkpoints are kept while the phase is under way


@dataclass(frozen=True)
class ConsolidateConfig(BaseConfig):
    """Rejection fine-tuning of the base of a later lap, where a phase has init = "consolidated"."""

    steps: int = 400
    batch: int = 16  # half best samples, half demonstrations
    lr: float = 5e-4


@dataclass(frozen=True)
class ColdstartConfig:
    """1A: the weak prover's proofs, refined, drawn and scored by the expert."""

    problems: int = 2400  # problems that the weak prover writes proofs for
    rounds: int = 3  # proofs per trajectory: a draft and its revisions
    subset: int = 3000  # proofs drawn, spread over problem types and scores
    temperature: float = 1.0


@dataclass(frozen=True)
class GRPOConfig:
    """GRPO, section 2.1 and Shao et al. 2024; [grpo] holds the defaults of all phases."""

    init: str = (
        "base"  # where the weights start: "base", "verifier", "generator", "previous" (lap), "consolidated"
    )
    steps: int = 120  # rollout steps
    prompts: int = 16  # groups a step that have variance, over all ranks (see refill)
    samples: int = 12  # G, completions per prompt
    temperature: float = 1.0  # of sampling and of every log-prob in the loss
    max_tokens: int = 64  # limit of one turn, <end> included; longer is cut off and counted
    lr: float = 3e-4
    warmup: int = 5
    decay: float = 0.3  # last share of the steps in which the learning rate falls linearly to 10%
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    skip_norm: float = 1000.0  # a step whose gradient norm is above it, or not finite, is skipped and counted
    max_skipped: int = 5  # so many skipped steps in a row end the phase, with the batch saved
    epochs: int = 1  # optimiser passes over each rollout
    minibatches: int = 1  # optimiser steps per pass
    clip_low: float = 0.2  # ε: the ratio is clipped below 1 − ε
    clip_high: float = 0.28  # separate upper clip (DAPO's clip-higher)
    judge: str = "run"  # who the frozen judges are: "run", a finished phase's model, or "endpoint"
    kl_coef: float = 0.0  # β of the k3 KL to the starting weights; 0 = no reference is kept
    loss_type: str = "dapo"  # "dapo" (per token), "grpo" (per row), "dr_grpo" (by maximum length), "gspo"
    malformed_penalty: float = 0.0  # taken off the reward of a proof without form or end (DAPO, eq. 13)
    scale: str = "std"  # advantage scale: "std", "none" or "loo"
    refill: int = 2  # extra rounds of sampling to replace groups without variance
    is_cap: float = 0.0  # cap of the truncated importance weight trainer/sampler; 0 = off
    judge_samples: int = 1  # answers of the frozen judge per item, averaged
    judge_temperature: float = 1.0
    meta_gate: bool = True  # 1D: whether R_meta gates the reward (False: the ablation)
    max_turns: int = 1  # turns of a trajectory: 1 proof; 3 proof, critique, revision; …
    reward: str = "final"  # selfverify: "final" proof only, or "alpha_beta", the paper's α·R_Y + β·R_Z
    alpha: float = 0.76  # α
    beta: float = 0.24  # β
    max_gap: float = 0.1  # verifier's reward minus true score on validation at which a phase falls back
    eval_every: int = 20  # steps between measurements on validation problems
    save_every: int = 40  # steps between checkpoints
    keep: int = 2  # so many of the newest checkpoints are kept while the phase is under way
    batch_rows: int = 512  # completions that are decoded together: more is faster, and takes more memory
    pack_tokens: int = 2048  # a pack: one prompt and as many of its completions as fit
    micro_tokens: int = 4096  # tokens of a micro-batch
    checkpointing: bool = False  # recompute each block in the backward pass: less memory, more time


@dataclass(frozen=True)
class AutolabelConfig:
    """4: labels by consensus. The paper does not publish n, m, k; these are ours."""

    problems: int = 1200  # new hard problems
    proofs: int = 2  # proofs of each by the generator
    n: int = 8  # critiques per proof
    m: int = 3  # meta-assessments of each critique that reports an issue
    k: int = 2  # valid critiques that must give the lowest score
    rule: str = "consensus"  # or "majority", "mean", "worst" (of n), "single"
    chunk: int = 2  # critiques drawn at a time; a proof whose label is settled gets no more
    clean: int = 8  # so many first critiques without an issue settle a label of 1; n: all of them
    max_doubt: float = (
        9.0  # bits of doubt (nanov2/method/consensus.py) above which a label is unclear; 9 = no limit
    )
    disputed: str = "unclear"  # k reports, none confirmed: "unclear", or "right" by the paper's letter
    temperature: float = 1.0
    grow: bool = True  # whether the labelled proofs join 𝒟v (False: the ablation, laps without new labels)


@dataclass(frozen=True)
class SearchConfig:
    """Search at high compute (sample.py search). The paper: pool 64, n 64, 8 critiques shown, 16 rounds."""

    pool: int = 16  # drafts of each problem
    keep: int = 4  # best proofs that a round revises
    children: int = 4  # revisions of each of them, from as many of its critiques
    rounds: int = 4  # rounds of revisions
    n: int = 8  # critiques of a proof
    chunk: int = 2  # critiques between two looks of the sequential test
    m: int = 1  # meta-assessments of each critique that reports an issue; 0: every critique weighs 1
    temperature: float = 1.0
    issues_if_right: float = 0.1  # how often a critique reports an issue in a right proof
    issues_if_wrong: float = 0.7  # and in a wrong one
    given_up: float = 0.02  # accepted chance to give up a right proof
    missed: float = 0.1  # accepted chance to go on with a wrong one


@dataclass(frozen=True)
class EvalConfig:
    """How the held-out figures are made."""

    temperature: float = 1.0
    proofs: int = 800  # held-out proofs that a verifier is measured on
    samples: int = 2  # samples per held-out problem for a generator
    rounds: int = 4  # refinement rounds at inference: at most so many proofs in a row
    shown: int = 40  # samples kept for the report, per phase


@dataclass(frozen=True)
class PretrainedConfig:
    """Natural-language mode: a pretrained chat model in place of the embedded world's own."""

    folder: str = ""  # Hugging Face model folder that the base is; "" = the embedded world
    shape: str = ""  # a config.json that --dry-run reads where the folder is not there
    strict: bool = True  # R_format asks for the paper's form; False: any last \boxed{0, 0.5 or 1} will do


@dataclass(frozen=True)
class ParallelConfig:
    """How several ranks hold a model that is trained. With one rank nothing changes."""

    shard: str = "none"  # "none": whole on each; "full": in shards over all; "hybrid": over a node's ranks
    precision: str = "fp32"  # of sharded computation: "fp32", or "bf16" with weights and sums kept in fp32

    def __post_init__(self):
        for name, values in (("shard", ("none", "full", "hybrid")), ("precision", ("fp32", "bf16"))):
            if getattr(self, name) not in values:
                found = getattr(self, name)
                raise ValueError(f"parallel.{name} must be one of {', '.join(values)}, found {found!r}")


@dataclass(frozen=True)
class Config:
    """Everything that a run can set."""

    seed: int = 0  # draws the problems, the weights, every sample
    laps: int = 2  # laps of the flywheel
    # "world" (exact), "grades" (of [data]), "person" (a file to fill in), "page" (waits), a labelled JSONL
    expert: str = "world"
    model: ModelConfig = field(default_factory=ModelConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    noise: Noise = field(default_factory=Noise)
    base: BaseConfig = field(default_factory=BaseConfig)
    coldstart: ColdstartConfig = field(default_factory=ColdstartConfig)
    consolidate: ConsolidateConfig = field(default_factory=ConsolidateConfig)
    verifier: GRPOConfig = field(default_factory=GRPOConfig)
    meta: GRPOConfig = field(default_factory=GRPOConfig)
    verifier2: GRPOConfig = field(default_factory=GRPOConfig)
    generator: GRPOConfig = field(default_factory=GRPOConfig)
    selfverify: GRPOConfig = field(default_factory=GRPOConfig)
    lap_verifier2: GRPOConfig = field(default_factory=GRPOConfig)  # the same phases in laps 2, 3, …
    lap_generator: GRPOConfig = field(default_factory=GRPOConfig)
    lap_selfverify: GRPOConfig = field(default_factory=GRPOConfig)
    autolabel: AutolabelConfig = field(default_factory=AutolabelConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    data: DataConfig = field(default_factory=DataConfig)
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    pretrained: PretrainedConfig = field(default_factory=PretrainedConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def phase(self, name: str, lap: int = 1) -> GRPOConfig:
        return getattr(self, name if lap == 1 else f"lap_{name}")

    @property
    def consolidates(self) -> bool:
        """Whether a phase of the later laps starts from a consolidated base."""
        later = (self.lap_verifier2, self.lap_generator, self.lap_selfverify)
        return any(phase.init == "consolidated" for phase in later)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


def describe() -> str:
    """Every setting with its default and its comment in the source, for --help."""
    lines = []
    for name, kind in _hints(Config).items():
        if not dataclasses.is_dataclass(kind):
            continue
        if kind is GRPOConfig and name != "verifier":
            continue  # all training sections are alike
        title = (
            "grpo (and verifier, meta, verifier2, generator, selfverify, lap_…)"
            if kind is GRPOConfig
            else name
        )
        lines.append(f"  [{title}]  {(kind.__doc__ or '').splitlines()[0]}")
        for line in inspect.getsource(kind).splitlines():
            if found := re.match(r"    (\w+): [\w\[\], ]+ = (.+?)(?:  # (.*))?$", line):
                lines.append(f"    {found[1]:18} {found[2]:10} {found[3] or ''}".rstrip())
    return "\n".join(["settings, as --section.field=value or in the TOML file:", *lines])


def load_config(path: str | Path | None, overrides: list[str] = ()) -> Config:
    """Config from a TOML file (None: the defaults) and overrides such as `--verifier.steps=10` or `seed=1`.

    Raises InputError naming the file or flag, the field and the nearest valid one.
    """
    tree = {} if path is None else _read(path)
    _check_table(tree, "the file", str(path))
    for override in overrides:
        _override(tree, override)
    return from_dict(tree, str(path or "settings"))


def _read(path: str | Path) -> dict:
    try:
        with open(path, "rb") as f:
            return json.load(f) if Path(path).suffix == ".json" else tomllib.load(f)
    except OSError as e:
        raise InputError(f"cannot read configuration {path}: {e.strerror}") from e
    except (ValueError, RecursionError) as e:  # of TOML, of JSON, or of UTF-8
        raise InputError(f"{path}: not valid: {e}") from e


def from_dict(tree: dict, where: str) -> Config:
    """Config from nested dicts; [grpo] is spread over every section of GRPO settings."""
    _check_table(tree, "the configuration", where)
    tree = dict(tree)
    grpo = tree.pop("grpo", {})
    sections = [f.name for f in dataclasses.fields(Config) if _hints(Config)[f.name] is GRPOConfig]
    _check_table(grpo, "grpo", where)
    for name in sections:
        own = tree.get(name, {})
        _check_table(own, name, where)
        first = tree.get(name.removeprefix("lap_"), {}) if name.startswith("lap_") else {}
        _check_table(first, name.removeprefix("lap_"), where)
        tree[name] = {**grpo, **first, **own}
    return _build(Config, tree, "", where)


def _override(tree: dict, text: str) -> None:
    name, equals, value = text.removeprefix("--").partition("=")
    if not equals or not name:
        raise InputError(f"cannot read override {text!r}: write --section.field=value")
    try:
        parsed = tomllib.loads(f"x = {value}")["x"]
    except (ValueError, RecursionError):
        parsed = value  # a bare word is text
    *path, last = name.replace("-", "_").split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        _check_table(tree, part, f"override {text!r}")
    tree[last] = parsed


def _hints(kind: type) -> dict:
    return typing.get_type_hints(kind)


def _check_table(value: object, name: str, where: str) -> None:
    if not isinstance(value, dict):
        raise InputError(f"{where}: {name} must be a section, found {value!r}")


def _build(kind: type, tree: dict, prefix: str, where: str):
    hints = _hints(kind)
    values = {}
    for name, value in tree.items():
        if name not in hints:
            known = [*hints, "grpo"] if kind is Config else list(hints)
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"
            raise InputError(f"{where}: unknown field {prefix}{name}; {hint}")
        if dataclasses.is_dataclass(hints[name]):
            _check_table(value, prefix + name, where)
            values[name] = _build(hints[name], value, f"{prefix}{name}.", where)
        else:
            values[name] = _convert(value, hints[name], prefix + name, where)
    try:
        return kind(**values)
    except ValueError as e:
        raise InputError(f"{where}: {e}") from e


def _convert(value: object, kind: type, name: str, where: str):
    """A TOML value as the field's type: ints serve as floats, lists as tuples; anything else must fit."""
    if isinstance(kind, types.GenericAlias):  # tuple[int, int]
        parts = typing.get_args(kind)
        if not isinstance(value, (list, tuple)) or len(value) != len(parts):
            raise InputError(f"{where}: {name} must be a list of {len(parts)} numbers, found {value!r}")
        return tuple(_convert(v, part, name, where) for v, part in zip(value, parts, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{where}: {name} must be {kind.__name__}, found {value!r} ({type(value).__name__})")
    return value
