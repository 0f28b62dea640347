"""Labels without an expert: the paper's rule (section 2.3), and simpler ones to compare it with.

n critiques of a proof; each that reports an issue is looked at by m meta-assessments and is *valid* if
the majority confirms it; the label is the lowest score if at least k valid critiques give it; 1 if no
critique has a confirmed issue; otherwise there is none, and the proof goes to a person.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from nanov2.prompts import WorldPrompts, claims_issue
from nanov2.reward_model import Judge


@dataclass(frozen=True)
class Assessed:
    """One critique of a proof: its score, whether it reports an issue, and how many confirmed that."""

    critique: str
    score: float | None  # None: the critique did not parse
    issue: bool
    confirmations: tuple[float | None, ...] = ()  # quality given by each meta-assessment; None: unparsed

    @property
    def valid(self) -> bool:
        """Confirmed by the majority: more than half of those that answered find the critique right."""
        answers = [q for q in self.confirmations if q is not None]
        return 2 * sum(q == 1 for q in answers) > len(answers)


def consensus(critiques: list[Assessed], k: int, disputed: str = "unclear") -> float | None:
    """The paper's label, or None where it is unclear.

    Where k or more critiques report an issue and the meta-assessments reject them all, the two judges
    disagree. By the letter of the paper the proof is then right (`disputed` = "right"); by default it is
    "unclear", a case for a person.
    """
    read = [c for c in critiques if c.score is not None]
    if not read:
        return None
    reported = [c for c in read if c.issue]
    valid = [c.score for c in reported if c.valid]
    if not valid:
        return 1.0 if len(reported) < k or disputed == "right" else None
    lowest = min(valid)
    return lowest if valid.count(lowest) >= k else None


def single(critiques: list[Assessed]) -> float | None:
    """The first critique's score."""
    return critiques[0].score


def mean_label(critiques: list[Assessed]) -> float | None:
    """The mean score, rounded to the nearest of 0, 0.5, 1."""
    scores = [c.score for c in critiques if c.score is not None]
    return round(2 * sum(scores) / len(scores)) / 2 if scores else None


def majority(critiques: list[Assessed]) -> float | None:
    """The most frequent score; of equals the lower."""
    counts = Counter(c.score for c in critiques if c.score is not None)
    return min(counts, key=lambda s: (-counts[s], s)) if counts else None


def assess(
    pairs: list[tuple[str, str]], verifier: Judge, meta: Judge, prompts: WorldPrompts
) -> list[list[Assessed]]:
    """n critiques of each (problem, proof), n = `verifier.samples`, with m = `meta.samples` assessments of
    each that reports an issue."""
    judgements = verifier.ask([prompts.verify(x, y) for x, y in pairs])
    reports = [
        (i, j)
        for i, judgement in enumerate(judgements)
        for j, (answer, score) in enumerate(zip(judgement.answers, judgement.scores, strict=True))
        if score is not None and claims_issue(answer)
    ]
    looks = meta.ask([prompts.meta(*pairs[i], judgements[i].answers[j]) for i, j in reports])
    looked = {at: look.scores for at, look in zip(reports, looks, strict=True)}
    return [
        [
            Assessed(answer or "", score, (i, j) in looked, looked.get((i, j), ()))
            for j, (answer, score) in enumerate(zip(judgement.answers, judgement.scores, strict=True))
        ]
        for i, judgement in enumerate(judgements)
    ]
