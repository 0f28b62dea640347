"""The embedded world as a domain: problems made from a seed, exact truth, imperfect demonstrations."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from nanov2.distributed.ranks import derive_rng
from nanov2.domains.domain import CritiqueGrade, View, fresh_model
from nanov2.domains.language import Demonstration, Language, TurnLanguage
from nanov2.domains.order.demos import make_demonstration
from nanov2.domains.order.tokenizer import order_tokenizer
from nanov2.domains.order.world import (
    Difficulty,
    grade_critique,
    grade_proof,
    make_problem,
    parse_critique,
    parse_problem,
    parse_proof,
)
from nanov2.hub.chat import ChatTokenizer, load_model
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


class OrderLanguage(TurnLanguage):
    """The world's own models write proofs that can be read as chains, or none."""

    def is_proof(self, text: str | None) -> bool:
        return text is not None and parse_proof(text) is not None

    def claims_issue(self, critique: str) -> bool:
        """Any finding against the proof, or a score below 1."""
        parsed = parse_critique(critique)
        if parsed is None:
            return super().claims_issue(critique)
        return bool(parsed.claims) or not (parsed.ends and parsed.strong and parsed.score == 1)


class OrderDomain:
    """Problems made from the seed; nothing is read from anywhere."""

    truth = OrderTruth()

    def __init__(self, config: Config):
        self.config = config

    def start(self) -> tuple[Model, ChatTokenizer]:
        if self.config.pretrained.folder:
            return load_model(self.config.pretrained.folder)
        tokenizer = order_tokenizer()
        return fresh_model(self.config, tokenizer), tokenizer

    def language(self, tokenizer: ChatTokenizer | None) -> Language:
        """Turn by turn for a model from scratch, in one answer for a chat model."""
        if tokenizer and tokenizer.task:
            return OrderLanguage(tokenizer, strict=True)
        return Language(tokenizer, self.config.pretrained.strict)

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
