"""Figures of a training step, exact over micro-batches and ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from nanov2.distributed.ranks import Ranks


class Stats:
    """Sums, means (kept as sum and count) and maxima, by name. NaN is no value: it counts nowhere."""

    def __init__(self):
        self.sums: dict[str, float] = defaultdict(float)
        self.means: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # sum, count
        self.maxima: dict[str, float] = {}

    def add(self, name: str, value: float) -> None:
        self.sums[name] += value

    def average(self, name: str, total: float, count: float) -> None:
        """`count` more values that sum to `total`."""
        self.means[name][0] += total
        self.means[name][1] += count

    def each(self, name: str, values: Iterable[float]) -> None:
        """These values, for their mean."""
        known = [v for v in values if v == v]
        self.average(name, sum(known), len(known))

    def peak(self, name: str, value: float) -> None:
        self.maxima[name] = max(value, self.maxima.get(name, value))

    def __ior__(self, other: Stats) -> Stats:
        for name, value in other.sums.items():
            self.add(name, value)
        for name, (total, count) in other.means.items():
            self.average(name, total, count)
        for name, value in other.maxima.items():
            self.peak(name, value)
        return self

    def over_ranks(self, ranks: Ranks) -> Stats:
        """Those of all ranks together, on every rank, whatever names each of them has."""
        out = Stats()
        for sums, means, maxima in ranks.gather([(dict(self.sums), dict(self.means), self.maxima)]):
            part = Stats()
            part.sums, part.means, part.maxima = sums, means, maxima
            out |= part
        return out

    def figures(self) -> dict[str, float]:
        """Name → number; no mean of nothing."""
        means = {name: total / count for name, (total, count) in self.means.items() if count}
        return dict(self.sums) | means | self.maxima
