"""What the sampler is asked for, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field


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
