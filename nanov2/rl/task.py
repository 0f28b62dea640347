"""The nouns of GRPO: what a phase trains on, what a rollout is worth, and a prompt's completions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from nanov2.model.rollout import Rollout


@dataclass
class Rewards:
    """What rollouts are worth, one number each. NaN: the judge failed to answer; excluded from its group,
    never a 0 (C11)."""

    reward: list[float]
    formed: list[bool] = field(default_factory=list)  # has the required form; empty: all have
    log: dict[str, list[float]] = field(default_factory=dict)  # further figures per rollout, for curves


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
    """A prompt's completions that will be trained on, with their advantages."""

    prompt: list[int]
    rollouts: list[Rollout]
    advantages: list[float]
