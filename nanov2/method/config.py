"""Settings of the method: one class for each phase of the cycle, labels, search and figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nanov2.method.sequential import SequentialTest
from nanov2.rl.config import BaseConfig, Batch, GRPOConfig
from nanov2.settings import (
    Count,
    Few,
    LearningRate,
    Positive,
    Rate,
    Temperature,
    TemperatureOrGreedy,
    Within,
    setting,
)

Judge = Literal["run", "engine", "endpoint"]
Chance = Annotated[float, Within(0.0001, 0.9999)]  # a probability that is neither 0 nor 1


@dataclass(frozen=True)
class ColdstartConfig:
    """1A: the weak prover's proofs, refined, drawn and scored by the expert."""

    problems: Count = setting(2400, "problems that the weak prover writes proofs for")
    hard: Rate = setting(0.0, "share of them that are of the harder ones, as later phases train on")
    rounds: Few = setting(3, "proofs per trajectory: a draft and its revisions")
    subset: Count = setting(3000, "proofs drawn, spread over problem types and scores")
    expert: str = setting(
        "",
        'who scores them: "" (expert; with "grades" or "marks", which cannot, none are written), "exact", '
        '"person", "page", "endpoint" (consensus of its critiques, by [autolabel]), "nobody" (kept, for '
        "people to score later), or the path of a labelled JSONL file",
    )


@dataclass(frozen=True)
class ConsolidateConfig(BaseConfig):
    """Rejection fine-tuning of the base of a later lap, where a phase has init = "consolidated"."""

    steps: Count = setting(400, "optimiser steps")
    batch: Batch = setting(16, "documents a step: half best samples, half demonstrations")
    lr: LearningRate = setting(5e-4, "peak learning rate")


@dataclass(frozen=True)
class VerifierConfig(GRPOConfig):
    """1B: the verifier v1, from the base."""

    credit: Literal["answer", "finding"] = setting(
        "answer", "whose reward tokens share: the whole critique's, or also that of the finding they are in"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.credit == "finding" and self.of_rows:
            raise ValueError(
                f'credit = "finding" gives tokens advantages of their own, and loss_type {self.loss_type!r} '
                f"with ratio {self.ratio!r} and off_policy_delta {self.off_policy_delta:g} takes one a "
                'critique: set loss_type = "dapo" or "dr_grpo", ratio = "token" and off_policy_delta = 0'
            )


@dataclass(frozen=True)
class AwareConfig(BaseConfig):
    """The solution-aware critic: v1 learns what it says itself with the reference solution in view."""

    on: bool = setting(False, "whether the flywheel trains it")
    steps: Count = setting(200, "optimiser steps")
    batch: Batch = setting(16, "critiques a step, over all ranks")
    lr: LearningRate = setting(3e-4, "peak learning rate")
    warmup: Count = setting(10, "steps of linear warm-up")
    samples: Few = setting(
        4, "critiques that v1 writes of each proof of 𝒟v; those with the right score are learnt"
    )
    solution: bool = setting(True, "whether it has the reference solution in view (false: the ablation)")


@dataclass(frozen=True)
class MetaConfig(GRPOConfig):
    """1C: the meta-verifier, from the base."""

    critiques: Few = setting(1, "critiques of each proof of 𝒟v that v1 writes and the expert grades")
    misses: bool = setting(
        False,
        "whether the exact expert gives 0.5 at most to a critique that misses an issue (paper: claims alone)",
    )


@dataclass(frozen=True)
class RenewMetaConfig(GRPOConfig):
    """1C in laps 2, 3, …: the meta-verifier goes on with the last verifier's critiques of new proofs."""

    on: bool = setting(False, "whether it is done (false: laps keep the meta-verifier and 𝒟mv of lap 1)")
    steps: Count = setting(30, "rollout steps")
    proofs: Count = setting(800, "newly labelled proofs whose critiques the expert grades")


@dataclass(frozen=True)
class JudgedConfig(GRPOConfig):
    """A phase whose reward comes from frozen judges."""

    init: Literal["base", "verifier", "generator", "previous", "consolidated"] = setting(
        "base", "where the weights start"
    )
    judge: Judge = setting(
        "run", "the frozen judge: a finished phase's model, here or served by [rollout], or the endpoint's"
    )
    judge_samples: Few = setting(1, "looks: answers of the frozen judge per item, at most")
    judge_temperature: TemperatureOrGreedy = setting(1.0, "at which the frozen judge answers")
    judge_rule: Literal["mean", "min", "gate"] = setting(
        "mean", "what looks come to: mean; min, the pessimistic lowest; gate, weighed by their meta-scores"
    )
    judge_error: Annotated[float, Within(0, 0.49)] = setting(
        0.0,
        "accepted chance that looks end too early, by a sequential test; 0: all judge_samples are taken",
    )


@dataclass(frozen=True)
class LapVerifier2Config(JudgedConfig):
    """The verifier of laps 2, 3, …"""

    init: Literal["base", "previous", "consolidated"] = setting("base", "where the weights start")
    meta_gate: bool = setting(True, "whether R_meta gates the reward (false: the ablation)")
    judge_rule: Literal["mean", "min"] = setting("mean", "what the meta-verifier's looks come to")


@dataclass(frozen=True)
class Verifier2Config(LapVerifier2Config):  # as later ones, but for where it can start
    """1D: the verifier v2; R_meta gates its reward."""

    init: Literal["base"] = setting("base", "where the weights start")


@dataclass(frozen=True)
class ProverConfig(JudgedConfig):
    """A phase that trains a generator of proofs."""

    keep_best: Literal["none", "truth"] = setting(
        "none", "whether the true score on validation problems chooses weights and ends the phase"
    )
    max_gap: Rate = setting(0.1, 'reward minus true score at which keep_best = "truth" ends the phase')
    judged_by: Literal["verifier2", "verifier", "aware", "base"] = setting(
        "verifier2", "the phase whose model is the frozen verifier: v2; v1 or the base are weaker ones"
    )


@dataclass(frozen=True)
class LapGeneratorConfig(ProverConfig):
    """The generator of laps 2, 3, …"""

    init: Literal["base", "verifier", "generator", "previous", "consolidated"] = setting(
        "base", "where the weights start (generator: the last lap's of phase 2; previous: of phase 3)"
    )
    self_scores: Count = setting(
        1, "proofs of each group that the generator scores itself, for the alarm `self_gap`; 0: none"
    )


@dataclass(frozen=True)
class GeneratorConfig(LapGeneratorConfig):
    """2: the generator."""

    init: Literal["base", "verifier"] = setting("base", "where the weights start (verifier: v2)")


@dataclass(frozen=True)
class LapSelfVerifyConfig(ProverConfig):
    """The self-verifying generator of laps 2, 3, …"""

    init: Literal["base", "verifier", "generator", "previous", "consolidated"] = setting(
        "base", "where the weights start"
    )
    max_turns: Few = setting(1, "turns of a trajectory: 1 proof; 3 proof, critique, revision; …")
    reward: Literal["final", "alpha_beta"] = setting(
        "final", "on the final proof only, or the paper's α·R_Y + β·R_Z"
    )
    alpha: Rate = setting(0.76, "α")
    beta: Rate = setting(0.24, "β")


@dataclass(frozen=True)
class SelfVerifyConfig(LapSelfVerifyConfig):
    """3: the self-verifying generator."""

    init: Literal["base", "verifier", "generator"] = setting("base", "where the weights start (verifier: v2)")


@dataclass(frozen=True)
class AutolabelConfig:
    """4: labels by consensus. The paper does not publish n, m, k; these are ours."""

    problems: Annotated[int, Within(1, 100_000)] = setting(1200, "new hard problems")
    proofs: Few = setting(2, "proofs of each by the generator")
    n: Few = setting(8, "critiques per proof")
    m: Few = setting(3, "meta-assessments of each critique that reports an issue")
    k: Few = setting(2, "valid critiques that must give the lowest score")
    rule: Literal["consensus", "majority", "mean", "gate", "worst", "single"] = setting(
        "consensus", "how critiques become a label (gate: mean by meta-scores; worst: the lowest of n)"
    )
    chunk: Few = setting(2, "critiques drawn at a time; a proof whose label is settled gets no more")
    clean: Few = setting(8, "this many first critiques without an issue settle a label of 1; n: all of them")
    error: Annotated[float, Within(0, 0.49)] = setting(
        0.0,
        "accepted chance that critiques end too early, by a sequential test (right or wrong?); 0: no test",
    )
    max_doubt: Annotated[float, Within(0, 1e9)] = setting(
        9.0, "bits of doubt (nanov2/method/consensus.py) above which a label is unclear; 9 = no limit"
    )
    disputed: Literal["unclear", "right"] = setting(
        "unclear", 'k reports, none confirmed: "unclear", or "right" by the paper\'s letter'
    )
    temperature: TemperatureOrGreedy = setting(1.0, "at which critiques are drawn")
    most: Count = setting(0, "labelled proofs that join 𝒟v: those that are hardest to verify; 0: all")
    grow: bool = setting(True, "whether the labelled proofs join 𝒟v (false: the ablation)")

    @property
    def test(self) -> SequentialTest | None:
        """When critiques suffice for a label; None: they are drawn without a test."""
        return SequentialTest(given_up=self.error, missed=self.error) if self.error else None

    def __post_init__(self):
        if self.k > self.n:
            raise ValueError(f"autolabel: k {self.k} valid critiques cannot be among n {self.n}")


@dataclass(frozen=True)
class SearchConfig:
    """Search at high compute (sample.py search). The paper: pool 64, n 64, 8 critiques shown, 16 rounds."""

    pool: Few = setting(16, "drafts of each problem")
    keep: Few = setting(4, "best proofs that a round revises")
    children: Few = setting(4, "revisions of each of them, from as many of its critiques")
    rounds: Annotated[int, Within(0, 1000)] = setting(4, "rounds of revisions")
    n: Few = setting(8, "critiques of a proof")
    chunk: Few = setting(2, "critiques between two looks of the sequential test")
    m: Annotated[int, Within(0, 1000)] = setting(
        1, "meta-assessments of each critique that reports an issue; 0: every critique weighs 1"
    )
    judge_rule: Literal["gate", "mean", "min"] = setting(
        "gate", "what critiques come to: weighed by meta-scores; mean; min, the pessimistic lowest"
    )
    temperature: Temperature = setting(1.0, "at which proofs and critiques are drawn")
    issues_if_right: Chance = setting(0.1, "how often a critique reports an issue in a right proof")
    issues_if_wrong: Chance = setting(0.7, "and in a wrong one")
    given_up: Chance = setting(0.02, "accepted chance to give up a right proof")
    missed: Chance = setting(0.1, "accepted chance to go on with a wrong one")

    @property
    def test(self) -> SequentialTest:
        """When critiques suffice to give a proof up."""
        return SequentialTest(self.issues_if_right, self.issues_if_wrong, self.given_up, self.missed)

    def __post_init__(self):
        if self.issues_if_wrong <= self.issues_if_right:
            raise ValueError(
                f"search: issues_if_wrong {self.issues_if_wrong:g} must be above issues_if_right "
                f"{self.issues_if_right:g}"
            )


@dataclass(frozen=True)
class EvalConfig:
    """How the held-out figures are made."""

    temperature: TemperatureOrGreedy = setting(1.0, "at which held-out answers are sampled")
    proofs: Positive = setting(800, "held-out proofs that a verifier is measured on")
    samples: Few = setting(2, "samples per held-out problem for a generator")
    rounds: Few = setting(4, "refinement rounds at inference: at most this many proofs in a row")
    greedy: bool = setting(True, "every held-out figure also at temperature 0")
    pass_at: tuple[Count, Count, Count, Count] = setting(
        (1, 4, 16, 64), "the k of pass@k, measured of the base and the generators; 0: none"
    )
    pass_problems: Positive = setting(50, "held-out problems that pass@k is measured on")
    demonstrations: Positive = setting(96, "held-out demonstrations that the base's loss is measured on")
    shown: Count = setting(40, "samples kept for the report, per phase")
