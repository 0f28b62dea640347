"""What worlds have in common whose problems are made from a seed and whose truth is exact.

A world says what its problems, proofs and critiques are; from here come its sets of problems, with those that
models are measured on kept apart, the choice between its own small models and a pretrained one, and the words
and rubrics that worlds share.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from nanov2.domains.domain import CritiqueGrade, fresh_model, pretrained_model
from nanov2.domains.language import V_START, Demonstration, Language, TurnLanguage, one_answer
from nanov2.errors import InputError
from nanov2.hub.chat import ChatTokenizer
from nanov2.model.decoder import Model
from nanov2.records import ProblemRecord, ProofRecord

if TYPE_CHECKING:
    from nanov2.run.config import Config

RUBRIC_MV = """\
Only the issues that the critique claims count. An issue is real where its line is true.
1: all are real, and the score follows from the findings (to claim none is reasonable).
0.5: some are invented, or the score does not follow.
0: all are invented."""
KEPT = 1 << 14  # views whose faults and errors are worked out once
DRAWS = 10_000  # problems drawn in a row without a new one, before a difficulty is called too narrow

# --- words and rubrics that the worlds' texts share

BLANKS = " \t\r\n"  # what may stand around a text; other characters that count as spaces somewhere are text
BOXED = {0.0: "\\boxed{0}", 0.5: "\\boxed{0.5}", 1.0: "\\boxed{1}"}
REAL = {True: ", so this issue is real.", False: ", so this issue is invented."}
NO_CLAIM = "The evaluation claims no issue."
FOLLOWS = {
    True: "The score follows from the findings.",
    False: "The score does not follow from the findings.",
}
Key = TypeVar("Key")


def meaning(words: dict[Key, str], text: str) -> Key | None:
    """What a phrase says; None where it is none of the words."""
    return next((key for key, phrase in words.items() if phrase == text), None)


def meta_rubric(real: Sequence[bool], follows: bool) -> float:
    """ms, from whether each claimed issue is real, and whether the score follows from the findings.

    1: all are real and the score follows (to claim no issue is reasonable); 0: all are invented; else 0.5.
    What a critique misses does not count: that is what R_score pays for.
    """
    if real and not any(real):
        return 0.0
    return 1.0 if all(real) and follows else 0.5


# --- truth and domain


class ExactTruth:
    """The exact expert, by three functions of a world: they parse a problem and grade what is about it."""

    parse_problem: Callable[[str], Any]
    grade_proof: Callable[[Any, str], float]
    grade_critique: Callable[[Any, str, str], CritiqueGrade]

    def score(self, problem: str, proof: str | None) -> float:
        parsed = self.parse_problem(problem)
        if parsed is None:
            return math.nan
        return self.grade_proof(parsed, proof) if proof is not None else 0.0

    def examine(self, problem: str, proof: str, critique: str) -> CritiqueGrade | None:
        parsed = self.parse_problem(problem)
        return self.grade_critique(parsed, proof, critique) if parsed else None


class Difficulties(Protocol):
    """A section of the configuration that says how hard a world's problems are."""

    @property
    def labelled(self) -> Any: ...
    @property
    def hard(self) -> Any: ...
    @property
    def gets_harder(self) -> bool: ...
    def hard_in(self, lap: int) -> Any:
        """The harder problems of a lap."""


class SeededDomain:
    """A world whose problems have a `text`, a `kind`, and a `form`: the same for problems that differ in
    nothing that matters."""

    own_language: type[TurnLanguage]

    def __init__(self, config: Config):
        self.config = config

    # --- what a world says

    @property
    def difficulties(self) -> Difficulties:
        """The section of the configuration that says how hard problems are."""
        raise NotImplementedError

    def make(self, purpose: str, i: int, difficulty: Any) -> Any:
        """The i-th problem for a purpose."""
        raise NotImplementedError

    def too_few(self, purpose: str, difficulty: Any, drawn: int, n: int) -> str:
        """What to say where only `drawn` of n problems for a purpose differ."""
        raise NotImplementedError

    def own_tokenizer(self) -> ChatTokenizer:
        """That of the world's own small models."""
        raise NotImplementedError

    # --- models

    def start(self) -> tuple[Model, ChatTokenizer]:
        if self.config.pretrained.folder:
            return pretrained_model(self.config)
        tokenizer = self.own_tokenizer()
        return fresh_model(self.config, tokenizer), tokenizer

    def language(self, tokenizer: ChatTokenizer | None) -> Language:
        if tokenizer and tokenizer.task:
            return self.own_language(tokenizer, strict=True)
        return Language(tokenizer, self.config.pretrained.strict, self.config.pretrained.alone)

    def shown(self, demonstration: Demonstration, rng: random.Random) -> Demonstration:
        """A demonstration as the base reads it: a pretrained model, in one answer."""
        chat = self.config.pretrained
        return one_answer(demonstration, rng, chat.alone) if chat.folder else demonstration

    # --- problems

    def problems(self) -> dict[str, list[ProblemRecord]]:
        """Held-out and validation problems differ in form from all others, and from the demonstrations'."""
        return self._sets

    def sizes(self) -> tuple[dict, dict]:
        """Set → (difficulty, number of problems): of those that models are measured on, and trained on."""
        w, d, laps = self.config.world, self.difficulties, self.config.laps
        measured = {
            "held_out": (d.labelled, w.held_out),
            "held_out_hard": (d.hard, w.held_out),
            "validation": (d.labelled, w.validation),
            "validation_hard": (d.hard, w.validation),
        }
        trained = {"train": (d.labelled, w.problems), "train_hard": (d.hard, w.hard_problems)}
        if d.gets_harder:
            measured["held_out_hardest"] = (d.hard_in(laps), w.held_out)
            for lap in range(2, laps + 1):
                measured[f"validation_hard{lap}"] = (d.hard_in(lap), w.validation)
                trained[f"train_hard{lap}"] = (d.hard_in(lap), w.hard_problems)
        return measured, trained

    @cached_property
    def _sets(self) -> dict[str, list[ProblemRecord]]:
        measured, trained = self.sizes()
        self._kept_out: set[str] = set()  # forms of problems that models are measured on
        sets: dict[str, list] = {}
        for name, (difficulty, n) in measured.items():
            sets[name] = self._draw(name, difficulty, n, self._kept_out)
            self._kept_out |= {p.form for p in sets[name]}
        seen: set[str] = set()
        for name, (difficulty, n) in trained.items():
            sets[name] = self._draw(name, difficulty, n, self._kept_out, seen)
            seen |= {p.text for p in sets[name]}
        return {name: [ProblemRecord(p.text, p.kind) for p in drawn] for name, drawn in sets.items()}

    def _draw(
        self, purpose: str, difficulty: Any, n: int, forms: set[str], texts: set[str] | None = None
    ) -> list:
        """n problems by (seed, purpose): none has a form of `forms`. With `texts` none of those texts either,
        and all texts differ; without, all forms differ."""
        forms, known = set(forms), None if texts is None else set(texts)
        drawn: list = []
        i = last = 0
        while len(drawn) < n:
            problem = self.make(purpose, i, difficulty)
            i += 1
            if problem.form not in forms and (known is None or problem.text not in known):
                drawn.append(problem)
                last = i
                (forms if known is None else known).add(problem.form if known is None else problem.text)
            elif i - last >= DRAWS:
                raise InputError(self.too_few(purpose, difficulty, len(drawn), n))
        return drawn

    def new_problems(self, lap: int, n: int) -> list[ProblemRecord]:
        seen = {p.problem for problems in self._sets.values() for p in problems}
        drawn = self._draw(f"autolabel lap {lap}", self.difficulties.hard_in(lap), n, self._kept_out, seen)
        return [ProblemRecord(p.text, p.kind) for p in drawn]

    def graded_proofs(self) -> dict[str, list[ProofRecord]]:
        return {}


def lines_of(critique: str) -> list[str]:
    """A critique's lines, without those of the paper's form."""
    lines = filter(None, map(str.strip, critique.split("\n")))
    return [line for line in lines if not line.startswith(V_START) and "\\boxed" not in line]
