"""When further looks at a proof are not worth their cost: one sequential test, for judges and for search."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class SequentialTest:
    """Wald's test (1945) of a wrong proof against a right one, from looks that report an issue or do not."""

    issues_if_right: float = 0.1  # how often a look reports an issue in a right proof
    issues_if_wrong: float = 0.7  # and in a wrong one
    given_up: float = 0.02  # accepted chance to take a right proof for a wrong one
    missed: float = 0.1  # accepted chance to take a wrong proof for a right one

    def evidence(self, looks: Iterable[tuple[bool, float]]) -> float:
        """Log-likelihood of a wrong proof over that of a right one. `looks`: (reports an issue, weight)."""
        p0, p1 = self.issues_if_right, self.issues_if_wrong
        return sum(w * math.log(p1 / p0 if issue else (1 - p1) / (1 - p0)) for issue, w in looks)

    def wrong(self, looks: Iterable[tuple[bool, float]]) -> bool:
        """Whether the looks suffice to call the proof wrong."""
        return self.evidence(looks) >= math.log((1 - self.missed) / self.given_up)

    def right(self, looks: Iterable[tuple[bool, float]]) -> bool:
        """Whether the looks suffice to call the proof right."""
        return self.evidence(looks) <= math.log(self.missed / (1 - self.given_up))
