"""The optimiser: its learning rate, and one step of it."""

from __future__ import annotations

import torch
from torch.autograd.graph import increment_version
from torch.distributed.fsdp import FSDPModule

from nanov2.distributed.ranks import Ranks
from nanov2.distributed.safety import usable
from nanov2.model.decoder import Model
from nanov2.model.experts import balance
from nanov2.rl.config import BaseConfig, GRPOConfig


def make_optimizer(model: Model, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, all in one kernel."""
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr, (0.9, 0.98), weight_decay=weight_decay, fused=True)
    if isinstance(model, FSDPModule):
        return optimizer
    # The fused kernel does not say that it has changed the weights, and copies in bf16 must know.
    optimizer.register_step_post_hook(lambda *_: increment_version(learnt))
    return optimizer


def schedule(step: int, steps: int, warmup: int, decay: float, floor: float) -> float:
    """The learning rate's factor at a step: linear warm-up, flat, then linear down to `floor`."""
    up = min(1.0, (step + 1) / max(warmup, 1))
    left = (steps - step) / max(decay * steps, 1e-9)
    return up * max(floor, min(1.0, left))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def descend(
    model: Model, optimizer: torch.optim.Optimizer, config: BaseConfig | GRPOConfig, ranks: Ranks
) -> float | None:
    """A step on the gradients of all ranks; returns their norm, or None where it was unusable and skipped."""
    ranks.sum_gradients(model)
    norm = ranks.clip_gradients(model, config.max_grad_norm)
    good = usable(norm, config.skip_norm)
    if good:
        optimizer.step()
        balance(model, ranks)
    optimizer.zero_grad(set_to_none=True)
    return norm if good else None
