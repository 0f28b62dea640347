"""Settings of the two training loops (trainer.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nanov2.settings import (
    Above0,
    Count,
    Few,
    LearningRate,
    Positive,
    Rate,
    Temperature,
    Tokens,
    Weight,
    Within,
    setting,
)

MOST_ROWS = 1 << 22  # completions of a step, over all ranks
Batch = Annotated[int, Within(1, 65_536)]
Optimizer = Literal["adamw", "muon"]
MUON = "AdamW, or Muon for the matrices of the blocks, which models from scratch learn faster with"


@dataclass(frozen=True)
class BaseConfig:
    """Supervised training of the base on imperfect demonstrations."""

    steps: Count = setting(3000, "optimiser steps")
    batch: Batch = setting(32, "documents a step, over all ranks")
    lr: LearningRate = setting(2e-3, "peak learning rate")
    warmup: Count = setting(50, "steps of linear warm-up")
    decay: Rate = setting(0.4, "last share of the steps, in which the learning rate falls linearly to 5%")
    weight_decay: Weight = setting(0.01, "of the optimiser, apart from the gradients")
    optimizer: Optimizer = setting("adamw", MUON)
    max_grad_norm: Above0 = setting(1.0, "gradients are scaled down to this norm")
    skip_norm: Above0 = setting(1000.0, "a step whose gradient norm is above it, or not finite, is skipped")
    max_skipped: Positive = setting(5, "abort after this many skipped steps in a row, with the batch saved")
    eval_every: Positive = setting(500, "steps between measurements on held-out demonstrations")
    save_every: Positive = setting(500, "steps between checkpoints")
    keep: Few = setting(2, "number of checkpoints to keep")


@dataclass(frozen=True)
class GRPOConfig:
    """GRPO, section 2.1 and Shao et al. 2024."""

    steps: Count = setting(120, "rollout steps")
    prompts: Batch = setting(16, "groups a step that have variance, over all ranks (see refill)")
    samples: Annotated[int, Within(2, 65_536)] = setting(12, "G, completions per prompt")
    first_samples: Annotated[int, Within(0, 65_536)] = setting(
        0, "so many of them first, the others only where the rewards of these differ; 0 = all at once"
    )
    temperature: Temperature = setting(1.0, "of sampling and of every log-prob in the loss")
    max_tokens: Tokens = setting(64, "limit of one turn, <end> included; longer is truncated and counted")
    lr: LearningRate = setting(3e-4, "peak learning rate")
    warmup: Count = setting(5, "steps of linear warm-up")
    decay: Rate = setting(0.3, "last share of the steps, in which the learning rate falls linearly to 10%")
    weight_decay: Weight = setting(0.0, "of the optimiser, apart from the gradients")
    optimizer: Optimizer = setting("adamw", MUON)
    max_grad_norm: Above0 = setting(1.0, "gradients are scaled down to this norm")
    skip_norm: Above0 = setting(1000.0, "a step whose gradient norm is above it, or not finite, is skipped")
    max_skipped: Positive = setting(5, "abort after this many skipped steps in a row, with the batch saved")
    epochs: Few = setting(1, "optimiser passes over each rollout")
    minibatches: Batch = setting(1, "optimiser steps per pass")
    clip_low: Rate = setting(0.2, "ε: the ratio is clipped below 1 − ε")
    clip_high: Weight = setting(0.28, "separate upper clip (DAPO's clip-higher)")
    kl_coef: Weight = setting(0.0, "β of the k3 KL to the starting weights; 0 = no reference is kept")
    kl_weighted: bool = setting(
        False, "the KL is multiplied by the ratio, which makes its gradient unbiased (DeepSeek-V3.2, TRL)"
    )
    loss_type: Literal["dapo", "grpo", "dr_grpo", "gspo"] = setting(
        "dapo", "normalised by tokens, by rows, by maximum length, or by sequences"
    )
    ratio: Literal["loss_type", "token", "sequence"] = setting(
        "loss_type", "one of each token, or one a completion; as loss_type has it: gspo has one a completion"
    )
    off_policy_delta: Weight = setting(
        0.0,
        "completions with A < 0 that lost more nats a token since they were sampled do not count; 0 = off",
    )
    malformed_penalty: Weight = setting(0.0, "taken off the reward of an answer without form or end")
    scale: Literal["std", "none", "loo"] = setting("std", "what a group's advantages are divided by")
    refill: Annotated[int, Within(0, 100)] = setting(2, "further rounds to replace groups without variance")
    draw: Literal["uniform", "variance"] = setting(
        "uniform", "which prompts: each once a pass, or by how much their group's rewards varied last"
    )
    is_cap: Weight = setting(
        2.0, "cap of the importance weight trainer/sampler where they may differ: in bf16; 0 = off"
    )
    eval_every: Positive = setting(20, "steps between measurements on validation problems")
    save_every: Positive = setting(40, "steps between checkpoints")
    keep: Few = setting(2, "number of checkpoints to keep")
    batch_rows: Positive = setting(512, "completions decoded together: more is faster, and takes more memory")
    pack_tokens: Tokens = setting(2048, "a pack: one prompt and as many of its completions as fit")
    micro_tokens: Tokens = setting(4096, "tokens of a micro-batch")
    checkpointing: bool = setting(False, "recompute blocks in the backward pass: less memory, more time")

    def __post_init__(self):
        if self.prompts * self.samples > MOST_ROWS:
            raise ValueError(
                f"prompts {self.prompts:,} times samples {self.samples:,} must be at most {MOST_ROWS:,} rows"
            )
        if self.first_samples and not 2 <= self.first_samples < self.samples:
            raise ValueError(
                f"first_samples {self.first_samples} must be 0, or from 2 to less than samples {self.samples}"
            )
        if self.kl_weighted and not self.kl_coef:
            raise ValueError("kl_weighted weighs a KL that kl_coef = 0 leaves out: set kl_coef above 0")
        if self.ratio == "token" and self.loss_type == "gspo":
            raise ValueError('loss_type gspo has one ratio a completion: with ratio = "token" it is grpo')
        if self.off_policy_delta and self.optimizer_steps == 1 and not self.is_cap:
            raise ValueError(
                "off_policy_delta: with one optimiser step a rollout and is_cap = 0 every completion counts "
                "as on policy: set epochs or minibatches above 1, or is_cap above 0"
            )

    @property
    def optimizer_steps(self) -> int:
        """Of each rollout."""
        return self.epochs * self.minibatches

    @property
    def of_rows(self) -> bool:
        """Whether the loss looks at completions as wholes, not at their tokens alone."""
        by_row = self.loss_type in ("grpo", "gspo") or self.ratio == "sequence"
        return by_row or self.off_policy_delta > 0
