"""Everything that a run can set: a TOML file and `--section.field=value` overrides, read into dataclasses.

Each section's class lies in the room that it configures. [grpo] holds the defaults of all training sections;
what a section such as [verifier] states itself wins. An unknown field, a wrong type, a value out of bounds or
a misspelt choice is an error that names the nearest valid one.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, overload

from nanov2 import settings
from nanov2.domains.data import DataConfig
from nanov2.domains.domain import NAMES as DOMAINS
from nanov2.domains.integers.config import Habits, IntegersConfig
from nanov2.domains.order.config import WorldConfig
from nanov2.domains.order.demos import Noise
from nanov2.errors import InputError
from nanov2.hub.endpoint import EndpointConfig
from nanov2.hub.engine import RolloutConfig
from nanov2.method.config import (
    AutolabelConfig,
    AwareConfig,
    ColdstartConfig,
    ConsolidateConfig,
    EvalConfig,
    GeneratorConfig,
    LapGeneratorConfig,
    LapSelfVerifyConfig,
    LapVerifier2Config,
    MetaConfig,
    RenewMetaConfig,
    SearchConfig,
    SelfVerifyConfig,
    Verifier2Config,
    VerifierConfig,
)
from nanov2.model.decoder import ModelConfig
from nanov2.model.lora import LoraConfig
from nanov2.rl.config import BaseConfig, GRPOConfig
from nanov2.settings import Few, Within, check_section, setting

EXPERTS = ("exact", "grades", "marks", "person", "page")  # or the path of a labelled JSONL file
SCORERS = ("", "exact", "person", "page", "endpoint", "nobody")  # of the weak prover's proofs; or a path


@dataclass(frozen=True)
class PretrainedConfig:
    """A pretrained chat model as the base, in place of one that starts from random weights."""

    folder: str = setting("", 'Hugging Face model folder that the base is; "" = a small model from scratch')
    shape: str = setting("", "a config.json that --dry-run reads where the folder is not there")
    strict: bool = setting(
        True, "R_format asks for the paper's form; false: any last \\boxed{0, 0.5 or 1} will do"
    )
    revises: Literal["alone", "asked"] = setting(
        "alone",
        "self-verification: draft, evaluation, revision, … in one answer, or when a message asks for it",
    )

    @property
    def alone(self) -> bool:
        return self.revises == "alone"


@dataclass(frozen=True)
class ParallelConfig:
    """How models are trained: where their weights are, and in which precision they are multiplied."""

    shard: Literal["none", "full", "hybrid"] = setting(
        "none", "whole on each rank, in shards over all (several) ranks, or over a node's"
    )
    reduce: Literal["micro", "step"] = setting(
        "micro",
        "when gradients of shards are summed over ranks: after each micro-batch, or once a step, which sends "
        "less and holds all gradients whole in fp32 until then",
    )
    timeout: Annotated[float, Within(1, 1e6)] = setting(
        7200.0, "seconds that ranks wait for each other: for the slowest rank's rollouts and judgements"
    )
    precision: Literal["fp32", "bf16", "auto"] = setting(
        "fp32", "of products; weights and sums are in fp32; auto: bf16 where the hardware multiplies it fast"
    )


@dataclass(frozen=True)
class Config:
    """Everything that a run can set."""

    seed: Annotated[int, Within(0, 2**63 - 1)] = setting(0, "draws the problems, the weights, every sample")
    laps: Few = setting(2, "laps of the flywheel")
    domain: str = setting(
        "order", f"what proofs are about: {', '.join(DOMAINS)}, or module:Class of your own"
    )
    expert: str = setting(
        "exact",
        'who scores: "exact" (the domain\'s truth), "grades" (of [data]), "marks" (of first wrong '
        'steps, of [data]), "person" (a file to fill in), '
        '"page" (waits for the judging page), or the path of a labelled JSONL file',
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    noise: Noise = field(default_factory=Noise)
    integers: IntegersConfig = field(default_factory=IntegersConfig)
    integers_habits: Habits = field(default_factory=Habits)
    base: BaseConfig = field(default_factory=BaseConfig)
    coldstart: ColdstartConfig = field(default_factory=ColdstartConfig)
    consolidate: ConsolidateConfig = field(default_factory=ConsolidateConfig)
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    aware: AwareConfig = field(default_factory=AwareConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    verifier2: Verifier2Config = field(default_factory=Verifier2Config)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    selfverify: SelfVerifyConfig = field(default_factory=SelfVerifyConfig)
    renew_meta: RenewMetaConfig = field(default_factory=RenewMetaConfig)
    lap_verifier2: LapVerifier2Config = field(default_factory=LapVerifier2Config)  # laps 2, 3, …
    lap_generator: LapGeneratorConfig = field(default_factory=LapGeneratorConfig)
    lap_selfverify: LapSelfVerifyConfig = field(default_factory=LapSelfVerifyConfig)
    autolabel: AutolabelConfig = field(default_factory=AutolabelConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    data: DataConfig = field(default_factory=DataConfig)
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    pretrained: PretrainedConfig = field(default_factory=PretrainedConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self):
        for world in (self.world, self.integers):
            world.hard_in(self.laps)  # refuses laps that outgrow the world
        if self.model.vocab_size:
            raise ValueError("model.vocab_size is not a setting: it follows from the tokenizer")
        if ":" not in self.domain:
            settings.choose(self.domain, tuple(DOMAINS), "domain", "or module:Class of your own")
        for name, given, known in self.experts:
            path = Path(given)
            if given not in known and not path.suffix and len(path.parts) < 2:
                settings.choose(given, known, name, "or the path of a labelled JSONL file")
        if self.meta.misses and self.expert != "exact":
            raise ValueError(
                f'meta.misses tells the expert "exact" how to grade, and the expert is {self.expert!r}'
            )

    @property
    def experts(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """The settings that name an expert: (setting, its value, the names that are no path)."""
        return ("expert", self.expert, EXPERTS), ("coldstart.expert", self.coldstart.expert, SCORERS)

    @property
    def scorer(self) -> str:
        """Who scores the weak prover's proofs."""
        return self.coldstart.expert or self.expert

    @property
    def gets_harder(self) -> bool:
        """Whether later laps' problems are harder, so that all figures depend on how many laps there are."""
        return self.world.gets_harder or self.integers.gets_harder

    @overload
    def phase(self, name: Literal["verifier2"], lap: int = 1) -> LapVerifier2Config: ...
    @overload
    def phase(self, name: Literal["generator"], lap: int = 1) -> LapGeneratorConfig: ...
    @overload
    def phase(self, name: Literal["selfverify"], lap: int = 1) -> LapSelfVerifyConfig: ...
    @overload
    def phase(self, name: str, lap: int = 1) -> GRPOConfig: ...
    def phase(self, name, lap=1):
        """The settings of a training phase in a lap."""
        return getattr(self, self.section(name, lap))

    def section(self, phase: str, lap: int) -> str:
        """The section that holds the settings of a phase in a lap."""
        return f"lap_{phase}" if lap > 1 and hasattr(self, f"lap_{phase}") else phase

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


def sections() -> dict[str, Any]:
    """Section → its class, in order."""
    return {name: kind for name, kind in settings.hints(Config).items() if dataclasses.is_dataclass(kind)}


def trained_sections() -> dict[str, type]:
    """The sections that [grpo] is spread over."""
    return {name: kind for name, kind in sections().items() if issubclass(kind, GRPOConfig)}


def describe() -> str:
    """Every setting with its default, its help and its bounds, for --help."""
    lines = ["settings, as --section.field=value or in the TOML file:"]
    lines += [line[2:] for line in settings.describe(Config) if line.split()[0] not in sections()]
    for name, kind in {"grpo": GRPOConfig, **sections()}.items():
        trained = name in trained_sections()
        title = (kind.__doc__ or "").splitlines()[0]
        lines.append(f"  [{name}]  {title}{' [grpo], and:' if trained else ''}")
        lines += settings.describe(kind, hide=GRPOConfig if trained else None)
    return "\n".join(lines)


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Config from a TOML file (None: the defaults) and overrides such as `--verifier.steps=10` or `seed=1`.

    Raises InputError naming the file or flag, the field and the nearest valid one.
    """
    tree = {} if path is None else _read(path)
    check_section(tree, "the file", str(path))
    for override in overrides:
        _override(tree, override)
    try:
        return from_dict(tree, str(path or "settings"))
    except InputError:
        if not overrides:
            raise
        load_config(path)  # the file's own fault, if it has one
        return from_dict(tree, "the command line")


def _read(path: str | Path) -> dict:
    try:
        with open(path, "rb") as f:
            return json.load(f) if Path(path).suffix == ".json" else tomllib.load(f)
    except OSError as e:
        raise InputError(f"cannot read configuration {path}: {e.strerror}") from e
    except (ValueError, RecursionError) as e:  # of TOML, of JSON, or of UTF-8
        raise InputError(f"{path}: not valid: {e}") from e


def from_dict(tree: dict, where: str) -> Config:
    """Config from nested dicts; [grpo] is spread over the training sections that have its fields."""
    tree = dict(check_section(tree, "the configuration", where))
    grpo = check_section(tree.pop("grpo", {}), "grpo", where)
    _check_defaults(grpo, where)
    own = {name: check_section(tree.get(name, {}), name, where) for name in trained_sections()}
    for name, kind in trained_sections().items():
        shared = {k: v for k, v in grpo.items() if k in settings.hints(kind)}
        first = own[name.removeprefix("lap_")]
        tree[name] = {**shared, **first, **own[name]}
    return settings.build(Config, tree, "", where, others={"grpo": GRPOConfig})


def _check_defaults(grpo: dict, where: str) -> None:
    """Refuse what no training section would take, under the name that the user wrote."""
    kinds = [settings.hints(kind) for kind in trained_sections().values()]
    for name, value in grpo.items():
        taken = [kind[name] for kind in kinds if name in kind]
        if not taken:
            known = dict.fromkeys(field for kind in kinds for field in kind)
            settings.refuse_unknown(name, known, "grpo.", where)
        for kind in taken:
            settings.convert(value, kind, f"grpo.{name}", where)


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
        tree = check_section(tree.setdefault(part, {}), part, f"override {text!r}")
    tree[last] = parsed


__all__ = [
    "AutolabelConfig",
    "AwareConfig",
    "BaseConfig",
    "ColdstartConfig",
    "Config",
    "ConsolidateConfig",
    "DataConfig",
    "EndpointConfig",
    "EvalConfig",
    "GRPOConfig",
    "ModelConfig",
    "Noise",
    "SearchConfig",
    "WorldConfig",
    "describe",
    "from_dict",
    "load_config",
]
