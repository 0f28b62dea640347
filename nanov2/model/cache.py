"""Keys and values while sampling: of every prompt once, and of every row its own, in one growing buffer.

A row is one completion in the making. The rows of a group attend to one copy of their prompt's keys and
values, which is what makes large groups cheap: reading the cache is most of the work of a small model's
decoding step. Rows come and go each on its own, so their lengths differ. A step launches the same number of
operators however long the completions are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from nanov2.model.layers import rotary

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v [B, heads, L, d] → [B, H, L, d]
BLOCK = 32  # own slots are read in multiples of it


class Cache:
    """Room for `rows` completions of `prompts` prompts of at most `prompt_len` tokens.

    Keys and values are kept (`kinds` = 2); where the keys are the values too, only they are (1).

    Shapes: A prompts, R rows, G rows of the largest group, P prompt slots, S own slots, H query heads in
    K key-value heads, d head_dim.
    """

    def __init__(self, config, rows: int, prompts: int, prompt_len: int, like: Tensor):
        self.config, self.like = config, like
        c = config
        self.prompt_kv = like.new_zeros(
            c.n_layers, c.cache_kinds, prompts, c.cache_heads, prompt_len, c.cache_dim
        )
        self.own_kv = like.new_zeros(c.n_layers, c.cache_kinds, rows, c.cache_heads, BLOCK, c.cache_dim)
        self.prompt_lengths = torch.zeros(prompts, dtype=torch.long, device=like.device)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=like.device)  # own tokens of each row
        self.group = torch.zeros(rows, dtype=torch.long, device=like.device)  # the prompt slot of each row
        self.recent = torch.full((rows, config.embed_conv), -1, device=like.device)  # tokens, oldest first
        self.longest = 0  # of `lengths`, known without asking the device
        self.turns = self._turns()
        self.common = 0  # tokens that all prompts begin with: they are in every slot

    def filling(self, slots: Tensor, L: int) -> Callable[[int], Attend]:
        """Attention of new prompts in `slots`, of up to L tokens from the token `common` on, by layer."""
        mask = None
        if self.common:
            mask = torch.ones(L, self.common + L, dtype=torch.bool, device=slots.device).tril(self.common)
        return lambda layer: partial(self._fill, layer, slots, mask)

    def _fill(
        self, layer: int, slots: Tensor, mask: Tensor | None, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        """Attention of new prompts [A', heads, L, d] to what they begin with (then there is a mask) and among
        themselves; their keys and values are kept."""
        n, L = self.common, q.shape[2]
        for i, x in enumerate((k, v)[: self.config.cache_kinds]):
            self.prompt_kv[layer, i, slots, :, n : n + L] = x
        if n:
            begun = (self.prompt_kv[layer, i, :1, :, :n].to(k.dtype) for i in (0, -1))
            k, v = (
                torch.cat([b.expand(len(x), -1, -1, -1), x], dim=2)
                for b, x in zip(begun, (k, v), strict=True)
            )
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=not n, enable_gqa=q.shape[1] != k.shape[1]
        )

    def seat(self, rows: Tensor, slots: Tensor, recent: Tensor) -> None:
        """Rows start anew as completions of the prompts in `slots` [len(rows)], which end in `recent`."""
        self.group[rows], self.lengths[rows], self.recent[rows] = slots, 0, recent

    def keep(self, rows: Tensor) -> None:
        """Only these rows stay, renumbered in this order, and only their prompts."""
        self.own_kv = self.own_kv[:, :, rows]
        self.lengths, self.recent = self.lengths[rows], self.recent[rows]
        slots, self.group = self.group[rows].unique(return_inverse=True)
        if len(slots) < len(self.prompt_lengths):
            self.prompt_kv, self.prompt_lengths = self.prompt_kv[:, :, slots], self.prompt_lengths[slots]

    def arrange(self) -> None:
        """After rows were seated or dropped: which rows share a prompt, as a table [A, G]."""
        counts = torch.bincount(self.group, minlength=len(self.prompt_lengths))
        G, order = int(counts.max()), self.group.argsort(stable=True)
        self.rows = torch.arange(len(order), device=order.device)
        first = counts.cumsum(0) - counts
        self.place = torch.empty_like(order)  # [R] where each row is in the flattened table
        self.place[order] = self.group[order] * G + self.rows - first[self.group[order]]
        self.table = order.new_zeros(len(counts), G)  # its unused places repeat row 0
        self.table.view(-1)[self.place] = self.rows
        self.P = int(self.prompt_lengths.max())
        self.prompt_bias = self._bias(self.prompt_lengths, self.P)
        self.longest = int(self.lengths.max())

    def begin(self) -> Tensor:
        """Room for one more token in every row; returns its positions [R]."""
        self.make_room()
        self.S = BLOCK * (self.longest // BLOCK + 1)
        self.own_bias = self._bias(self.lengths + 1, self.S)
        return self.prompt_lengths[self.group] + self.lengths

    def make_room(self) -> None:
        """For another token in every row: doubled, so that one of n tokens is copied less than twice."""
        if self.longest == self.own_kv.shape[4]:
            self.own_kv = F.pad(self.own_kv, (0, 0, 0, self.longest))
            self.turns = self._turns()

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [R, 1, 1, rope_dim] for the positions [R] of a step, read from a table."""
        cos, sin = self.turns
        return cos[positions][:, None, None], sin[positions][:, None, None]

    def end(self, rows: Tensor) -> None:
        """The token begun counts in `rows`; elsewhere it is written over by the next."""
        self.lengths[rows] += 1
        self.longest += 1

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of one new token per row, q [R, H, 1, d], to its prompt and its own tokens.

        Scores are summed in fp32 at any dtype, as the trainer's attention sums them.
        """
        (R, H, _, d), K = q.shape, k.shape[1]
        for i, x in enumerate((k, v)[: self.config.cache_kinds]):
            self.own_kv[layer, i][self.rows, :, self.lengths] = x[:, :, 0].to(self.like.dtype)
        # Grouped query heads are so many more queries of a head.
        queries = (q.float() * d**-0.5).view(R, K, H // K, d)
        keys, values = (self.prompt_kv[layer, i, :, :, : self.P] for i in (0, -1))
        own_keys, own_values = (self.own_kv[layer, i, :, :, : self.S] for i in (0, -1))
        prompt = self._to_groups(queries) @ keys.float().mT + self.prompt_bias
        own = queries @ own_keys.float().mT + self.own_bias
        scores = torch.cat([self._to_rows(prompt, H // K), own], dim=-1)  # [R, K, H/K, P+S]
        weights = scores.softmax(dim=-1).to(values.dtype)
        out = self._to_rows(self._to_groups(weights[..., : self.P]) @ values, H // K)
        return (out + weights[..., self.P :] @ own_values).reshape(R, H, 1, d).to(q.dtype)

    def _to_groups(self, x: Tensor) -> Tensor:
        """[R, K, h, n] → [A, K, G·h, n]: the rows of a group side by side, for one matrix product."""
        return x[self.table].transpose(1, 2).flatten(2, 3)

    def _to_rows(self, x: Tensor, h: int) -> Tensor:
        """The way back."""
        A, K, _, n = x.shape
        return x.view(A, K, -1, h, n).transpose(1, 2).flatten(0, 1)[self.place]

    def _turns(self) -> tuple[Tensor, Tensor]:
        """cos and sin [positions, rope_dim] of all that there is room for."""
        positions = self.prompt_kv.shape[4] + self.own_kv.shape[4]
        cos, sin = rotary(torch.arange(positions, device=self.like.device)[None], self.config)
        return cos[0, 0], sin[0, 0]

    def _bias(self, lengths: Tensor, width: int) -> Tensor:
        """[len, 1, 1, width] in fp32: 0 for the first `lengths` slots, −inf after."""
        slots = torch.arange(width, device=lengths.device)
        bias = torch.zeros(len(lengths), width, device=lengths.device)
        return bias.masked_fill_(slots >= lengths[:, None], float("-inf"))[:, None, None]
