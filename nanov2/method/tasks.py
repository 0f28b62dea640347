"""What each GRPO phase trains on: items, prompts, and the reward of section 2 of the paper.

The expert's truth appears here only as data (s, ms) that the records carry, and, marked `truth`, in
figures for the curves. No reward of the generator looks at it.
"""

from __future__ import annotations

import math

from nanov2.domains.order.prompts import Domain
from nanov2.method.judges import Judge
from nanov2.method.rewards import R_Z, R_format, R_generator, R_score
from nanov2.model.rollout import Rollout
from nanov2.records import CritiqueRecord, ProblemRecord, ProofRecord
from nanov2.rl.grpo import Rewards


class SingleTurn:
    """A task whose trajectories are one answer."""

    max_turns = max_given = 1

    def __init__(self, prompts: Domain):
        self.prompts = prompts

    def next_turn(self, rollout: Rollout) -> list[int] | None:
        return None


class VerifierTask(SingleTurn):
    """1B, 1C, 1D: on 𝒟v R = R_format · R_score (· R_meta with `meta`), on 𝒟mv R = R_format · R_score.

    Items are ProofRecords (write a critique) and CritiqueRecords (write a meta-critique), in any mixture.
    """

    def __init__(self, prompts: Domain, meta: Judge | None = None):
        super().__init__(prompts)
        self.meta = meta

    def prompt(self, item: ProofRecord | CritiqueRecord) -> list[int]:
        if isinstance(item, CritiqueRecord):
            return self.prompts.ids(self.prompts.meta(item.problem, item.proof, item.critique))
        return self.prompts.ids(self.prompts.verify(item.problem, item.proof))

    def rewards(self, items: list, rollouts: list[Rollout]) -> Rewards:
        r_format, r_score, r_meta, quality = [], [], [1.0] * len(items), [math.nan] * len(items)
        asked, questions = [], []
        for i, (item, rollout) in enumerate(zip(items, rollouts, strict=True)):
            answer = self.prompts.answer(rollout)
            is_proof = isinstance(item, ProofRecord)
            claim = (self.prompts.claimed_score if is_proof else self.prompts.claimed_quality)(answer)
            r_format.append(R_format(claim))
            r_score.append(0.0 if claim is None else R_score(claim, item.score if is_proof else item.quality))
            if is_proof and claim is not None:
                if grade := self.prompts.examine(item.problem, item.proof, answer):
                    quality[i] = grade.quality
                if self.meta and r_score[-1] > 0:
                    asked.append(i)
                    questions.append(self.meta.prompts.meta(item.problem, item.proof, answer))
        log = {"format": r_format, "score": r_score, "truth_quality": quality}
        if self.meta:
            for i, judgement in zip(asked, self.meta.ask(questions), strict=True):
                r_meta[i] = judgement.score
            log["meta"] = [r if i in set(asked) else math.nan for i, r in enumerate(r_meta)]
        return Rewards(r_score, [r_format, r_meta], log=log)


class GeneratorTask(SingleTurn):
    """2: the frozen verifier's score of the proof is the whole reward."""

    def __init__(self, prompts: Domain, verifier: Judge):
        super().__init__(prompts)
        self.verifier = verifier

    def prompt(self, item: ProblemRecord) -> list[int]:
        return self.prompts.ids(self.prompts.prove(item.problem))

    def rewards(self, items: list[ProblemRecord], rollouts: list[Rollout]) -> Rewards:
        proofs = [self.prompts.turns(r)[0][1] for r in rollouts]
        scores = judge_proofs(self.verifier, self.prompts, items, proofs)
        truth = [self.prompts.true_score(item.problem, p) for item, p in zip(items, proofs, strict=True)]
        formed = [self.prompts.is_proof(p) for p in proofs]
        return Rewards(scores, formed=formed, log={"truth": truth, "format": [float(f) for f in formed]})


def judge_proofs(verifier: Judge, prompts: Domain, items, proofs: list[str | None]) -> list[float]:
    """The verifier's mean score of each proof; one without the form of a proof is 0 without being asked."""
    ask = [i for i, p in enumerate(proofs) if prompts.is_proof(p)]
    scores = [0.0] * len(proofs)
    questions = [verifier.prompts.verify(items[i].problem, proofs[i]) for i in ask]
    for i, judgement in zip(ask, verifier.ask(questions), strict=True):
        scores[i] = judgement.score
    return scores


class SelfVerifyTask:
    """3: draft → own critique → revision → …; the reward is on the final proof.

    A trajectory ends after a critique that gives score 1 (no issue found), or after `max_turns` turns
    (natural language: answers that hold a proof and its evaluation).
    With `alpha_beta` it is the paper's R_format · (α·R_Y + β·R_Z), where Z is the last critique of the
    final proof, R_Y the verifier's score of it, and R_Z = R_score(s', R_Y) · R_meta(Z). `budget` (0: none):
    no turn begins once a trajectory has so many tokens.
    """

    def __init__(
        self,
        prompts: Domain,
        verifier: Judge | None,
        max_turns: int,
        meta: Judge | None = None,
        alpha_beta: tuple[float, float] | None = None,
        budget: int = 0,
    ):
        self.prompts, self.verifier, self.max_turns = prompts, verifier, max_turns
        self.meta, self.alpha_beta = meta, alpha_beta
        self.max_given, self.budget = prompts.max_given, budget

    def prompt(self, item: ProblemRecord) -> list[int]:
        return self.prompts.ids(self.prompts.prove(item.problem))

    def next_turn(self, rollout: Rollout) -> list[int] | None:
        spent = self.budget and len(rollout.ids) >= self.budget
        return None if spent else self.prompts.follow(rollout)

    def rewards(self, items: list[ProblemRecord], rollouts: list[Rollout]) -> Rewards:
        n, truth = len(rollouts), self.prompts.true_score
        trajectories = [judged_proofs(self.prompts.turns(r)) for r in rollouts]
        drafts = [t[0][0] for t in trajectories]
        finals = [t[-1][0] for t in trajectories]
        critiques = [t[-1][1] for t in trajectories]
        r_Y = judge_proofs(self.verifier, self.prompts, items, finals)
        formed = [self.prompts.is_proof(p) for p in finals]
        claims = [self.prompts.claimed_score(c) for c in critiques]
        log = {
            "truth": [truth(i.problem, p) for i, p in zip(items, finals, strict=True)],
            "truth_draft": [truth(i.problem, p) for i, p in zip(items, drafts, strict=True)],
            "proofs": [float(len(t)) for t in trajectories],
            "self_score_error": [
                math.nan if c is None or math.isnan(y) else abs(c - y)
                for c, y in zip(claims, r_Y, strict=True)
            ],
        }
        if not self.alpha_beta:
            return Rewards(r_Y, formed=formed, log=log)
        r_meta = [1.0] * n
        ask = [i for i in range(n) if claims[i] is not None and formed[i]]
        if self.meta:
            questions = [self.meta.prompts.meta(items[i].problem, finals[i], critiques[i]) for i in ask]
            for i, judgement in zip(ask, self.meta.ask(questions), strict=True):
                r_meta[i] = judgement.score
        total = []
        for i in range(n):
            form = R_format(claims[i]) * float(formed[i])
            r_z = R_Z(claims[i], r_Y[i], r_meta[i]) if form else 0.0
            total.append(R_generator(form, r_Y[i], r_z, *self.alpha_beta))
        return Rewards(total, formed=formed, log={**log, "R_Y": r_Y})


def judged_proofs(turns: list[tuple[str, str | None]]) -> list[tuple[str | None, str | None]]:
    """(proof, its author's critique or None) of a trajectory's turns, in order."""
    out = []
    for task, text in turns:
        if task == "prove":
            out.append((text, None))
        else:
            out[-1] = (out[-1][0], text)
    return out
