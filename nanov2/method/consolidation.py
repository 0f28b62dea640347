"""Rejection fine-tuning: the base of a later lap, from the best samples of the lap before (section 3.1).

Of each labelled proof of the harder problems a critique is kept that gives the label and, where it reports
an issue, was confirmed; the proof itself is learnt only where its label is 1. The original demonstrations
stay in the mixture, so that no skill is lost that the best samples do not show.
"""

from __future__ import annotations

from nanov2.domains.language import HEADING, Demonstration
from nanov2.method.consensus import Assessed
from nanov2.records import ProofRecord, TrajectoryRecord


def best_samples(labelled: list[ProofRecord], critiques: list[list[Assessed]]) -> list[TrajectoryRecord]:
    """A proof and the first critique that gives its label rightly, where there is one."""
    out = []
    for record, given in zip(labelled, critiques, strict=True):
        good = [c for c in given if c.score == record.score and (not c.issue or c.valid)]
        if good:
            turns = (("prove", record.proof), ("verify", good[0].critique))
            out.append(TrajectoryRecord(record.problem, turns, kind=record.kind))
    return out


def as_demonstration(sample: TrajectoryRecord, label: float) -> Demonstration:
    """A labelled proof, learnt only where its label is 1, and its critique."""
    (_, proof), critique = sample.turns
    return Demonstration(
        sample.problem, (("prove", f"{HEADING}{proof}"), critique), learnt=(label == 1, True)
    )
