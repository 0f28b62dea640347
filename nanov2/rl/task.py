"""The nouns of GRPO: what a phase trains on, what a rollout is worth, and a prompt's completions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from nanov2.model.rollout import Rollout


class Part(NamedTuple):
    """A part of a rollout with a worth of its own: tokens `start` to `end`, of which `end` is not one."""

    start: int
    end: int
    worth: float  # a reward; in a group that is trained on, its advantage


@dataclass
class Rewards:
    """What rollouts are worth, one number each. NaN: the judge failed to answer; excluded from its group,
    never a 0 (C11).

    `parts`, where a task gives credit to parts: those of each rollout, in order, none overlapping. The j-th
    parts of a group are compared with each other, as the rollouts are.
    """

    reward: list[float]
    formed: list[bool] = field(default_factory=list)  # has the required form; empty: all have
    log: dict[str, list[float]] = field(default_factory=dict)  # further figures per rollout, for curves
    parts: list[list[Part]] = field(default_factory=list)  # empty: no rollout has any

    @classmethod
    def joined(cls, lists: list[Rewards], order: list[int]) -> Rewards:
        """Those of several lists of rollouts as of one, in this order."""
        lists = [each for each in lists if each.reward]
        names = lists[0].log if lists else {}

        def column(values: list[list]) -> list:
            whole = [x for part in values for x in part]
            return [whole[i] for i in order] if whole else []

        return cls(
            column([each.reward for each in lists]),
            column([each.formed for each in lists]),
            {name: column([each.log[name] for each in lists]) for name in names},
            column([each.parts for each in lists]),
        )


class Task(Protocol):
    """What a phase trains on: how an item becomes a prompt, and a rollout a reward."""

    max_turns: int
    max_given: int  # tokens that `next_turn` returns at most

    @property
    def judges(self) -> dict[str, Any]:
        """Its frozen judges by name; a judge's `model` is the one in this process, if it has one."""
        ...

    def prompt(self, item) -> list[int]: ...

    def next_turn(self, rollout: Rollout) -> list[int] | None: ...

    def rewards(self, items: list, rollouts: list[Rollout]) -> Rewards:
        """`items[i]` is the item of `rollouts[i]`; there may be none, on a rank without prompts."""
        ...


@dataclass
class Group:
    """A prompt's completions that will be trained on, with their advantages.

    `parts`: parts of each rollout whose tokens have a further advantage, added to the rollout's.
    """

    prompt: list[int]
    rollouts: list[Rollout]
    advantages: list[float]
    parts: list[list[Part]] = field(default_factory=list)  # empty: no rollout has any

    def segments(self, i: int) -> list[tuple[int, float]]:
        """Rollout i as (tokens, advantage of each), end to end."""
        length, own = len(self.rollouts[i].ids), self.advantages[i]
        out, at = [], 0
        for start, end, more in self.parts[i] if self.parts else []:
            out += [(start - at, own), (end - start, own + more)]
            at = end
        return [(n, a) for n, a in [*out, (length - at, own)] if n]
