"""What each GRPO phase trains on: items, prompts, and the reward of section 2 of the paper.

The expert's scores (s, ms) reach a reward only through the records that an expert has graded. `truth`, a
parameter of its own, feeds figures for the curves: no reward looks at it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from nanov2.domains.domain import Truth
from nanov2.domains.language import Language
from nanov2.errors import InputError
from nanov2.method.judges import Judge, Judgement, OwnScores
from nanov2.method.rewards import R_Z, R_format, R_gated, R_generator, R_verifier
from nanov2.model.rollout import Rollout
from nanov2.records import CritiqueRecord, ProblemRecord, ProofRecord
from nanov2.rl.task import Part, Rewards


def true_scores(truth: Truth | None, items: list, proofs: list[str | None]) -> list[float]:
    """The truth of each proof, for figures alone; NaN where nobody knows. A missing proof is worth 0."""
    if truth is None:
        return [math.nan] * len(proofs)
    return [truth.score(item.problem, p) for item, p in zip(items, proofs, strict=True)]


class SingleTurn:
    """A task whose trajectories are one answer."""

    max_turns = max_given = 1

    def __init__(self, language: Language, truth: Truth | None = None):
        self.language, self.truth = language, truth

    def next_turn(self, rollout: Rollout) -> list[int] | None:
        return None


class VerifierTask(SingleTurn):
    """1B, 1C, 1D: on 𝒟v R = R_format · R_score (· R_meta with `meta`), on 𝒟mv R = R_format · R_score.

    Items are ProofRecords (write a critique) and CritiqueRecords (write a meta-critique), in any mixture.
    `findings`, the expert's of each (problem, proof), give credit to each finding of a critique beside the
    reward of the whole: 1 if it is one of the expert's and said for the first time, else 0.
    """

    def __init__(
        self,
        language: Language,
        meta: Judge | None = None,
        truth: Truth | None = None,
        findings: dict[tuple[str, str], frozenset[str]] | None = None,
    ):
        super().__init__(language, truth)
        self.meta, self.findings = meta, findings
        if findings is not None and type(language).findings is Language.findings:
            raise InputError('verifier.credit = "finding": this language names no findings; set "answer"')

    @property
    def judges(self) -> dict[str, Judge]:
        return {"meta": self.meta} if self.meta else {}

    def prompt(self, item: ProofRecord | CritiqueRecord) -> list[int]:
        if isinstance(item, CritiqueRecord):
            return self.language.ids(self.language.meta(item.problem, item.proof, item.critique))
        return self.language.ids(self.language.verify(item.problem, item.proof))

    def rewards(self, items: list, rollouts: list[Rollout]) -> Rewards:
        answers = [self.language.answer(r) for r in rollouts]
        claims = [self._claim(item, answer) for item, answer in zip(items, answers, strict=True)]
        r_format = [R_format(c) for c in claims]
        r_score = [  # R_format · R_score: the whole reward where R_meta does not gate it
            R_verifier(c, c, item.quality if isinstance(item, CritiqueRecord) else item.score)
            for c, item in zip(claims, items, strict=True)
        ]
        r_meta = self._r_meta(items, answers, r_score)
        reward = [
            s if m is None else R_gated(f, s, m) for f, s, m in zip(r_format, r_score, r_meta, strict=True)
        ]
        log = {
            "format": r_format,
            "score": r_score,
            "truth_quality": self._true_qualities(items, answers),
            "false_accept": self._false_accepts(items, claims),
        }
        if self.meta:
            log["meta"] = [math.nan if m is None else m for m in r_meta]
        if self.findings is None:
            return Rewards(reward, log=log)
        parts = [self._parts(*of_one) for of_one in zip(items, rollouts, claims, strict=True)]
        log["finding"] = [math.fsum(p.worth for p in ps) / len(ps) if ps else math.nan for ps in parts]
        return Rewards(reward, log=log, parts=parts)

    def _parts(self, item, rollout: Rollout, claim: float | None) -> list[Part]:
        """The findings of a critique, each with its credit; none in one without the required form."""
        if claim is None or not isinstance(item, ProofRecord):
            return []
        right, said, parts = self.findings[item.problem, item.proof], set(), []
        for start, end, text in self.language.findings(rollout):
            parts.append(Part(start, end, float(text in right and text not in said)))
            said.add(text)
        return parts

    def _claim(self, item: ProofRecord | CritiqueRecord, answer: str | None) -> float | None:
        meta = isinstance(item, CritiqueRecord)
        return (self.language.claimed_quality if meta else self.language.claimed_score)(answer)

    def _r_meta(self, items: list, answers: list[str | None], r_score: list[float]) -> list[float | None]:
        """R_meta of each critique whose reward it can change; None for the others, which are not gated."""
        r_meta: list[float | None] = [None] * len(items)
        if not self.meta:
            return r_meta
        ask = [i for i, item in enumerate(items) if isinstance(item, ProofRecord) and r_score[i] > 0]
        questions = [self.language.meta(items[i].problem, items[i].proof, answers[i]) for i in ask]
        for i, judgement in zip(ask, self.meta.ask(questions), strict=True):
            r_meta[i] = judgement.score
        return r_meta

    @staticmethod
    def _false_accepts(items: list, claims: list[float | None]) -> list[float]:
        """For the curves: of each proof of 𝒟v that is given full marks, whether the expert gave less."""
        of_proofs = [c if isinstance(i, ProofRecord) else None for c, i in zip(claims, items, strict=True)]
        return false_accepts(of_proofs, [i.score for i in items])

    def _true_qualities(self, items: list, answers: list[str | None]) -> list[float]:
        """For the curves: the quality of each critique of a proof that can be read."""
        out = [math.nan] * len(items)
        for i, (item, answer) in enumerate(zip(items, answers, strict=True)):
            if self.truth and isinstance(item, ProofRecord) and answer is not None:
                grade = self.truth.examine(item.problem, item.proof, answer)
                out[i] = grade.quality if grade and self._claim(item, answer) is not None else math.nan
        return out


class GeneratorTask(SingleTurn):
    """2: the frozen verifier's score of the proof is the whole reward.

    `own` gives the generator's own score of (the first) `asked` proofs of each group: for an alarm, in no
    reward.
    """

    def __init__(
        self,
        language: Language,
        verifier: Judge,
        truth: Truth | None = None,
        own: OwnScores | None = None,
        asked: int = 0,
    ):
        super().__init__(language, truth)
        self.verifier, self.own, self.asked = verifier, own, asked

    @property
    def judges(self) -> dict[str, Judge]:
        return with_gate({"verifier": self.verifier})

    def prompt(self, item: ProblemRecord) -> list[int]:
        return self.language.ids(self.language.prove(item.problem))

    def rewards(self, items: list[ProblemRecord], rollouts: list[Rollout]) -> Rewards:
        proofs = [self.language.turns(r)[0][1] for r in rollouts]
        judged = judge_proofs(self.verifier, self.language, items, proofs)
        scores = [j.score for j in judged]
        truth = true_scores(self.truth, items, proofs)
        formed = [self.language.is_proof(p) for p in proofs]
        log = {
            "truth": truth,
            "format": [float(f) for f in formed],
            "false_accept": false_accepts(scores, truth),
            "judge_spread": [j.spread for j in judged],
            "self_gap": differences(self._own_scores(items, rollouts, proofs, formed), scores),
        }
        return Rewards(scores, formed=formed, log=log)

    def _own_scores(self, items, rollouts: list[Rollout], proofs, formed: list[bool]) -> list[float]:
        """The generator's own scores of the first proofs of each group; NaN for the others."""
        ask, seen = [], Counter()
        for i, rollout in enumerate(rollouts):
            if formed[i] and seen[rollout.group] < self.asked:
                seen[rollout.group] += 1
                ask.append(i)
        own = [math.nan] * len(proofs)
        questions = [self.language.verify(items[i].problem, proofs[i]) for i in ask]
        for i, score in zip(ask, self.own(questions) if ask else [], strict=True):
            own[i] = score
        return own


def with_gate(judges: dict[str, Judge]) -> dict[str, Judge]:
    """The judges, and the one that weighs the verifier's critiques (rule "gate")."""
    gate = getattr(judges.get("verifier"), "meta", None)
    return judges | ({"gate": gate} if gate else {})


def false_accepts(scores: Sequence[float | None], truth: list[float]) -> list[float]:
    """Of each proof that is given full marks, whether it does not deserve them; NaN for the rest, also where
    no score can be read (None)."""
    return [
        float(t < 1) if s == 1 and not math.isnan(t) else math.nan for s, t in zip(scores, truth, strict=True)
    ]


def judge_proofs(verifier: Judge, language: Language, items, proofs: list[str | None]) -> list[Judgement]:
    """What the verifier says of each proof; one without the form of a proof is 0 without being asked."""
    ask = [i for i, p in enumerate(proofs) if language.is_proof(p)]
    found = [Judgement(0.0, (), ())] * len(proofs)
    questions = [language.verify(items[i].problem, proofs[i]) for i in ask]
    for i, judgement in zip(ask, verifier.ask(questions), strict=True):
        found[i] = judgement
    return found


def differences(own: list[float], scores: list[float]) -> list[float]:
    """Own score less the judge's, the self-internalisation gap: below 0 the judge pays for what the generator
    itself does not believe. NaN where either did not answer."""
    return [o - s for o, s in zip(own, scores, strict=True)]


class SelfVerifyTask:
    """3: draft → own critique → revision → …; the reward is on the final proof.

    A trajectory ends after a critique that gives score 1 (no issue found), or after `max_turns` turns
    (chat models: answers that hold a proof and its evaluation).
    With `alpha_beta` it is the paper's R_format · (α·R_Y + β·R_Z), where Z is the last critique of the
    final proof, R_Y the verifier's score of it, and R_Z = R_score(s', R_Y) · R_meta(Z); the limit then leaves
    room for that critique, so that every ending can earn the full reward. `budget` (0: none): no turn begins
    once a trajectory has so many tokens.
    """

    def __init__(
        self,
        language: Language,
        verifier: Judge | None,
        max_turns: int,
        meta: Judge | None = None,
        alpha_beta: tuple[float, float] | None = None,
        budget: int = 0,
        truth: Truth | None = None,
    ):
        per_proof = language.turns_per_proof
        self.max_turns = -(-max_turns // per_proof) * per_proof if alpha_beta else max_turns
        self.language, self.verifier, self.truth = language, verifier, truth
        self.meta, self.alpha_beta = meta, alpha_beta
        self.max_given, self.budget = language.max_given, budget

    @property
    def judges(self) -> dict[str, Judge]:
        return with_gate({n: j for n, j in (("verifier", self.verifier), ("meta", self.meta)) if j})

    def prompt(self, item: ProblemRecord) -> list[int]:
        return self.language.ids(self.language.self_verify(item.problem))

    def next_turn(self, rollout: Rollout) -> list[int] | None:
        spent = self.budget and len(rollout.ids) >= self.budget
        return None if spent else self.language.follow(rollout)

    def rewards(self, items: list[ProblemRecord], rollouts: list[Rollout]) -> Rewards:
        trajectories = [judged_proofs(self.language.turns(r)) for r in rollouts]
        finals = [proofs[-1][0] for proofs in trajectories]
        critiques = [proofs[-1][1] for proofs in trajectories]
        judged = judge_proofs(self.verifier, self.language, items, finals)
        r_Y = [j.score for j in judged]
        formed = [self.language.is_proof(p) for p in finals]
        claims = [self.language.claimed_score(c) for c in critiques]
        truth = true_scores(self.truth, items, finals)
        gap = differences([math.nan if c is None else c for c in claims], r_Y)
        log = {
            "truth": truth,
            "truth_draft": true_scores(self.truth, items, [proofs[0][0] for proofs in trajectories]),
            "proofs": [float(len(proofs)) for proofs in trajectories],
            "self_score_error": [abs(g) for g in gap],
            "self_gap": gap,
            "self_false_accept": false_accepts(claims, truth),
            "judge_spread": [j.spread for j in judged],
            "false_accept": false_accepts(r_Y, truth),
        }
        if not self.alpha_beta:
            return Rewards(r_Y, formed=formed, log=log)
        r_meta = self._r_meta(items, finals, critiques, claims, formed)
        reward = []
        for y, claim, form, m in zip(r_Y, claims, formed, r_meta, strict=True):
            r_format = R_format(claim) * float(form)
            r_Z = R_Z(claim, y, m) if r_format else 0.0
            reward.append(R_generator(r_format, y, r_Z, *self.alpha_beta))
        return Rewards(reward, formed=formed, log={**log, "R_Y": r_Y})

    def _r_meta(self, items, finals, critiques, claims, formed) -> list[float]:
        """R_meta of each author's critique that can be read; 1 where nobody judges critiques."""
        r_meta = [1.0] * len(items)
        if self.meta:
            ask = [i for i, claim in enumerate(claims) if claim is not None and formed[i]]
            questions = [self.language.meta(items[i].problem, finals[i], critiques[i]) for i in ask]
            for i, judgement in zip(ask, self.meta.ask(questions), strict=True):
                r_meta[i] = judgement.score
        return r_meta


def judged_proofs(turns: list[tuple[str, str | None]]) -> list[tuple[str | None, str | None]]:
    """(proof, its author's critique or None) of a trajectory's turns, in order."""
    out: list[tuple[str | None, str | None]] = []
    for task, text in turns:
        if task == "prove":
            out.append((text, None))
        else:
            out[-1] = (out[-1][0], text)
    return out
