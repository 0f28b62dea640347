"""Mixture of experts: in place of an MLP, many small ones, of which each token goes to a few.

Two families. DeepSeek-V3 (arXiv 2412.19437, section 2.1.2): sigmoid scores, groups of experts, a shared
expert; the load is balanced without an auxiliary loss (arXiv 2408.15664): a bias on the router's scores,
that counts in the selection alone moves up for experts with little work, down for those with much. Qwen3:
a softmax over all experts, no shared one, no bias.

The experts of a layer are three stacked tensors. Tokens are sorted by expert and go through them in one
grouped product each: in bf16 by one kernel, and nothing waits for the device. In fp32, and where widths are
no multiples of 16 bytes, it is a product for each expert, and the host waits for the counts of their tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from nanov2.model.layers import MLP, Half, in_half, rounded

_grouped_mm = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


@dataclass(frozen=True)
class ExpertsConfig:
    """Shape of a mixture of experts, by the names of DeepSeek's config.json."""

    n_routed_experts: int
    num_experts_per_tok: int  # experts that a token goes to
    moe_intermediate_size: int  # hidden width of an expert
    n_shared_experts: int = 1  # experts (as one wide MLP) that every token goes to
    n_group: int = 1  # experts are in so many groups,
    topk_group: int = 1  # and a token's are in at most so many of them
    norm_topk_prob: bool = True  # the chosen experts' weights sum to 1, before
    routed_scaling_factor: float = 1.0  # they are scaled
    first_k_dense_replace: int = 0  # so many first layers have a plain MLP
    balance_rate: float = 0.001  # what the selection's bias moves by after each optimiser step
    scores: Literal["sigmoid", "softmax"] = "sigmoid"  # of the router; softmax: no bias, no groups (Qwen3)

    def __post_init__(self):
        n, groups = self.n_routed_experts, self.n_group
        if n % groups or not 0 < self.topk_group <= groups:
            raise ValueError(
                f"model: {n} n_routed_experts are not in {groups} equal groups (n_group), or topk_group "
                f"{self.topk_group} is not from 1 to that"
            )
        if not 0 < self.num_experts_per_tok <= n // groups * self.topk_group:
            raise ValueError(
                f"model: num_experts_per_tok {self.num_experts_per_tok} is more than topk_group groups hold"
            )


class Router(nn.Module):
    """Which experts a token goes to, and with which weights; equations 12 to 16."""

    def __init__(self, dim: int, config: ExpertsConfig):
        super().__init__()
        self.config, n = config, config.n_routed_experts
        self.weight = nn.Parameter(torch.empty(n, dim))
        if config.scores == "sigmoid":
            self.e_score_correction_bias = nn.Parameter(torch.zeros(n), requires_grad=False)  # see `balance`

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, D] → weights and experts, both [T, num_experts_per_tok]. In fp32, whatever x is in."""
        c = self.config
        logits = x.float() @ self.weight.float().T
        scores = logits.sigmoid() if c.scores == "sigmoid" else logits.softmax(-1)
        choice = scores.detach()
        if c.scores == "sigmoid":
            choice = self._grouped(choice + self.e_score_correction_bias)
        experts = choice.topk(c.num_experts_per_tok, dim=-1).indices
        weights = scores.gather(1, experts)
        if c.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * c.routed_scaling_factor, experts

    def _grouped(self, choice: Tensor) -> Tensor:
        """−inf for experts outside of the best groups; a group is as good as its two best experts."""
        c = self.config
        if c.n_group == c.topk_group:
            return choice
        groups = choice.unflatten(1, (c.n_group, -1))
        worth = groups.topk(min(2, groups.shape[2]), dim=-1).values.sum(-1)
        best = torch.zeros_like(worth, dtype=torch.bool)
        best.scatter_(1, worth.topk(c.topk_group, dim=-1).indices, True)
        return groups.masked_fill(~best[..., None], float("-inf")).flatten(1)


class Stacked(nn.Module):
    """SwiGLU of all experts of a layer, E of them; in the ecosystem's folders each is a tensor of its own."""

    in_bf16 = False

    def __init__(self, dim: int, hidden: int, n: int):
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(n, hidden, dim))
        self.up_proj = nn.Parameter(torch.empty(n, hidden, dim))
        self.down_proj = nn.Parameter(torch.empty(n, dim, hidden))
        self._copies: dict[str, Half] = {}

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """x [N, D], sorted by expert, `counts` [E] of each → [N, D]."""
        if self.in_bf16:
            x = x.bfloat16()
        gate, up = (grouped_product(x, self._matrix(name), counts) for name in ("gate_proj", "up_proj"))
        return grouped_product(F.silu(gate) * up, self._matrix("down_proj"), counts)

    def _matrix(self, name: str) -> Tensor:
        """The weights as they are multiplied; their copy in bf16 is made when they have changed."""
        weight = getattr(self, name)
        if not self.in_bf16:
            return weight
        self._copies[name] = in_half(weight, self._copies.get(name))
        return rounded(weight, self._copies[name][1])


def grouped_product(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Rows x [N, D], the first counts[0] times weight[0].T, the next counts[1] times weight[1].T, … → [N, O].

    One kernel in bf16, where torch has it and widths are multiples of 16 bytes; else one product an expert.
    """
    wide = all(side % 8 == 0 for side in weight.shape[1:])
    if _grouped_mm is not None and x.dtype == weight.dtype == torch.bfloat16 and wide and len(x):
        return _grouped_mm(x, weight.mT, offs=counts.cumsum(0).int())
    x = x.to(torch.promote_types(x.dtype, weight.dtype))
    # Also where there is no row: every expert has a gradient, if only of zeros.
    parts = x.split(counts.tolist())
    return torch.cat([part @ w.T.to(x.dtype) for part, w in zip(parts, weight, strict=True)])


class Experts(nn.Module):
    """In place of an MLP. `load` counts the tokens of each expert since the last `balance`."""

    def __init__(self, dim: int, config: ExpertsConfig):
        super().__init__()
        self.config, n, hidden = config, config.n_routed_experts, config.moe_intermediate_size
        self.gate = Router(dim, config)
        self.experts = Stacked(dim, hidden, n)
        if config.n_shared_experts:
            self.shared_experts = MLP(dim, hidden * config.n_shared_experts)
        self.load: Tensor | None = None  # [E]

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        weights, chosen = self.gate(flat)
        T, k = chosen.shape
        counts = torch.zeros(self.config.n_routed_experts, dtype=torch.long, device=x.device)
        counts = counts.scatter_add(0, chosen.flatten(), torch.ones_like(chosen.flatten()))
        if torch.is_grad_enabled():  # checkpointing counts twice, all experts alike
            self.load = counts if self.load is None else self.load + counts
        order = chosen.flatten().argsort(stable=True)  # of the T·k visits, those of expert 0 first
        out = self.experts(flat[order // k], counts)
        dtype = torch.promote_types(flat.dtype, self.gate.weight.dtype)
        visits = out.to(dtype)[order.argsort()].view(T, k, -1)  # each token's, side by side
        mixed = (visits * weights[..., None].to(dtype)).sum(1)
        if self.config.n_shared_experts:
            mixed = mixed + self.shared_experts(flat)
        return mixed.view_as(x)


def balance(model: nn.Module, ranks) -> None:
    """After an optimiser step: each expert's bias moves by `balance_rate` towards the mean load of all ranks.

    Auxiliary-loss-free balancing: only the sign of the difference counts. Models without experts, or whose
    routers have no bias, are left alone.
    """
    for module in model.modules():
        if not isinstance(module, Experts):
            continue
        n, load = module.config.n_routed_experts, module.load
        module.load = None
        if module.config.scores != "sigmoid":
            continue
        counted = [0] * n if load is None else load.tolist()
        total = ranks.sum({str(i): float(x) for i, x in enumerate(counted)})
        total = torch.tensor([total[str(i)] for i in range(n)])
        bias = module.gate.e_score_correction_bias
        move = module.config.balance_rate * (total.mean() - total).sign().to(bias.device)
        if isinstance(bias, DTensor):  # every rank has the whole of it and takes its own part
            move = distribute_tensor(move, bias.device_mesh, bias.placements, src_data_rank=None)
        bias.data.add_(move)
