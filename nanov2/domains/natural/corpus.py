"""𝒟p and 𝒟v of natural-language mode: the graded proofs of [data], split by problem."""

from __future__ import annotations

import dataclasses

from nanov2.domains.natural.data import load, split
from nanov2.errors import InputError
from nanov2.records import ProblemRecord, ProofRecord, Record
from nanov2.run.config import Config

PARTS = ("train", "validation", "held_out")


def graded_proofs(config: Config) -> dict[str, list[ProofRecord]]:
    """The proofs of data.path in three parts, by problem: no problem is in two of them."""
    share, seed = config.data.held_out, config.seed
    if not config.data.path:
        raise InputError("natural-language mode learns from graded proofs: set data.path")
    if not share:
        raise InputError("data.held_out must be above 0: the share of problems that figures are measured on")
    parts = three_parts(load(config.data, ProofRecord).records, share, share / (1 - share), seed)
    for name, records in parts.items():
        if not records:
            raise InputError(f"{config.data.path}: no problem is left for {name}; change data.held_out")
    return parts


def problem_sets(config: Config) -> dict[str, list[ProblemRecord]]:
    """Sets like those of the embedded world; harder problems only where data.problems names a file."""
    if config.expert == "world":
        raise InputError(
            'expert "world" knows only the embedded world: set --expert=grades (those of [data]), page, '
            "person, or a file"
        )
    sets = {name: distinct(records) for name, records in graded_proofs(config).items()}
    if config.data.problems:
        known = {r.problem for records in sets.values() for r in records}
        source = dataclasses.replace(config.data, path=config.data.problems)
        new = [r for r in load(source, ProblemRecord).records if r.problem not in known]
        hard = three_parts(new, config.data.held_out, config.data.held_out, config.seed)
        if not all(hard.values()):
            raise InputError(f"{config.data.problems}: too few problems that are not in {config.data.path}")
        sets |= {f"{name}_hard": records for name, records in hard.items()}
    return sets


def three_parts(records: list[Record], share: float, watched: float, seed: int) -> dict[str, list[Record]]:
    """PARTS by problem: `share` of the problems held out, `watched` of the rest for validation."""
    rest, held_out = split(records, share, seed)
    train, validation = split(rest, watched, seed)
    return dict(zip(PARTS, (train, validation, held_out), strict=True))


def distinct(records: list[ProofRecord]) -> list[ProblemRecord]:
    return [ProblemRecord(p) for p in dict.fromkeys(r.problem for r in records)]
