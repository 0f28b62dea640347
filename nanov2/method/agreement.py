"""How well proofs are judged, measured against people's grades: accuracy, confusion, calibration.

Accuracies are over the proofs that a rule gave a score, with a 95% interval over problems; coverage says
for how many it did. Where grades know no 0.5, `right or not` is the fairer figure: 1 against the rest.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from nanov2.method.consensus import Assessed, Rule
from nanov2.method.figures import Figure, interval
from nanov2.records import LEVELS, ProofRecord


@dataclass(frozen=True)
class Agreement:
    """The scores that a rule gives, beside the grades. Intervals are those of `evaluate.interval`."""

    accuracy: Figure
    right_or_not: Figure  # score 1 or below, grade 1 or below
    balanced: float  # mean over the levels that occur of the share found; 1/levels is chance
    coverage: float
    confusion: Counter  # (grade, score or None) → proofs


def agreement(given: list[float | None], truth: list[float], problems: list[str]) -> Agreement:
    nan = float("nan")
    pairs = list(zip(truth, given, strict=True))
    levels = {t for t, g in pairs if g is not None}
    recalls = [_share([g == t for t, g in pairs if t == level and g is not None]) for level in levels]
    return Agreement(
        interval([nan if g is None else float(g == t) for t, g in pairs], problems),
        interval([nan if g is None else float((g == 1) == (t == 1)) for t, g in pairs], problems),
        _share(recalls),
        _share([g is not None for g in given]),
        Counter(pairs),
    )


def _share(values: list) -> float:
    return sum(values) / len(values) if values else float("nan")


@dataclass(frozen=True)
class Calibration:
    """Whether the score means what it says: of proofs given 0.8, are grades 0.8 on average?"""

    bins: list[tuple[float, float, int, float, float]]  # from, to, proofs, mean score, mean grade
    ece: float  # expected calibration error: mean |score − grade| of the bins, by proofs
    brier: float  # mean squared difference of score and grade


def calibration(given: list[float | None], truth: list[float], bins: int = 5) -> Calibration:
    pairs = [(g, t) for g, t in zip(given, truth, strict=True) if g is not None]
    groups: list[list] = [[] for _ in range(bins)]
    for pair in pairs:
        groups[min(int(pair[0] * bins), bins - 1)].append(pair)
    rows = []
    for b, group in enumerate(groups):
        if group:
            given_, true_ = (_share(list(column)) for column in zip(*group, strict=True))
            rows.append((b / bins, (b + 1) / bins, len(group), given_, true_))
    ece = sum(n * abs(g - t) for _, _, n, g, t in rows) / len(pairs) if pairs else float("nan")
    return Calibration(rows, ece, _share([(g - t) ** 2 for g, t in pairs]))


@dataclass(frozen=True)
class Measured:
    """All that is reported of a judge."""

    rules: dict[str, Agreement]
    calibration: Calibration  # of the mean score
    chance: float  # accuracy of always giving the commonest grade


def measure(records: list[ProofRecord], critiques: list[list[Assessed]], rule: Rule) -> Measured:
    """One critique, mean, majority and `rule` (the paper's consensus), on proofs that all have a score."""
    truth, problems = [r.score for r in records], [r.problem for r in records]
    rules = {"one critique": Rule("single"), "mean": Rule("mean"), "majority": Rule("majority")}
    rules[rule.name] = rule
    means = []
    for cs in critiques:
        scores = [c.score for c in cs if c.score is not None]
        means.append(_share(scores) if scores else None)
    return Measured(
        {name: agreement([r(cs) for cs in critiques], truth, problems) for name, r in rules.items()},
        calibration(means, truth),
        max(Counter(truth).values()) / len(truth),
    )


def report(found: Measured) -> str:
    """The figures as text for a terminal."""
    lines = ["rule           accuracy (95%)        right or not  balanced  coverage"]
    for name, a in found.rules.items():
        low, high = (min(max(a.accuracy[end], 0.0), 1.0) for end in ("low", "high"))
        lines.append(
            f"{name:13}  {a.accuracy['value']:.3f} ({low:.3f}–{high:.3f})   {a.right_or_not['value']:.3f}"
            f"         {a.balanced:.3f}     {a.coverage:.3f}"
        )
    lines.append(f"always the commonest grade: {found.chance:.3f}")
    for name, a in found.rules.items():
        lines += ["", f"{name:16} score 0    0.5      1   none"]
        for grade in LEVELS:
            counts = [a.confusion[grade, score] for score in (*LEVELS, None)]
            if any(counts):
                lines.append(f"grade {grade:<4g}       " + " ".join(f"{n:6}" for n in counts))
    c = found.calibration
    lines += ["", f"mean score: expected calibration error {c.ece:.3f}, Brier score {c.brier:.3f}"]
    lines.append("score         proofs  mean score  mean grade")
    for low, high, n, given, grade in c.bins:
        lines.append(f"{low:.1f} to {high:.1f}  {n:8}  {given:10.3f}  {grade:10.3f}")
    return "\n".join(lines)
