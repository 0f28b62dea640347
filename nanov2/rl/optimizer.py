"""The optimiser: its learning rate, and one step of it."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.distributed.tensor import DTensor

from nanov2.distributed.ranks import Ranks
from nanov2.distributed.safety import usable
from nanov2.model.decoder import Model
from nanov2.model.experts import balance
from nanov2.rl.config import BaseConfig, GRPOConfig, Optimizer

BETAS = (0.9, 0.98)  # AdamW's
MOMENTUM = 0.95  # Muon's


def make_optimizer(
    model: Model, lr: float, weight_decay: float, kind: Optimizer = "adamw"
) -> torch.optim.Optimizer:
    """AdamW, all in one kernel; or Muon for the matrices of the blocks, and AdamW for the rest."""
    if kind == "muon":
        return Muon(model, lr, weight_decay)
    return _adamw([p for p in model.parameters() if p.requires_grad], lr, weight_decay)


def _adamw(params: list[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW(params, lr, BETAS, weight_decay=weight_decay, fused=True)
    if not any(isinstance(p, DTensor) for p in params):
        # The fused kernel does not say that it has changed the weights, and copies in bf16 must know.
        optimizer.register_step_post_hook(lambda *_: increment_version(params))
    return optimizer


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024) for the matrices of a model's blocks: momentum, made orthogonal. AdamW for the rest.

    An update has the size of AdamW's, so that one learning rate serves both (Liu et al. 2025, arXiv
    2502.16982). torch.optim.Muon is the same, one matrix after the other and in bf16 alone, which some
    processors multiply slowly: here all matrices of a shape at once, in the model's precision. Whole
    matrices only: no shards, no adapters.
    """

    def __init__(self, model: Model, lr: float, weight_decay: float):
        self.dtype = torch.bfloat16 if model.in_bf16 else torch.float32
        matrices = [p for p in model.layers.parameters() if p.ndim == 2]
        chosen = set(matrices)
        self._adamw = _adamw([p for p in model.parameters() if p not in chosen], lr, weight_decay)
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self.state.update({p: {"momentum_buffer": torch.zeros_like(p.detach())} for p in matrices})
        self.param_groups += self._adamw.param_groups
        self._adamw.state = self.state  # one state and one list of groups: what a checkpoint keeps

    @torch.no_grad()
    def step(self, closure=None) -> None:
        group, shapes = self.param_groups[0], defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                shapes[p.shape].append(p)
        for shape, params in shapes.items():
            nesterov = []
            for p in params:
                momentum = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - MOMENTUM)
                nesterov.append(p.grad.lerp(momentum, MOMENTUM))
            size = 0.2 * max(shape) ** 0.5  # root mean square 0.2, about that of AdamW's updates
            updates = orthogonal(torch.stack(nesterov).to(self.dtype)).float()
            for p, update in zip(params, updates, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * size)
        self._adamw.step()


def orthogonal(matrices: Tensor) -> Tensor:
    """About UVᵀ of each matrix USVᵀ [n, rows, columns], by five steps of Newton and Schulz's iteration with
    Jordan's coefficients, which leave singular values between about 0.7 and 1.2."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.mT
        polynomial = torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return x.mT if tall else x


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
