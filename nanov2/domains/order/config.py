"""Settings of the embedded world's problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from nanov2.domains.order.world import Difficulty
from nanov2.settings import Within, setting

Length = Annotated[int, Within(1, 100)]
Share = Annotated[float, Within(0, 0.9)]
More = Annotated[int, Within(0, 25)]
Many = Annotated[int, Within(1, 1_000_000)]


@dataclass(frozen=True)
class WorldConfig:
    """How hard the problems of the embedded world are, and how many are held out."""

    labelled_chain: tuple[Length, Length] = setting(
        (2, 4), "steps of the shortest proof, labelled difficulty"
    )
    labelled_facts: tuple[Length, Length] = setting((4, 8), "facts in all")
    hard_chain: tuple[Length, Length] = setting((4, 5), "the harder problems: longer chains")
    hard_facts: tuple[Length, Length] = setting((7, 10), "and more distractors")
    labelled_dead_ends: Share = setting(
        0.05, "share of the distractors that leave the chain and lead nowhere"
    )
    hard_dead_ends: Share = setting(0.45, "the same of the harder problems: at each a prover must plan")
    lap_chain: More = setting(0, "more steps of the harder problems' proofs in each later lap")
    lap_facts: More = setting(0, "and more facts")
    problems: Many = setting(4000, "size of 𝒟p, labelled difficulty")
    hard_problems: Many = setting(3000, "size of the harder 𝒟p, for autolabel and later laps")
    held_out: Many = setting(400, "held-out problems of each difficulty; never trained on")
    validation: Many = setting(96, "further ones, for watching and stopping a phase")

    def __post_init__(self):
        _ = self.labelled, self.hard  # impossible difficulties are refused here

    @property
    def labelled(self) -> Difficulty:
        return Difficulty(self.labelled_chain, self.labelled_facts, self.labelled_dead_ends)

    @property
    def hard(self) -> Difficulty:
        return self.hard_in(1)

    def hard_in(self, lap: int) -> Difficulty:
        """The harder problems of a lap."""
        chain, facts = (lap - 1) * self.lap_chain, (lap - 1) * self.lap_facts
        (least, most), (fewest, all_) = self.hard_chain, self.hard_facts
        return Difficulty((least + chain, most + chain), (fewest + facts, all_ + facts), self.hard_dead_ends)

    @property
    def gets_harder(self) -> bool:
        return bool(self.lap_chain or self.lap_facts)
