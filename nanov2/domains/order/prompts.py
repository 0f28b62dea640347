"""How records become token ids, and answers become scores: rubrics and formats in one place.

In the embedded world a prompt is the sequence so far and the control token of the task:

    prove    <bos> X <prove>
    verify   <bos> X <prove> Y <end> <verify>
    meta     <bos> X <prove> Y <end> <verify> V <end> <meta>

so a proof, its critique and the critique's critique are one growing sequence, and a self-verification
trajectory is the same sequence with further turns. The rubrics 𝓘v and 𝓘mv (`world.rubric`,
`world.grade_critique`) are learnt from demonstrations, not read.
"""

from __future__ import annotations

from typing import Any, Protocol

from nanov2.domains.language import HEADING, Demonstration, read_proof
from nanov2.domains.order.tokenizer import Tokenizer
from nanov2.domains.order.world import (
    CritiqueGrade,
    grade_critique,
    grade_proof,
    parse_critique,
    parse_meta,
    parse_problem,
    parse_proof,
)
from nanov2.model.packing import Completion, Pack
from nanov2.model.rollout import Rollout


class Domain(Protocol):
    """All that rewards and labels know of the language that proofs are written in.

    `WorldPrompts` is the embedded world, `natural.Language` mathematics in natural language. A prompt
    is what the domain's models take: token ids, or chat messages.
    """

    max_given: int  # tokens that `follow` returns at most
    turns_per_proof: int  # turns of a self-verifying trajectory that a proof with its critique takes

    def prove(self, problem: str) -> Any: ...
    def verify(self, problem: str, proof: str) -> Any: ...
    def meta(self, problem: str, proof: str, critique: str) -> Any: ...
    def revise(self, problem: str, proof: str, critique: str) -> Any: ...

    def turns(self, rollout: Rollout) -> list[tuple[str, str | None]]:
        """A sampled trajectory as (task, text): "prove" and, where the author judged the proof, "verify".
        None: cut off, or without the form of one."""

    def follow(self, rollout: Rollout) -> list[int] | None:
        """Of a self-verifying trajectory whose turn just ended: the ids that open the next, None at its end,
        which is after a critique that gives score 1 (no issue found) or cannot be read."""

    def read_proof(self, answer: str | None):
        return read_proof(answer)

    def document(self, shown: Demonstration) -> Pack:
        t = self.tokenizer
        ids, counted = [], []
        learnt = shown.learnt or (True,) * len(shown.turns)
        for (task, text), counts in zip(shown.turns, learnt, strict=True):
            answer = [*t.encode(text), t.end]
            ids += [t.task[task], *answer]
            counted += [False] + [counts] * len(answer)
        return Pack([t.bos, *t.encode(shown.problem)], [Completion(ids, counted)])

    def is_proof(self, text: str | None) -> bool:
        """Whether an answer has the form of a proof."""

    def claimed_score(self, critique: str | None) -> float | None:
        """s' of a verifier's answer; None where it does not have the form (R_format = 0)."""

    def claimed_quality(self, meta: str | None) -> float | None:
        """The quality in a meta-verifier's answer, or None."""

    def claims_issue(self, critique: str) -> bool:
        """Whether a critique reports an issue."""

    def true_score(self, problem: str, proof: str | None) -> float:
        """The expert's s, for figures alone; NaN where nobody knows."""

    def examine(self, problem: str, proof: str, critique: str) -> CritiqueGrade | None:
        """The expert's grade of a critique, for figures alone; None where nobody knows."""


class WorldPrompts:
    """Prompts and parsers of the embedded world, and its exact truth."""

    max_given, turns_per_proof = 1, 2

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def prove(self, problem: str) -> list[int]:
        t = self.tokenizer
        return [t.bos, *t.encode(problem), t.task["prove"]]

    def verify(self, problem: str, proof: str) -> list[int]:
        t = self.tokenizer
        return [*self.prove(problem), *t.encode(HEADING + proof), t.end, t.task["verify"]]

    def meta(self, problem: str, proof: str, critique: str) -> list[int]:
        t = self.tokenizer
        return [*self.verify(problem, proof), *t.encode(critique), t.end, t.task["meta"]]

    def revise(self, problem: str, proof: str, critiques: list[str]) -> list[int]:
        t = self.tokenizer
        return [*self.verify(problem, proof), *t.encode(critiques[0]), t.end, t.task["prove"]]

    def ids(self, question: list[int]) -> list[int]:
        return question

    def read_proof(self, answer: str | None):
        return read_proof(answer)

    def document(self, shown: Demonstration) -> Pack:
        t = self.tokenizer
        ids, counted = [], []
        learnt = shown.learnt or (True,) * len(shown.turns)
        for (task, text), counts in zip(shown.turns, learnt, strict=True):
            answer = [*t.encode(text), t.end]
            ids += [t.task[task], *answer]
            counted += [False] + [counts] * len(answer)
        return Pack([t.bos, *t.encode(shown.problem)], [Completion(ids, counted)])

    def is_proof(self, text: str | None) -> bool:
        return proof_parses(text)

    def claimed_score(self, critique: str | None) -> float | None:
        return claimed_score(critique)

    def claimed_quality(self, meta: str | None) -> float | None:
        return claimed_quality(meta)

    def claims_issue(self, critique: str) -> bool:
        return claims_issue(critique)

    def true_score(self, problem: str, proof: str | None) -> float:
        return true_score(problem, proof)

    def examine(self, problem: str, proof: str, critique: str) -> CritiqueGrade:
        return grade_critique(parse_problem(problem), proof, critique)

    def turns(self, rollout: Rollout) -> list[tuple[str, str | None]]:
        out = []
        for t in range(len(rollout.turns)):
            text = self.answer(rollout, t)
            if t % 2:
                out.append(("verify", text))
            else:
                proof = read_proof(text)
                out.append(("prove", proof and proof.text))
        return out

    def follow(self, rollout: Rollout) -> list[int] | None:
        if len(rollout.turns) % 2:  # a proof just ended
            return [self.tokenizer.task["verify"]]
        score = self.claimed_score(self.answer(rollout))
        return [self.tokenizer.task["prove"]] if score is not None and score < 1 else None

    def answer(self, rollout: Rollout, turn: int = -1) -> str | None:
        """A turn's text, or None where it was cut off or holds a control token: no answer at all."""
        ids = rollout.turns[turn]
        last = turn in (-1, len(rollout.turns) - 1)
        if (rollout.truncated and last) or not self.tokenizer.control.isdisjoint(ids):
            return None
        return self.tokenizer.decode(ids)


def proof_parses(text: str | None) -> bool:
    return text is not None and parse_proof(text) is not None


def claimed_score(critique: str | None) -> float | None:
    """s' of a verifier's answer, or None where it does not have the form."""
    parsed = parse_critique(critique) if critique is not None else None
    return None if parsed is None else parsed.score


def claimed_quality(meta: str | None) -> float | None:
    """The quality in a meta-verifier's answer, or None where it does not have the form."""
    parsed = parse_meta(meta) if meta is not None else None
    return None if parsed is None else parsed.quality


def claims_issue(critique: str) -> bool:
    """Whether a critique reports an issue: any finding against the proof, or a score below 1."""
    parsed = parse_critique(critique)
    whole = parsed is not None and parsed.ends and parsed.strong and parsed.score == 1
    return parsed is not None and (len(parsed.claims) > 0 or not whole)


def true_score(problem: str, proof: str | None) -> float:
    """The exact expert's score: for figures, never for a generator's reward."""
    return 0.0 if proof is None else grade_proof(parse_problem(problem), proof)
