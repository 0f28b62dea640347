"""Log-probs, advantages and the policy loss: the three places where GRPO's arithmetic happens.

Each has a plain PyTorch reference, which is the specification, a form for CPUs and Triton kernels for GPUs.
GRPO uses these functions everywhere: nothing else computes a log-prob, an advantage or a loss.
"""

from kernels.advantage import GroupStats, group_advantage
from kernels.logprob import linear_logprob
from kernels.policy_loss import LOSS_TYPES, policy_loss

__all__ = ["LOSS_TYPES", "GroupStats", "group_advantage", "linear_logprob", "policy_loss"]
