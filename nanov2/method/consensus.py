"""Labels without an expert: the paper's rule (section 2.3), and simpler ones to compare it with.

n critiques of a proof; each that reports an issue is looked at by m meta-assessments and is *valid* if
the majority confirms it; the label is the lowest score if at least k valid critiques give it; 1 if no
critique has a confirmed issue; otherwise there is none, and the proof goes to a person.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from nanov2.method.config import AutolabelConfig
from nanov2.method.judges import Judge
from nanov2.method.rewards import R_looks
from nanov2.method.sequential import SequentialTest
from nanov2.rl.logs import Progress, progress


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

    @property
    def weight(self) -> float:
        """How much it counts under "gate": 1 without an issue, else its mean meta-score; NaN: none came."""
        answers = [q for q in self.confirmations if q is not None]
        return 1.0 if not self.issue else sum(answers) / len(answers) if answers else math.nan


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


def gate_label(critiques: list[Assessed]) -> float | None:
    """The mean score, critiques that report an issue weighed by their mean meta-score, rounded."""
    read = [c for c in critiques if c.score is not None]
    score = R_looks("gate", [c.score for c in read], [c.weight for c in read])
    return round(2 * score) / 2 if score == score else None


def majority(critiques: list[Assessed]) -> float | None:
    """The most frequent score; of equals the lower."""
    counts = Counter(c.score for c in critiques if c.score is not None)
    return min(counts, key=lambda s: (-counts[s], s)) if counts else None


def worst(critiques: list[Assessed]) -> float | None:
    """The lowest score that any critique gives."""
    return min((c.score for c in critiques if c.score is not None), default=None)


@dataclass(frozen=True)
class Rule:
    """How labels are made: `name` one of RULES; `k` and `disputed` matter to "consensus" alone."""

    name: str = "consensus"
    k: int = 2
    disputed: str = "unclear"
    max_doubt: float = math.inf  # bits; what is in more doubt is unclear

    @classmethod
    def of(cls, config: AutolabelConfig) -> Rule:
        return cls(config.rule, config.k, config.disputed, config.max_doubt)

    def __call__(self, critiques: list[Assessed]) -> float | None:
        if self.max_doubt < math.inf and doubt(critiques) > self.max_doubt:
            return None
        if self.name == "consensus":
            return consensus(critiques, self.k, self.disputed)
        return RULES[self.name](critiques)


RULES: dict[str, Callable[..., float | None]] = {
    "consensus": consensus,
    "majority": majority,
    "mean": mean_label,
    "gate": gate_label,
    "worst": worst,
    "single": single,
}


def settled(
    critiques: list[Assessed],
    k: int,
    clean: int,
    rule: Rule | None = None,
    test: SequentialTest | None = None,
) -> bool:
    """Whether further critiques are not worth their cost: k valid ones give 0, which nothing can lower, or
    the first `clean` have all found nothing; with `test`, also where `surely` has the label of `rule`."""
    if sum(c.score == 0 and c.issue and c.valid for c in critiques) >= k:
        return True
    if len(critiques) >= clean and all(c.score == 1 and not c.issue for c in critiques):
        return True
    return rule is not None and test is not None and surely(critiques, rule, test)


def surely(critiques: list[Assessed], rule: Rule, test: SequentialTest) -> bool:
    """Whether the rule has a label by now and the sequential test says the same of the proof: right where the
    label is 1, else wrong (the test cannot tell 0.5 from 0).

    A critique that reports an issue counts by its mean meta-score under the rules that ask the meta-verifier;
    one whose score cannot be read, or that no meta-assessment answered, is no evidence.
    """
    if not critiques or rule.name == "single":  # whose label is that of the first critique
        return bool(critiques)
    label = rule(critiques)
    if label is None:
        return False
    if rule.name == "worst" and label == 0:  # which nothing can lower
        return True
    weighed = rule.name in ("consensus", "gate")
    looks = [(c.issue, c.weight if weighed else 1.0) for c in critiques if c.score is not None]
    known = [(issue, weight) for issue, weight in looks if weight == weight]
    return test.right(known) if label == 1 else test.wrong(known)


def assess_adaptively(
    pairs: list[tuple[str, str]],
    judges: Callable[[int, int], tuple[Judge, Judge]],
    n: int,
    chunk: int,
    enough: Callable[[list[Assessed]], bool],
    bar: bool = False,
) -> list[list[Assessed]]:
    """Like `assess`, at most n critiques each, in chunks: a proof that has `enough` gets no more.

    `judges(first, count)` makes the verifier and the meta-verifier for critiques first … first + count − 1.
    `bar`: how far it is, is told; at most, for a proof that is settled needs no more.
    """
    found: list[list[Assessed]] = [[] for _ in pairs]
    with progress("critiques and looks at them, at most", len(pairs) * n, bar) as told:
        for first in range(0, n, chunk):
            open_ = [i for i, critiques in enumerate(found) if not enough(critiques)]
            told.expect(told.done + len(open_) * (n - first))
            verifier, meta = judges(first, min(chunk, n - first))
            for i, more in zip(open_, assess([pairs[i] for i in open_], verifier, meta, told), strict=True):
                found[i] += more
            told.reach(told.total - len(open_) * max(n - first - chunk, 0))
    return found


@dataclass(frozen=True)
class Calibrated:
    """Settings that reach a wanted precision on labelled proofs, and what they give there."""

    n: int
    m: int
    k: int
    max_doubt: float  # bits
    precision: float
    low: float  # lower end of its 95% interval (Wilson)
    coverage: float
    critiques: float  # mean number that adaptive sampling draws of a proof


def calibrate(
    critiques: list[list[Assessed]], truth: list[float], wanted: float, disputed: str = "unclear"
) -> list[Calibrated]:
    """All n, m, k (up to those of `critiques`), each with the largest doubt at which the lower end of the
    precision's interval is still at least `wanted`, widest coverage first, then cheapest. Empty where none
    is. Chosen and measured on the same proofs, the precision flatters."""
    out = []
    most_m = max((len(c.confirmations) for cs in critiques for c in cs), default=0)
    for n in range(1, max(map(len, critiques), default=0) + 1):
        for m in range(1, most_m + 1):
            cut = [[replace(c, confirmations=c.confirmations[:m]) for c in cs[:n]] for cs in critiques]
            for k in range(1, n + 1):
                labels = [consensus(cs, k, disputed) for cs in cut]
                right = [
                    (doubt(cs), s == t) for cs, s, t in zip(cut, labels, truth, strict=True) if s is not None
                ]
                limit = largest_doubt(right, wanted)
                if limit is None:
                    continue
                drawn = [
                    next((i for i in range(1, n) if settled(cs[:i], k, max(k, n // 2))), n) for cs in cut
                ]
                kept = [r for d, r in right if d <= limit]
                rate = sum(kept) / len(kept)
                figures = (rate, wilson(rate, len(kept)), len(kept) / len(truth), sum(drawn) / len(drawn))
                out.append(Calibrated(n, m, k, limit, *figures))
    return sorted(out, key=lambda c: (-round(c.coverage, 3), c.critiques, c.m))


def largest_doubt(right: list[tuple[float, bool]], wanted: float) -> float | None:
    """The largest doubt up to which labels, given as (doubt, whether it is right), are right as often as
    wanted, by the lower end of the interval; infinity if all are; None if not even those in least doubt."""
    if right and wilson(sum(r for _, r in right) / len(right), len(right)) >= wanted:
        return math.inf
    found, good = None, 0
    ordered = sorted(right)
    for i, (d, r) in enumerate(ordered, 1):
        good += r
        last = i == len(ordered) or ordered[i][0] > d
        if last and wilson(good / i, i) >= wanted:
            found = d
    return found


def wilson(rate: float, n: int) -> float:
    """Lower end of Wilson's 95% interval of a rate."""
    z = 1.96
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return (rate + z * z / (2 * n) - half) / (1 + z * z / n)


def doubt(critiques: list[Assessed]) -> float:
    """How much a person's label would teach, in bits: the entropy of the scores given, and of whether the
    meta-verifier believes the issues. Unclear proofs go to a person in this order, the largest first."""
    beliefs = [q == 1 for c in critiques for q in c.confirmations if q is not None]
    return entropy([c.score for c in critiques]) + entropy(beliefs)


def entropy(values: list) -> float:
    counts = Counter(values)
    return -sum(c / len(values) * math.log2(c / len(values)) for c in counts.values()) if values else 0.0


def assess(
    pairs: list[tuple[str, str]], verifier: Judge, meta: Judge, told: Progress | None = None
) -> list[list[Assessed]]:
    """n critiques of each (problem, proof), n = `verifier.samples`, with m = `meta.samples` assessments of
    each that reports an issue; these are more than `told` could expect."""
    judgements = verifier.ask([verifier.language.verify(x, y) for x, y in pairs])
    reports = [
        (i, j)
        for i, judgement in enumerate(judgements)
        for j, (answer, score) in enumerate(zip(judgement.answers, judgement.scores, strict=True))
        if score is not None and verifier.language.claims_issue(answer)
    ]
    if told:
        told.expect(told.total + len(reports) * meta.samples)
    looks = meta.ask([meta.language.meta(*pairs[i], judgements[i].answers[j]) for i, j in reports])
    looked = {at: look.scores for at, look in zip(reports, looks, strict=True)}
    return [
        [
            Assessed(answer or "", score, (i, j) in looked, looked.get((i, j), ()))
            for j, (answer, score) in enumerate(zip(judgement.answers, judgement.scores, strict=True))
        ]
        for i, judgement in enumerate(judgements)
    ]
