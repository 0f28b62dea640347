"""The rewards of DeepSeekMath-V2 as pure functions, with the paper's symbols (arXiv 2511.22570).

Each takes and returns plain numbers in [0, 1]. None means "no answer": an output that does not parse is
its own state (R_format = 0), and a judge that failed to answer is NaN, never a score of 0.
"""

from __future__ import annotations

import math

NAN = math.nan


def R_format(parsed: object | None) -> float:
    """1 if the output has the required form (it parsed), else 0. Section 2.1.1."""
    return float(parsed is not None)


def R_score(predicted: float, s: float) -> float:
    """1 − |s' − s|: how near the verifier's score s' is to the expert's s. Section 2.1.1."""
    return 1.0 - abs(predicted - s)


def R_verifier(parsed: object | None, predicted: float, s: float) -> float:
    """R_format · R_score: the verifier's reward (1B), and the meta-verifier's with ms for s (1C)."""
    return R_format(parsed) and R_score(predicted, s)


def R_gated(r_format: float, r_score: float, r_meta: float) -> float:
    """R_format · R_score · R_meta: the enhanced verifier's reward (1D), section 2.1.2.

    R_meta is NaN where the meta-verifier failed to answer; so is the result then, unless another gate is
    shut and the answer does not matter.
    """
    if r_format == 0.0 or r_score == 0.0:
        return 0.0
    return r_format * r_score * r_meta


def R_Z(self_score: float, s: float, r_meta: float) -> float:
    """R_score(s', s) · R_meta(Z): the reward of the generator's own critique Z, section 2.2.

    `s` is the verifier's score of the proof that Z judges.
    """
    return R_score(self_score, s) * r_meta


def R_generator(r_format: float, R_Y: float, r_Z: float, alpha: float = 0.76, beta: float = 0.24) -> float:
    """R_format · (α·R_Y + β·R_Z) with the paper's α = 0.76, β = 0.24, section 2.2. R_Y: verifier's score."""
    return r_format * (alpha * R_Y + beta * r_Z) if r_format else 0.0


def R_looks(rule: str, scores: list[float], weights: list[float]) -> float:
    """What several looks at one item come to; NaN where there are none, or none that counts.

    "mean"; "min", the pessimistic lowest (a proof is as good as the worst that any look finds); "gate", the
    mean weighed by `weights`: 1 for a look that finds no issue, else the quality that the meta-verifier
    gives to it, NaN where it failed to answer, and then the look is left out.
    """
    if rule != "gate":
        weights = [1.0] * len(scores)
    known = [(s, w) for s, w in zip(scores, weights, strict=True) if w > 0]
    if not known:
        return NAN
    if rule == "min":
        return min(s for s, _ in known)
    if len({s for s, _ in known}) == 1:  # exactly: a reward of 1 must be told from 0.9999…
        return known[0][0]
    return sum(s * w for s, w in known) / sum(w for _, w in known)
