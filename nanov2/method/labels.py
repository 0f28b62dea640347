"""Labels of new proofs: proofs with their critiques, what a rule makes of them, and how good that is."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from dataclasses import dataclass

from nanov2.domains.domain import Truth
from nanov2.domains.language import HEADING, Demonstration
from nanov2.method import figures as ev
from nanov2.method.config import AutolabelConfig
from nanov2.method.consensus import (
    Assessed,
    Rule,
    consensus,
    doubt,
    gate_label,
    majority,
    mean_label,
    single,
    worst,
)
from nanov2.method.tasks import false_accepts, true_scores
from nanov2.records import LEVELS, ProofRecord, TrajectoryRecord


@dataclass(frozen=True)
class Labelled:
    """A proof, its assessed critiques, and its label: None where they leave it open."""

    proof: ProofRecord
    critiques: list[Assessed]
    label: float | None

    def record(self, config: AutolabelConfig) -> ProofRecord:
        """The proof with its label and where that comes from."""
        return dataclasses.replace(self.proof, score=self.label, label=provenance(config, self.critiques))

    def best(self) -> TrajectoryRecord | None:
        """The proof and the first critique that gives its label rightly, where there is one."""
        for c in self.critiques:
            if c.score == self.label and (not c.issue or c.valid):
                turns = (("prove", self.proof.proof), ("verify", c.critique))
                return TrajectoryRecord(self.proof.problem, turns, kind=self.proof.kind)
        return None


def as_demonstration(sample: TrajectoryRecord, label: float) -> Demonstration:
    """A document for rejection fine-tuning (section 3.1): a proof, learnt only where its label is 1, and a
    critique that gives the label and, where it reports an issue, was confirmed."""
    (_, proof), critique = sample.turns
    turns = (("prove", f"{HEADING}{proof}"), critique)
    return Demonstration(sample.problem, turns, learnt=(label == 1, True))


def label_all(
    proofs: list[ProofRecord], critiques: list[list[Assessed]], config: AutolabelConfig
) -> list[Labelled]:
    rule = Rule.of(config)
    return [Labelled(r, cs, rule(cs)) for r, cs in zip(proofs, critiques, strict=True)]


def clear(labelled: list[Labelled]) -> list[Labelled]:
    return [x for x in labelled if x.label is not None]


def joining(labelled: list[Labelled], most: int) -> list[Labelled]:
    """Those with a label that join 𝒟v: all, or the `most` that are hardest to verify, whose critiques' scores
    differ most (section 2.3: new proofs that are hard to verify)."""
    sure = clear(labelled)
    return sorted(sure, key=lambda x: -spread_of_scores(x.critiques))[:most] if most else sure


def spread_of_scores(critiques: list[Assessed]) -> float:
    """Variance of the scores that critiques of one proof give; those without a score do not count."""
    scores = [c.score for c in critiques if c.score is not None]
    return statistics.pvariance(scores) if scores else 0.0


def unclear(labelled: list[Labelled]) -> list[Labelled]:
    """Those left open, the most doubtful first: a person's score of them would teach most."""
    return sorted((x for x in labelled if x.label is None), key=lambda x: -doubt(x.critiques))


def provenance(config: AutolabelConfig, critiques: list[Assessed]) -> str:
    """Where a label comes from, for the record: rule, critiques drawn, issues confirmed."""
    c = config
    settings = f" n={c.n} m={c.m} k={c.k}" if c.rule == "consensus" else ""
    settings += f" error={c.error:g}" if c.error else ""
    issues = [x for x in critiques if x.issue]
    scores = " ".join("?" if x.score is None else f"{x.score:g}" for x in critiques)
    confirmed = f"{sum(x.valid for x in issues)} of {len(issues)} issues confirmed"
    return f"{c.rule}{settings}: scores {scores}; {confirmed}"


def merge(earlier: list[ProofRecord], new: list[ProofRecord]) -> list[ProofRecord]:
    """Both, each (problem, proof) once; the earlier stays: an expert's score is never replaced."""
    merged = {(r.problem, r.proof): r for r in [*new, *earlier]}
    order = dict.fromkeys((r.problem, r.proof) for r in [*earlier, *new])
    return [merged[key] for key in order]


def measure_labels(labelled: list[Labelled], truth: Truth | None, config: AutolabelConfig) -> ev.Metrics:
    """Coverage, and agreement with the truth; simpler rules and a constant answer on the same proofs.

    "same proofs": those that have a label, so that no rule gains by leaving the hard ones out.
    """
    known = true_scores(truth, [x.proof for x in labelled], [x.proof.proof for x in labelled])
    scored = [t for x, t in zip(labelled, known, strict=True) if x.label is not None and not math.isnan(t)]
    commonest = max(LEVELS, key=scored.count)

    def agreement(rule, everywhere: bool = False) -> list[float]:
        out = []
        for x, t in zip(labelled, known, strict=True):
            given = rule(x) if everywhere or x.label is not None else None
            out.append(math.nan if given is None or math.isnan(t) else float(given == t))
        return out

    rules = {
        "letter": lambda x: consensus(x.critiques, config.k, "right"),
        "single_critique": lambda x: single(x.critiques),
        "mean": lambda x: mean_label(x.critiques),
        "majority": lambda x: majority(x.critiques),
        "gate": lambda x: gate_label(x.critiques),
        "worst": lambda x: worst(x.critiques),
    }
    columns = {
        "label_coverage": [float(x.label is not None) for x in labelled],
        "label_agreement": agreement(lambda x: x.label),
        "constant_agreement": agreement(lambda x: commonest),
    }
    columns |= {f"{name}_agreement": agreement(rule) for name, rule in rules.items()}
    columns |= {f"{name}_agreement_on_all": agreement(rule, everywhere=True) for name, rule in rules.items()}
    columns |= {
        "label_false_accept_rate": false_accepts([x.label for x in labelled], known),
        "true_score": known,
        "critiques_per_proof": [float(len(x.critiques)) for x in labelled],
    }
    return ev.figures(columns, "hard", [x.proof.problem for x in labelled])


def label_table(labelled: list[Labelled]) -> dict:
    counts = Counter("unclear" if x.label is None else x.label for x in labelled)
    rows = [[str(k), counts[k]] for k in (*LEVELS, "unclear")]
    return {"title": "Labels given", "columns": ["label", "proofs"], "rows": rows}


def label_samples(labelled: list[Labelled], truth: Truth | None) -> list[dict]:
    """Labelled proofs as the report shows them."""
    known = true_scores(truth, [x.proof for x in labelled], [x.proof.proof for x in labelled])
    return [
        {
            "problem": x.proof.problem,
            "proof": x.proof.proof,
            "critique": next((c.critique for c in x.critiques if c.issue), x.critiques[0].critique),
            "label": "unclear" if x.label is None else x.label,
            "note": f"scores {[c.score for c in x.critiques]}, "
            f"valid issues {sum(c.issue and c.valid for c in x.critiques)}",
        }
        | ev.shown_truth(t)
        for x, t in zip(labelled, known, strict=True)
    ]
