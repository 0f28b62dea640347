"""The embedded world as a domain: problems made from a seed, exact truth, imperfect demonstrations."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import TYPE_CHECKING

import torch

from nanov2.distributed.ranks import derive_rng
from nanov2.domains.domain import CritiqueGrade, View
from nanov2.domains.language import Demonstration, Language
from nanov2.domains.order.demos import make_demonstration
from nanov2.domains.order.prompts import WorldPrompts
from nanov2.domains.order.tokenizer import Tokenizer
from nanov2.domains.order.world import Difficulty, grade_critique, grade_proof, make_problem, parse_problem
from nanov2.model.decoder import Model
from nanov2.records import ProblemRecord, ProofRecord

if TYPE_CHECKING:
    from nanov2.run.config import Config


class OrderTruth:
    """The exact expert."""

    def score(self, problem: str, proof: str | None) -> float:
        parsed = parse_problem(problem)
        if parsed is None:
            return math.nan
        return grade_proof(parsed, proof) if proof is not None else 0.0

    def examine(self, problem: str, proof: str, critique: str) -> CritiqueGrade | None:
        parsed = parse_problem(problem)
        return grade_critique(parsed, proof, critique) if parsed else None


class OrderDomain:
    truth = OrderTruth()

    def __init__(self, config: Config):
        self.config = config

    def start(self):
        c, tokenizer = self.config, Tokenizer.for_world()
        model = Model(dataclasses.replace(c.model, vocab_size=tokenizer.vocab_size))
        return model.init_weights(torch.Generator().manual_seed(c.seed)), tokenizer

    def language(self, tokenizer) -> Language:
        return WorldPrompts(tokenizer)

    def problems(self) -> dict[str, list[ProblemRecord]]:
        seen: set[str] = set()
        w = self.config.world
        sizes = {
            "held_out": (w.labelled, w.held_out),
            "held_out_hard": (w.hard, w.held_out),
            "validation": (w.labelled, w.validation),
            "validation_hard": (w.hard, w.validation),
            "train": (w.labelled, w.problems),
            "train_hard": (w.hard, w.hard_problems),
        }
        if w.gets_harder:  # after the others, which are the same whether laps get harder or not
            sizes["held_out_hardest"] = (w.hard_in(self.config.laps), w.held_out)
            for lap in range(2, self.config.laps + 1):
                sizes[f"validation_hard{lap}"] = (w.hard_in(lap), w.validation)
                sizes[f"train_hard{lap}"] = (w.hard_in(lap), w.hard_problems)
        return {name: self._draw(name, d, n, seen) for name, (d, n) in sizes.items()}

    def new_problems(self, lap: int, n: int) -> list[ProblemRecord]:
        seen = {p.problem for problems in self.problems().values() for p in problems}
        return self._draw(f"autolabel lap {lap}", self.config.world.hard_in(lap), n, seen)

    def _draw(self, purpose: str, difficulty: Difficulty, n: int, avoid: set[str]) -> list[ProblemRecord]:
        records, i = [], 0
        while len(records) < n:
            problem = make_problem(derive_rng(self.config.seed, purpose, i), difficulty)
            i += 1
            if problem.text not in avoid:
                avoid.add(problem.text)
                records.append(ProblemRecord(problem.text, problem.kind))
        return records

    def graded_proofs(self) -> dict[str, list[ProofRecord]]:
        return {}

    def demonstration(self, rng: random.Random, progress: float) -> Demonstration:
        w = self.config.world
        everything = Difficulty(
            (w.labelled_chain[0], w.hard_chain[1]), (w.labelled_facts[0], w.hard_facts[1])
        )
        stages = ((0.12, Difficulty((2, 2), (3, 4))), (0.28, Difficulty((2, 3), (3, 6))), (1.1, everything))
        difficulty = next(d for share, d in stages if progress < share)
        return make_demonstration(rng, make_problem(rng, difficulty), self.config.noise)

    def view(self, record: object) -> View:
        return View(statement=record.problem)
