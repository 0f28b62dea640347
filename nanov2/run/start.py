"""What is checked before a run makes anything: whether its parts fit together, and into memory."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from nanov2.distributed.ranks import Ranks
from nanov2.distributed.sharding import check_ranks
from nanov2.domains.domain import Domain, FindingTruth, Solved
from nanov2.errors import InputError
from nanov2.method.config import JudgedConfig, ProverConfig
from nanov2.method.experts import GRADED, MarksExpert
from nanov2.run.config import Config, sections, trained_sections
from nanov2.run.costs import Costs, Hardware, shape_of


def check_start(config: Config, domain: Domain, ranks: Ranks) -> None:
    """InputError for what would end a run hours later: an expert or judge that cannot be asked, a model that
    does not fit into memory."""
    check_ranks(ranks)
    _check_expert(config, domain)
    _check_judges(config, domain)
    _check_engine(config)
    check_lora(config)
    _check_off_policy(config, ranks)
    _check_credit(config, domain)
    _check_optimizer(config)
    _check_memory(config, ranks)
    if config.autolabel.problems > len(domain.problems().get("train_hard", [])):
        for lap in (1, config.laps):  # are there as many different ones?
            domain.new_problems(lap, config.autolabel.problems)


def check_lora(config: Config) -> None:
    if config.lora.rank and config.parallel.shard != "none":
        raise InputError("lora.rank is for models that are whole on each rank: set --parallel.shard=none")


def _check_expert(config: Config, domain: Domain) -> None:
    folder, weak = config.pretrained.folder, config.coldstart.expert
    for name, given, known in config.experts:
        if given not in known and not Path(given).is_file():
            raise InputError(f"{name} {given!r}: no such file, and none of {', '.join(filter(None, known))}")
        if given == "exact" and domain.truth is None:
            raise InputError(
                f'{name} = "exact": nobody knows the truth here; set --{name}=page, person, or a file'
            )
    if weak == "endpoint":
        _check_endpoint(config, "coldstart.expert")
    if config.expert in GRADED and not any(domain.graded_proofs().values()):
        raise InputError(
            f'expert = "{config.expert}" uses the grades of people, and domain {config.domain!r} has none: '
            "set --expert=exact, person, page, or a file"
        )
    if config.scorer not in GRADED and not domain.graded_proofs().get("train"):
        if weak == "nobody":
            raise InputError('coldstart.expert = "nobody": there would be no score to train a verifier on')
        if empty := [name for name in ("problems", "subset") if not getattr(config.coldstart, name)]:
            raise InputError(f"coldstart.{empty[0]} = 0: there would be no proof to train a verifier on")
    if config.expert == "marks":
        graded = [r for records in domain.graded_proofs().values() for r in records]
        MarksExpert().score_proofs([r for r in graded if r.score is not None])
    if folder and not (Path(folder) / "config.json").is_file():
        raise InputError(f"pretrained.folder {folder!r} is no model folder: config.json is missing")


def _check_judges(config: Config, domain: Domain) -> None:
    for name in trained_sections():
        section = getattr(config, name)
        if isinstance(section, ProverConfig) and section.keep_best == "truth" and domain.truth is None:
            raise InputError(f'{name}.keep_best = "truth": nobody knows the truth here; set "none"')
        if not isinstance(section, JudgedConfig) or section.judge != "endpoint":
            continue
        _check_endpoint(config, f"{name}.judge")


def _check_endpoint(config: Config, name: str) -> None:
    """Whether the setting `name` = "endpoint" can be meant."""
    if not config.pretrained.folder:
        raise InputError(f'{name} = "endpoint" is for pretrained models: set pretrained.folder')
    if not config.endpoint.url.startswith(("http://", "https://")) or not config.endpoint.model:
        raise InputError(f'{name} = "endpoint" needs endpoint.url (http://…/v1) and endpoint.model')


def _check_engine(config: Config) -> None:
    rollout = config.rollout
    judged = [getattr(config, name) for name in trained_sections()]
    asks = any(isinstance(section, JudgedConfig) and section.judge == "engine" for section in judged)
    if rollout.engine == "own":
        if asks:
            raise InputError('judge = "engine" needs rollout.engine, "vllm" or "sglang"')
        return
    if not rollout.start and (not rollout.urls or (asks and not rollout.judge_urls)):
        missing = "judge_urls" if rollout.urls else "urls"
        raise InputError(
            f"rollout.engine {rollout.engine!r} needs rollout.{missing}, or --rollout.start=true"
        )
    if shape_of(config).embed_conv:
        raise InputError(
            f"rollout.engine {rollout.engine!r} serves models of the Hugging Face families, and this one "
            "mixes preceding tokens into embeddings: set pretrained.folder, or --model.embed_conv=0"
        )


def _check_off_policy(config: Config, ranks: Ranks) -> None:
    same = config.rollout.engine == "own" and ranks.precision == "fp32"  # sampler and trainer
    for name in trained_sections():
        section = getattr(config, name)
        if same and section.off_policy_delta and section.optimizer_steps == 1:
            raise InputError(
                f"{name}.off_policy_delta: in fp32, with one optimiser step a rollout, every completion is "
                "on policy: set epochs or minibatches above 1, or off_policy_delta = 0"
            )


def _check_optimizer(config: Config) -> None:
    """Muon makes whole matrices orthogonal."""
    for name in sections():
        kind = getattr(getattr(config, name), "optimizer", "")
        if kind == "muon" and (config.parallel.shard != "none" or config.lora.rank):
            held = "lora.rank" if config.lora.rank else "parallel.shard"
            raise InputError(f'{name}.optimizer = "muon" is for whole matrices, not with {held}: set "adamw"')


def _check_credit(config: Config, domain: Domain) -> None:
    names = (
        isinstance(domain.truth, FindingTruth) and not config.pretrained.folder and config.expert == "exact"
    )
    if config.verifier.credit == "finding" and not names:
        raise InputError(
            'verifier.credit = "finding" needs the exact expert of a domain that names findings, and its own '
            'small model (domain = "order"): set "answer"'
        )
    if config.aware.on and not isinstance(domain, Solved):
        raise InputError(f"aware.on: domain {config.domain!r} has no reference solutions: set false")


def _check_memory(config: Config, ranks: Ranks) -> None:
    device = Hardware(1.0, 1.0, 1.0, memory_of(ranks.device), gpu=ranks.device.type == "cuda")
    costs = Costs(config, ranks.size, ranks.per_node, device)
    together = 1 if device.gpu else min(ranks.size, ranks.per_node)  # ranks that share a machine's memory
    judges = [getattr(config, name) for name in trained_sections()]
    asks = any(isinstance(section, JudgedConfig) and section.judge == "engine" for section in judges)
    trained, served = together * costs.state(), costs.servers(asks) * costs.server()
    if trained + served <= device.memory:
        return
    how = f" by updates of rank {config.lora.rank}" if costs.lora else ""
    engines = f", and engines started here take {served / 1e9:,.1f} GB" if served else ""
    cure = "smaller shares for them in rollout.options, servers elsewhere, " if served else ""
    cure += "" if costs.lora else "lora.rank (whole models), or shards over more ranks "
    raise InputError(
        f"training {costs.params:,} parameters{how} holds {trained / 1e9:,.1f} GB{engines}; this machine has "
        f"{device.memory / 1e9:,.1f} GB: take a smaller model, {cure}(see --dry-run)"
    )


def memory_of(device: torch.device) -> float:
    """Bytes of a device; infinity where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")
