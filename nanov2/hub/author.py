"""Who answers: a model in this process, a model folder, an endpoint, or a rollout engine, all asked alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

# Chat messages: "role" and "content", and the parts that the content was made of ("task", "problem", "proof",
# "critique"). The chat template of a run's own small models shows the parts; all others read the content.
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Answer:
    """One answer. `text` is None where there is none, which is not a wrong one."""

    text: str | None
    tokens: int = 0
    missing: str = ""  # why there is no text: "cut off", "too long" (the question), "empty"


class Author(Protocol):
    """Answers questions. The same question and number always give the same answer, in any batch."""

    identity: dict  # what tells this author from another: weights or URL and model, sampling, seed

    def answers(
        self, questions: list[Messages], n: int = 1, first: int | list[int] = 0
    ) -> list[list[Answer]]:
        """Answers number first … first + n − 1 to each question; `first` may be one number a question."""
