"""What DeepSeek-V3 has in place of plain attention and plain MLPs (arXiv 2412.19437, section 2.1).

Multi-head latent attention: keys and values of all heads come from one small latent vector a token. It is
computed in the absorbed form throughout, in training as in sampling: each head's up-projection of the keys
goes into its query and that of the values behind the attention, so that what is attended to, and cached, is
the latent and one rotary key, shared by all heads. That is attention with one key-value head, and `Layout`
and `Cache` serve as they are.

Mixture of experts: each token goes to a few of many small MLPs, and to a shared one. Their load is balanced
without an auxiliary loss (arXiv 2408.15664): a bias on the router's scores, which counts in the selection
alone, moves up for experts with little work and down for those with much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from nanov2.model.layers import MLP, Linear, RMSNorm, for_attention, rotate


@dataclass(frozen=True)
class LatentConfig:
    """Shape of multi-head latent attention, by the names of DeepSeek's config.json."""

    kv_lora_rank: int  # width of the latent that keys and values come from
    qk_nope_head_dim: int  # width of a head's query and key without positions
    qk_rope_head_dim: int  # and with rotary positions; the rotary key is shared by all heads
    v_head_dim: int  # width of a head's value
    q_lora_rank: int = 0  # width of the queries' latent; 0: queries are projected directly
    interleaved: bool = True  # rotary pairs lie side by side in the weights, not in two halves

    @property
    def width(self) -> int:
        """Of what is attended to and cached: the latent and the rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim


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


class LatentAttention(nn.Module):
    """Multi-head latent attention, section 2.1.1, in the absorbed form.

    `scale` is the softmax's temperature on top of 1/√(width of a head), for long contexts.
    """

    in_bf16 = False

    def __init__(self, dim: int, heads: int, config: LatentConfig, scale: float):
        super().__init__()
        c = self.config = config
        self.heads, head = heads, c.qk_nope_head_dim + c.qk_rope_head_dim
        # `attend` divides by the root of what it sees, which is wider than a head.
        self.scale = scale * (c.width / head) ** 0.5
        if c.q_lora_rank:
            self.q_a_proj = Linear(dim, c.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(c.q_lora_rank, 1e-6)
            self.q_b_proj = Linear(c.q_lora_rank, heads * head, bias=False)
        else:
            self.q_proj = Linear(dim, heads * head, bias=False)
        self.kv_a_proj_with_mqa = Linear(dim, c.width, bias=False)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, 1e-6)
        self.kv_b_proj = Linear(c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim), bias=False)
        self.o_proj = Linear(heads * c.v_head_dim, dim, bias=False)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], attend: Callable) -> Tensor:
        c, (B, L, _) = self.config, x.shape
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))) if c.q_lora_rank else self.q_proj(x)
        q = q.view(B, L, self.heads, -1).transpose(1, 2)
        plain, turned = q.split([c.qk_nope_head_dim, c.qk_rope_head_dim], dim=-1)
        latent, key = self.kv_a_proj_with_mqa(x)[:, None].split([c.kv_lora_rank, c.qk_rope_head_dim], dim=-1)
        up = self.kv_b_proj.matrix.view(self.heads, -1, c.kv_lora_rank)
        up_key, up_value = up.split([c.qk_nope_head_dim, c.v_head_dim], dim=1)  # [H, head's width, rank]
        q = torch.cat([plain @ up_key, self._turn(turned, rope)], dim=-1) * self.scale
        key = torch.cat([self.kv_a_layernorm(latent), self._turn(key, rope)], dim=-1)  # [B, 1, L, width]
        # The key serves as the value too: of what comes out, only the latent's part is read.
        q, key = for_attention(q, self.in_bf16), for_attention(key, self.in_bf16)
        out = attend(q, key, key)[..., : c.kv_lora_rank].to(up_value.dtype) @ up_value.mT
        return self.o_proj(out.transpose(1, 2).reshape(B, L, -1))

    def _turn(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        if self.config.interleaved:
            x = torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)
        return rotate(x, *rope)


class Router(nn.Module):
    """Which experts a token goes to, and with which weights; equations 12 to 16."""

    def __init__(self, dim: int, config: ExpertsConfig):
        super().__init__()
        self.config, n = config, config.n_routed_experts
        self.weight = nn.Parameter(torch.empty(n, dim))
        self.e_score_correction_bias = nn.Parameter(torch.zeros(n), requires_grad=False)  # see `balance`

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, D] → weights and experts, both [T, num_experts_per_tok]. In fp32, whatever x is in."""
        c = self.config
        scores = (x.float() @ self.weight.float().T).sigmoid()
        choice = (scores + self.e_score_correction_bias).detach()
        groups = choice.unflatten(1, (c.n_group, -1))
        if c.n_group > c.topk_group:  # a group is as good as its two best experts
            worth = groups.topk(min(2, groups.shape[2]), dim=-1).values.sum(-1)
            best = torch.zeros_like(worth, dtype=torch.bool)
            best.scatter_(1, worth.topk(c.topk_group, dim=-1).indices, True)
            choice = groups.masked_fill(~best[..., None], float("-inf")).flatten(1)
        experts = choice.topk(c.num_experts_per_tok, dim=-1).indices
        weights = scores.gather(1, experts)
        if c.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * c.routed_scaling_factor, experts


class Experts(nn.Module):
    """In place of an MLP. `load` counts the tokens of each expert since the last `balance`."""

    def __init__(self, dim: int, config: ExpertsConfig):
        super().__init__()
        self.config, n, hidden = config, config.n_routed_experts, config.moe_intermediate_size
        self.gate = Router(dim, config)
        self.experts = nn.ModuleList(MLP(dim, hidden) for _ in range(n))
        self.shared_experts = MLP(dim, hidden * config.n_shared_experts)
        self.load = [0.0] * n

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        weights, chosen = self.gate(flat)
        if torch.is_grad_enabled():  # checkpointing counts twice, all experts alike
            counts = torch.bincount(chosen.flatten(), minlength=len(self.load)).tolist()
            self.load = [a + b for a, b in zip(self.load, counts, strict=True)]
        out = torch.zeros_like(flat, dtype=torch.promote_types(flat.dtype, self.gate.weight.dtype))
        for i, expert in enumerate(self.experts):
            # Also where there is none: every expert has a gradient on every rank, if only of zeros.
            token, place = (chosen == i).nonzero(as_tuple=True)
            part = expert(flat[token]) * weights[token, place, None].to(out.dtype)
            out = out.index_add(0, token, part)
        return (out + self.shared_experts(flat)).view_as(x)


def balance(model: nn.Module, ranks) -> None:
    """After an optimiser step: each expert's bias moves by `balance_rate` towards the mean load of all ranks.

    Auxiliary-loss-free balancing: only the sign of the difference counts. Models without experts are left
    alone.
    """
    for module in model.modules():
        if not isinstance(module, Experts):
            continue
        load = ranks.sum({str(i): n for i, n in enumerate(module.load)})
        total = torch.tensor([load[str(i)] for i in range(len(load))])
        module.load = [0.0] * len(load)
        bias = module.gate.e_score_correction_bias
        move = module.config.balance_rate * (total.mean() - total).sign().to(bias.device)
        if isinstance(bias, DTensor):  # every rank has the whole of it and takes its own part
            move = distribute_tensor(move, bias.device_mesh, bias.placements, src_data_rank=None)
        bias.data.add_(move)
