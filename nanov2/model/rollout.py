"""What the sampler is asked for, and what it gives back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass
class Rollout:
    """One sampled sequence: what it continues, its tokens, and which of them the model sampled itself."""

    prompt: list[int]
    group: int  # which of the prompts it continues (C10)
    ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)  # False: forced by the driver (the loss mask)
    logprobs: list[float] = field(default_factory=list)  # of the sampler; 0.0 where forced
    turns: list[list[int]] = field(default_factory=list)  # ids of each turn, without <end>
    truncated: bool = False  # the last turn hit its limit before <end>
    version: str = ""  # of the weights that a rollout engine sampled it with

    def add(self, token: int, sampled: bool, logprob: float) -> None:
        self.ids.append(token)
        self.sampled.append(sampled)
        self.logprobs.append(logprob)


@dataclass(frozen=True)
class Sampling:
    """How to sample."""

    temperature: float = 1.0  # logits are divided by it; 0 = greedy
    max_tokens: int = 64  # per turn, <end> included
    batch_rows: int = 512  # rows that are decoded together
    max_given: int = 1  # tokens that the driver may put before a further turn


NextTurn = Callable[[Rollout], list[int] | None]


@dataclass(frozen=True)
class Turns:
    """How rollouts go on where a turn ends: what the driver puts before the next one, if there is a next."""

    sampling: Sampling
    next_turn: NextTurn | None = None
    most: int = 1
    context: int = 0  # of the model: prompt and completion never pass it; 0 = any number

    def room(self, rollout: Rollout) -> int:
        """Tokens that the model's context has left."""
        return self.context - len(rollout.prompt) - len(rollout.ids) if self.context else sys.maxsize

    def opening(self, rollout: Rollout) -> list[int]:
        """The ids that open the next turn; none: there is none."""
        if not self.next_turn or len(rollout.turns) >= self.most:
            return []
        given = self.next_turn(rollout)
        if given is None:
            return []
        if not 0 < len(given) <= self.sampling.max_given:
            raise ValueError(f"a turn opens with {len(given)} tokens, max_given is {self.sampling.max_given}")
        return given if self.room(rollout) > len(given) else []


class Engine(Protocol):
    """Who samples a model's completions elsewhere, with the weights that the model had at the last `load`."""

    fresh: bool  # whether the model still has those weights

    def changed(self) -> None:
        """It has others now."""
        ...

    def load(self, model) -> None:
        """Serve the model's weights from here on. Every rank calls it."""
        ...

    def groups(
        self,
        model,
        tokenizer,
        prompts: list[list[int]],
        n: int,
        sampling: Sampling,
        seed: int | list[int] | list[list[int]],
        next_turn: NextTurn | None = None,
        max_turns: int = 1,
    ) -> Iterator[list[list[Rollout]]]:
        """The n completions of each prompt, as many prompts at a time as have ended; see sampler.sample."""
        ...


@dataclass(frozen=True)
class Served:
    """A model that is not in this process at all; what `sample` must know of it."""

    config: Any  # the model's
    engine: Engine
    training = False


_watching: list[Callable[[Rollout], None]] = []


@contextmanager
def watching(tell: Callable[[Rollout], None]) -> Iterator[None]:
    """Within it `tell` hears of each rollout that ends in this process: for progress and costs alone."""
    _watching.append(tell)
    try:
        yield
    finally:
        _watching.remove(tell)


def has_ended(rollout: Rollout) -> None:
    """Whoever samples says so of each rollout."""
    for tell in _watching:
        tell(rollout)
