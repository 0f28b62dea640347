"""Multi-head latent attention, which DeepSeek-V3 has in place of plain attention (arXiv 2412.19437, 2.1.1).

Keys and values of all heads come from one small latent vector a token. It is computed in the absorbed form
throughout, in training as in sampling: each head's up-projection of the keys goes into its query and that of
the values behind the attention, so that what is attended to, and cached, is the latent and one rotary key,
shared by all heads. That is attention with one key-value head, and `Layout` and `Cache` serve as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanov2.model.layers import Linear, RMSNorm, for_attention, rotate


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
