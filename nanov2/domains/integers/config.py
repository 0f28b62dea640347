"""Settings of the integers world: how hard its problems are, and the habits of its demonstrations.

How many problems there are is said by [world], as for the order world.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from nanov2.domains.integers.world import MODULI, VARIABLES, Difficulty
from nanov2.settings import Rate, Within, setting

Modulus = Annotated[int, Within(MODULI[0], MODULI[-1])]
Variables = Annotated[int, Within(1, len(VARIABLES))]
Unused = Annotated[int, Within(0, len(VARIABLES) - 1)]
Degree = Annotated[int, Within(1, 2)]
Coefficient = Annotated[int, Within(1, 50)]
MoreVariables = Annotated[int, Within(0, len(VARIABLES) - 1)]
MoreCoefficient = Annotated[int, Within(0, 49)]


@dataclass(frozen=True)
class IntegersConfig:
    """How hard the problems of the integers world are; [world] says how many there are."""

    labelled_moduli: tuple[Modulus, Modulus] = setting((2, 3), "what is divided by, labelled difficulty")
    labelled_variables: tuple[Variables, Variables] = setting((1, 2), "integers in what is to be shown")
    labelled_unused: Unused = setting(1, "at most this many more are given and not needed")
    labelled_degree: Degree = setting(1, "2: most goals have a product of two integers or a square")
    labelled_coefficient: Coefficient = setting(3, "the largest number in what is to be shown")
    labelled_lemma: Rate = setting(0.0, "share of the goals with a part u, of which a lemma is shown first")
    hard_moduli: tuple[Modulus, Modulus] = setting((2, 4), "the harder problems: more remainders")
    hard_variables: tuple[Variables, Variables] = setting((2, 3), "more integers")
    hard_unused: Unused = setting(2, "more that are not needed")
    hard_degree: Degree = setting(1, "and products with 2")
    hard_coefficient: Coefficient = setting(4, "the largest number")
    hard_lemma: Rate = setting(0.0, "share with a lemma")
    lap_variables: MoreVariables = setting(0, "more integers in the harder problems in each later lap")
    lap_coefficient: MoreCoefficient = setting(0, "and so much larger numbers")
    first_moduli: tuple[Modulus, Modulus] = setting((2, 2), "what the base's training begins with: parity")
    first_variables: tuple[Variables, Variables] = setting((1, 1), "of so many integers, all needed")
    first: Rate = setting(0.1, "share of the base's training on these; short calculations are learnt first")
    mixed: Rate = setting(0.3, "share from which on the harder problems are half of its demonstrations")

    def __post_init__(self):
        _ = self.labelled, self.hard, self.beginning  # impossible difficulties are refused here

    @property
    def labelled(self) -> Difficulty:
        return Difficulty(
            moduli(self.labelled_moduli, "labelled_moduli"),
            self.labelled_variables,
            self.labelled_unused,
            self.labelled_degree,
            self.labelled_coefficient,
            self.labelled_lemma,
        )

    @property
    def hard(self) -> Difficulty:
        return self.hard_in(1)

    def hard_in(self, lap: int) -> Difficulty:
        """The harder problems of a lap."""
        more, (least, most) = (lap - 1) * self.lap_variables, self.hard_variables
        return Difficulty(
            moduli(self.hard_moduli, "hard_moduli"),
            (least + more, most + more),
            self.hard_unused,
            self.hard_degree,
            self.hard_coefficient + (lap - 1) * self.lap_coefficient,
            self.hard_lemma,
        )

    @property
    def gets_harder(self) -> bool:
        return bool(self.lap_variables or self.lap_coefficient)

    @property
    def has_lemmas(self) -> bool:
        return bool(self.labelled_lemma or self.hard_lemma)

    @property
    def beginning(self) -> Difficulty:
        """What demonstrations begin with."""
        return Difficulty(moduli(self.first_moduli, "first_moduli"), self.first_variables, unused=0)


def moduli(between: tuple[int, int], name: str) -> tuple[int, ...]:
    """All from the one to the other."""
    low, high = between
    if low > high:
        raise ValueError(f"integers: {name} must be [from, to] with from <= to, got {[low, high]}")
    return tuple(range(low, high + 1))


@dataclass(frozen=True)
class Habits:
    """How imperfect the demonstrations of the integers world are; every field is a rate in [0, 1]."""

    early: Rate = setting(0.6, "first proofs that stop one step before the last expression")
    same_letter: Rate = setting(0.6, "first proofs of two integers or more that take one letter for all")
    stray: Rate = setting(0.12, "first proofs with another fault")
    revision_same: Rate = setting(0.6, "revisions that hand the same proof in again")
    revision_right: Rate = setting(0.3, "revisions that are right")
    lenient: Rate = setting(0.62, "critiques that pass over a letter that stands for two integers")
    pile_on: Rate = setting(0.62, "critiques that find fault with every step once the proof has failed")
    agree: Rate = setting(0.62, "meta-critiques that agree with whatever they read")
    slip: Rate = setting(0.02, "findings that are worked out wrongly, habit or not")
    whole: Rate = setting(0.02, "findings about the whole proof that are wrong")
    score: Rate = setting(0.06, "scores that do not follow from the findings")
    others: Rate = setting(0.4, "first proofs that are somebody else's, of all kinds: read, not learnt")
    share_revision: Rate = setting(0.35, "proofs found wanting that are shown being revised")
