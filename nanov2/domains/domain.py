r"""What the cycle runs on: a domain, the language that its proofs are written in, and who knows the truth.

Three interfaces, because three kinds of code need them. `Language` (language.py) is all that tasks, judges,
labels and search know. `Truth` feeds figures and the exact expert, and nothing else: no reward has it among
its arguments. `Domain` is what the phases of train.py read problems, proofs and demonstrations from.

A whole domain, trained from scratch (tests/domains/test_second_domain.py runs the cycle on these lines):

    # sums.py: python train.py --phase=flywheel --domain=sums:Sums
    import re

    from nanov2.distributed.ranks import derive_rng
    from nanov2.domains.domain import CritiqueGrade, View, fresh_model
    from nanov2.domains.language import HEADING, MV_END, MV_START, V_END, V_START, Demonstration
    from nanov2.domains.language import TurnLanguage, read_score, reports_issue
    from nanov2.domains.phrases import phrase_tokenizer
    from nanov2.records import ProblemRecord

    SIZES = {"train": 400, "validation": 12, "held_out": 24, "train_hard": 200, "held_out_hard": 24}
    FINE, WRONG, REAL = "Every term was added up.", "A term is wrong.", "The issue is real."
    FORMS = (HEADING, V_START, V_END, MV_START, MV_END, *(f" \\boxed{{{s}}}" for s in ("0", "0.5", "1")))
    PHRASES = ("Show that $", "$.", " + ", " = ", "\n", FINE, WRONG, REAL, *FORMS, *"0123456789")

    def value(term):
        return sum(map(int, re.findall(r"[0-9]+", term)))

    class SumsTruth:
        def score(self, problem, proof):  # of a chain 17 + 26 = 30 + 13 = 43; one wrong term is half right
            left, right = re.search(r"\$(.+) = (.+)\$", problem).groups()
            terms = (proof or "").split(" = ")
            if len(terms) < 3 or (terms[0], terms[-1]) != (left, right):
                return 0.0
            wrong = sum(value(t) != value(left) for t in terms)
            return (1.0, 0.5)[wrong] if wrong < 2 else 0.0

        def examine(self, problem, proof, critique):
            claims, faulty = reports_issue(critique), self.score(problem, proof) < 1
            if read_score(critique) is None:
                return None
            invented, missed = int(claims and not faulty), int(faulty and not claims)
            return CritiqueGrade(0.0 if invented else 1.0, (not (invented or missed),), invented, missed)

    class Sums:
        truth = SumsTruth()

        def __init__(self, config):
            self.config = config

        def start(self):
            tokenizer = phrase_tokenizer(PHRASES)
            return fresh_model(self.config, tokenizer), tokenizer

        def language(self, tokenizer):
            return TurnLanguage(tokenizer, strict=True)

        def _draw(self, name, n, avoid):
            found, i, most = [], 0, 900 if "hard" in name else 90
            while len(found) < n:
                rng = derive_rng(self.config.seed, name, i)
                a, b, i = rng.randrange(10, most), rng.randrange(10, most), i + 1
                if (problem := f"Show that ${a} + {b} = {a + b}$.") not in avoid:
                    avoid.add(problem)
                    found.append(ProblemRecord(problem))
            return found

        def problems(self):
            seen = set()
            return {name: self._draw(name, n, seen) for name, n in SIZES.items()}

        def new_problems(self, lap, n):
            known = {r.problem for records in self.problems().values() for r in records}
            return self._draw(f"hard, lap {lap}", n, known)

        def graded_proofs(self):
            return {}

        def demonstration(self, rng, progress):
            a, b, slip = rng.randrange(10, 90), rng.randrange(10, 90), rng.choice((0, 0, 1))
            proof = f"{a} + {b} = {a // 10 * 10 + b // 10 * 10} + {a % 10 + b % 10 + slip} = {a + b}"
            critique = f"{V_START}\n{WRONG if slip else FINE}\n{V_END} \\boxed{{{0.5 if slip else 1}}}"
            meta = f"{MV_START}\n{REAL if slip else FINE}\n{MV_END} \\boxed{{1}}"
            turns = (("prove", HEADING + proof), ("verify", critique), ("meta", meta))
            return Demonstration(f"Show that ${a} + {b} = {a + b}$.", turns)

        def view(self, record):
            return View(statement=record.problem)
"""

from __future__ import annotations

import dataclasses
import importlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch

from nanov2.domains.language import Demonstration, Language
from nanov2.errors import InputError
from nanov2.hub.chat import ChatTokenizer, lazy_model, load_model
from nanov2.model.decoder import Model
from nanov2.records import CritiqueRecord, ProblemRecord, ProofRecord

if TYPE_CHECKING:
    from nanov2.run.config import Config


class CritiqueGrade(NamedTuple):
    """The expert's judgement of a critique."""

    quality: (
        float  # ms: 1 all claimed issues are real and the score follows; 0.5 some invented; 0 all invented
    )
    marks: tuple[bool, ...]  # per finding, in the order of the critique: whether it is right
    invented: int  # claimed issues where there is none
    missed: int  # issues of the proof that the critique passes over


class Truth(Protocol):
    """Exact grades, where somebody knows them: for figures and the expert, never for a reward."""

    def score(self, problem: str, proof: str | None) -> float:
        """s of a proof; NaN where nobody knows."""

    def examine(self, problem: str, proof: str, critique: str) -> CritiqueGrade | None:
        """The grade of a critique; None where nobody knows."""


@runtime_checkable
class FindingTruth(Truth, Protocol):
    """A truth that can name findings: an expert's marks on 𝒟v, for `verifier.credit = "finding"`."""

    def findings(self, problem: str, proof: str) -> frozenset[str]:
        """The findings of the exact critique as texts; empty where the proof cannot be judged."""


@dataclass(frozen=True)
class View:
    """How a page shows a record: texts in Markdown with $…$, cut into their steps and findings."""

    statement: str = ""  # the problem
    opening: str = ""  # the words before the facts, where the statement is an opening, facts and a goal
    facts: tuple[str, ...] = ()  # what is given, one a line
    used: tuple[bool, ...] = ()  # of each fact: whether the proof has a step of it
    goal: str = ""  # what is to be shown, where the statement is so divided
    steps: tuple[str, ...] = ()  # of the proof
    findings: tuple[tuple[int | None, str, bool], ...] = ()  # (step it is about, text, claims an issue)
    rubric: str = ""
    form: str = ""  # how a critique is written so that the truth can read its findings
    kind: tuple[str, ...] = ()  # of the problem: what figures are given for apart, such as its difficulty
    faults: tuple[str, ...] = ()  # of the proof, by the truth: the names of its kinds of fault
    errors: tuple[str, ...] = ()  # of the critique, by the truth: the names of its kinds of error


class Domain(Protocol):
    """Problems, proofs and demonstrations of one kind of mathematics. Made from a run's configuration.

    `--domain=` names one: "order", "natural", or "my_module:MyDomain" of one's own. One with reference
    solutions is Solved too, for the phase `aware`.
    """

    truth: Truth | None

    def start(self) -> tuple[Model, ChatTokenizer]:
        """The model that the base is trained from (fresh or pretrained weights: `fresh_model`,
        `pretrained_model`) and its tokenizer."""

    def language(self, tokenizer: ChatTokenizer | None) -> Language:
        """The language, bound to a model's tokenizer; None: texts and messages alone, for an endpoint."""

    def problems(self) -> dict[str, list[ProblemRecord]]:
        """Disjoint sets: "train", "validation", "held_out", and, where there are harder ones, the same names
        with "_hard" (a later lap's: "train_hard2", …; as hard as the last lap's: "held_out_hardest")."""

    def new_problems(self, lap: int, n: int) -> list[ProblemRecord]:
        """n hard problems for step 4 of a lap, none of which is in `problems()`."""

    def graded_proofs(self) -> dict[str, list[ProofRecord]]:
        """Proofs that people graded, by set; empty where the weak prover writes all of 𝒟v."""

    def demonstration(self, rng: random.Random, progress: float) -> Demonstration:
        """A document of the base's training; `progress` from 0 to 1 makes it harder."""

    def view(self, record: ProblemRecord | ProofRecord | CritiqueRecord) -> View:
        """How a page shows a record."""


@runtime_checkable
class Solved(Protocol):
    """What a domain with reference solutions has beside."""

    def solution(self, problem: str) -> str | None:
        """A right proof of a problem; None where there is none at hand."""


def fresh_model(config: Config, tokenizer: ChatTokenizer) -> Model:
    """A model with random weights drawn by the seed, of the shape of [model]. For ranks that share one in
    shards it is empty, with these weights as its `source`."""
    shape = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)
    if config.parallel.shard != "none":
        with torch.device("meta"):
            return Model(shape).draw_lazily(config.seed)
    return Model(shape).init_weights(torch.Generator().manual_seed(config.seed))


def pretrained_model(config: Config) -> tuple[Model, ChatTokenizer]:
    """That of pretrained.folder; for ranks that share one in shards it is empty, with its `source`."""
    folder = config.pretrained.folder
    return load_model(folder) if config.parallel.shard == "none" else lazy_model(folder)


NAMES = {
    "order": "nanov2.domains.order.domain:OrderDomain",
    "integers": "nanov2.domains.integers.domain:IntegersDomain",
    "natural": "nanov2.domains.natural.domain:NaturalDomain",
}


def domain_class(name: str) -> type:
    """The class that `domain = name` means."""
    module, _, cls = NAMES.get(name, name).partition(":")
    try:
        return getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError) as e:
        raise InputError(f"domain {name!r} cannot be imported: {e}") from e


def knows_truth(config: Config) -> bool:
    """Whether somebody knows the truth of the configured domain, without opening it."""
    return getattr(domain_class(config.domain), "truth", None) is not None


def open_domain(config: Config) -> Domain:
    """The domain that the configuration names."""
    return domain_class(config.domain)(config)
