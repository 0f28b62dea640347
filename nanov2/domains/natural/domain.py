"""Mathematics in natural language: proofs that people graded, and a chat model that learns from them.

Nobody knows the truth of a new proof: figures that need it are left out, and an expert (`--expert`) scores
what is new.
"""

from __future__ import annotations

import dataclasses
import random
import re
from functools import cached_property
from typing import TYPE_CHECKING

from nanov2.distributed.ranks import derive_rng
from nanov2.domains.data import load, split
from nanov2.domains.domain import View, pretrained_model
from nanov2.domains.language import MV_END, MV_START, RUBRIC_V, V_END, V_START, Demonstration, Language
from nanov2.domains.marks import SHORTEST, spoken
from nanov2.errors import InputError
from nanov2.hub.chat import ChatTokenizer
from nanov2.model.decoder import Model
from nanov2.records import CritiqueRecord, ProblemRecord, ProofRecord, Record

PARTS = ("train", "validation", "held_out")
REMARKS = {  # of the demonstrations, which teach the form alone
    1.0: "Every step follows from the ones before it, and what was asked is proved. I find no issue.",
    0.5: "The idea is right, but a detail is left out: one step is stated without its reason.",
    0.0: "A step does not follow from the ones before it, and without it the proof fails.",
}

if TYPE_CHECKING:
    from nanov2.run.config import Config


class NaturalDomain:
    """The graded proofs of [data], split by problem; the model of pretrained.folder is the base."""

    truth = None

    def __init__(self, config: Config):
        if not config.pretrained.folder:
            raise InputError("domain natural starts from a pretrained model: set pretrained.folder")
        if config.expert == "exact":
            raise InputError(
                "nobody knows the truth of natural-language proofs: set --expert=grades or marks (those of "
                "[data]), page, person, or a file of grades"
            )
        self.config = config

    def start(self) -> tuple[Model, ChatTokenizer]:
        return pretrained_model(self.config)

    def language(self, tokenizer: ChatTokenizer | None) -> Language:
        given = self.config.pretrained
        return spoken(self.config.expert)(tokenizer, given.strict, given.alone)

    @cached_property
    def _graded(self) -> dict[str, list[ProofRecord]]:
        data, seed = self.config.data, self.config.seed
        if not data.path:
            raise InputError("domain natural learns from graded proofs: set data.path")
        if not data.held_out:
            raise InputError("data.held_out must be above 0: the share of problems that figures are made on")
        watched = data.held_out / (1 - data.held_out)
        parts = three_parts(load(data, ProofRecord).records, data.held_out, watched, seed)
        for name, records in parts.items():
            if not records:
                raise InputError(f"{data.path}: no problem is left for {name}; change data.held_out")
        return parts

    def graded_proofs(self) -> dict[str, list[ProofRecord]]:
        return self._graded

    def problems(self) -> dict[str, list[ProblemRecord]]:
        """Harder problems only where data.problems names a file."""
        data = self.config.data
        sets = {name: distinct(records) for name, records in self._graded.items()}
        if data.problems:
            known = {r.problem for records in sets.values() for r in records}
            source = dataclasses.replace(data, path=data.problems)
            new = [r for r in load(source, ProblemRecord).records if r.problem not in known]
            hard = three_parts(new, data.held_out, data.held_out, self.config.seed)
            if not all(hard.values()):
                raise InputError(f"{data.problems}: too few problems that are not in {data.path}")
            sets |= {f"{name}_hard": records for name, records in hard.items()}
        return sets

    def new_problems(self, lap: int, n: int) -> list[ProblemRecord]:
        """Drawn from the harder problems, or where there are none, from those of the graded proofs."""
        sets = self.problems()
        hard = sets.get("train_hard") or sets["train"]
        return derive_rng(self.config.seed, "autolabel", lap).sample(hard, min(n, len(hard)))

    @cached_property
    def _short(self) -> list[ProofRecord]:
        """The shorter half of the graded proofs, which are cheap to learn the form from."""
        records = sorted(self._graded["train"], key=lambda r: len(r.problem) + len(r.proof))
        return records[: (len(records) + 1) // 2]

    def demonstration(self, rng: random.Random, progress: float) -> Demonstration:
        """One of the three tasks in its form; its score is drawn blindly: it teaches the form, not to judge.

        A large model follows the form because it is told to; a small one needs to see it, or no answer has a
        score and GRPO has nothing to choose from.
        """
        record, score = rng.choice(self._short), rng.choice(list(REMARKS))
        task = rng.choice(("prove", "verify", "meta"))
        quote = rng.choice(sentences(record.proof)) if self.config.expert == "marks" else ""
        answer = proof_in_form(record.proof, score, quote)
        if task == "prove":
            if self.config.pretrained.alone and rng.random() < 0.5:
                return Demonstration(record.problem, (("self_verify", self._trajectory(rng, record)),))
            return Demonstration(record.problem, (("prove", answer),))
        turns = [("prove", answer), ("verify", critique_in_form(score, quote))]
        if task == "meta":
            turns.append(("meta", meta_critique_in_form(rng.choice(list(REMARKS)))))
        return Demonstration(record.problem, tuple(turns))

    def _trajectory(self, rng: random.Random, record: ProofRecord) -> str:
        """A proof found right, or first a part of it found wanting and then the whole, in one answer."""
        lines = [part for part in re.split(r"(?<=[.:])\s+|\n", record.proof) if part.strip()]
        whole = proof_in_form(record.proof, 1.0)
        if len(lines) < 2 or rng.random() < 0.5:
            return whole
        draft = " ".join(lines[: max(1, len(lines) // 2)])
        return f"{proof_in_form(draft, rng.choice((0.0, 0.5)))}\n\n{whole}"

    def view(self, record: ProblemRecord | ProofRecord | CritiqueRecord) -> View:
        return View(statement=record.problem, rubric=RUBRIC_V)


def critique_in_form(score: float, quote: str = "") -> str:
    """A verifier's answer, for the form alone. `quote`: the words of the proof that it finds fault with."""
    remark = f'Issue: "{quote}": {REMARKS[score]}' if quote and score < 1 else REMARKS[score]
    return f"{V_START}\n{remark}\n\n{V_END} \\boxed{{{score:g}}}"


def proof_in_form(proof: str, score: float, quote: str = "") -> str:
    """A generator's answer: a proof with its evaluation."""
    return f"## Solution\n\n{proof}\n\n## Self Evaluation\n\n{critique_in_form(score, quote)}"


def sentences(proof: str) -> list[str]:
    """What a critique can quote: lines and sentences without quotation marks, a few words each."""
    parts = [part.strip() for part in re.split(r"(?<=[.:])\s|\n", proof.replace('"', "\n"))]
    return [part[:80] for part in parts if len(part) >= SHORTEST] or [proof.strip()[:80]]


def meta_critique_in_form(quality: float) -> str:
    """A meta-verifier's answer."""
    remark = "What it claims is there, and its score follows." if quality else "Its claims are not there."
    return f"{MV_START}\n{remark}\n\n{MV_END} \\boxed{{{quality:g}}}"


def three_parts(records: list[Record], share: float, watched: float, seed: int) -> dict[str, list[Record]]:
    """PARTS by problem: `share` of the problems held out, `watched` of the rest for validation."""
    rest, held_out = split(records, share, seed)
    train, validation = split(rest, watched, seed)
    return dict(zip(PARTS, (train, validation, held_out), strict=True))


def distinct(records: list[ProofRecord]) -> list[ProblemRecord]:
    return [ProblemRecord(p) for p in dict.fromkeys(r.problem for r in records)]
