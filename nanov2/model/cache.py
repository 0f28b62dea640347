"""Keys and values while sampling: of every prompt once, and of every row its own, in blocks.

A row is one completion in the making. The rows of a group attend to one copy of their prompt's keys and
values, which is what makes large groups cheap: reading the cache is most of the work of a small model's
decoding step. Rows come and go each on its own, so their lengths differ.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32  # slots by which the rows' own memory grows; growing copies nothing


class Cache:
    """Room for `rows` completions of `prompts` prompts of at most `prompt_len` tokens.

    Keys and values are kept (`kinds` = 2); where the keys are the values too, only they are (1).

    Shapes: A prompts, R rows, G rows of the largest group, P prompt slots, S own slots, H query heads in
    K key-value heads, d head_dim.
    """

    def __init__(self, config, rows: int, prompts: int, prompt_len: int, like: Tensor):
        self.config, self.like = config, like
        c = config
        shape = (c.n_layers, c.cache_kinds, prompts, c.cache_heads, prompt_len, c.cache_dim)
        self.prompt_kv = like.new_zeros(shape)
        self.blocks: list[Tensor] = []  # each [layers, kinds, R, K, BLOCK, d]
        self.prompt_lengths = torch.zeros(prompts, dtype=torch.long, device=like.device)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=like.device)  # own tokens of each row
        self.group = torch.zeros(rows, dtype=torch.long, device=like.device)  # the prompt slot of each row
        self.recent = torch.full((rows, config.embed_conv), -1, device=like.device)  # tokens, oldest first
        self.longest = 0  # of `lengths`, known without asking the device

    def fill(self, layer: int, slots: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of new prompts [A', heads, L, d] among themselves; their keys and values are kept."""
        for i, x in enumerate((k, v)[: self.config.cache_kinds]):
            self.prompt_kv[layer, i, slots, :, : x.shape[2]] = x
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])

    def seat(self, rows: Tensor, slots: Tensor, recent: Tensor) -> None:
        """Rows start anew as completions of the prompts in `slots` [len(rows)], which end in `recent`."""
        self.group[rows], self.lengths[rows], self.recent[rows] = slots, 0, recent

    def keep(self, rows: Tensor) -> None:
        """Only these rows stay, renumbered in this order, and only their prompts."""
        self.blocks = [block[:, :, rows] for block in self.blocks]
        self.lengths, self.recent = self.lengths[rows], self.recent[rows]
        slots, self.group = self.group[rows].unique(return_inverse=True)
        if len(slots) < len(self.prompt_lengths):
            self.prompt_kv, self.prompt_lengths = self.prompt_kv[:, :, slots], self.prompt_lengths[slots]

    def arrange(self) -> None:
        """After rows were seated or dropped: which rows share a prompt, as a table [A, G]."""
        counts = torch.bincount(self.group, minlength=len(self.prompt_lengths))
        G, order = int(counts.max()), self.group.argsort(stable=True)
        rows, first = torch.arange(len(order), device=order.device), counts.cumsum(0) - counts
        self.place = torch.empty_like(order)  # [R] where each row is in the flattened table
        self.place[order] = self.group[order] * G + rows - first[self.group[order]]
        self.table = order.new_zeros(len(counts), G)  # its unused places repeat row 0
        self.table.view(-1)[self.place] = rows
        self.P = int(self.prompt_lengths.max())
        self.prompt_bias = self._bias(self.prompt_lengths, self.P)
        self.longest = int(self.lengths.max())

    def begin(self) -> Tensor:
        """Room for one more token in every row; returns its positions [R]."""
        if self.longest == len(self.blocks) * BLOCK:
            L, kinds, _, K, _, d = self.prompt_kv.shape
            self.blocks.append(self.like.new_zeros(L, kinds, len(self.lengths), K, BLOCK, d))
        self.used = self.blocks[: self.longest // BLOCK + 1]
        which, slot = self.lengths // BLOCK, self.lengths % BLOCK
        rows = [(block, (which == j).nonzero()[:, 0]) for j, block in enumerate(self.used)]
        self.writes = [(block, r, slot[r]) for block, r in rows if len(r)]
        self.own_bias = self._bias(self.lengths + 1, len(self.used) * BLOCK)
        return self.prompt_lengths[self.group] + self.lengths

    def end(self, rows: Tensor) -> None:
        """The token begun counts in `rows`; elsewhere it is written over by the next."""
        self.lengths[rows] += 1
        self.longest += 1

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of one new token per row, q [R, H, 1, d], to its prompt and its own tokens."""
        (R, H, _, d), K = q.shape, k.shape[1]
        for block, rows, slots in self.writes:
            for i, x in enumerate((k, v)[: self.config.cache_kinds]):
                block[layer, i, rows, :, slots] = x[rows, :, 0]
        q = (q * d**-0.5).view(R, K, H // K, d)  # grouped query heads are so many more queries of a head
        own = torch.cat([q @ block[layer, 0].mT for block in self.used], dim=-1) + self.own_bias
        keys, values = (self.prompt_kv[layer, i, :, :, : self.P] for i in (0, -1))
        prompt = self._to_rows(self._to_groups(q) @ keys.mT + self.prompt_bias, H // K)
        weights = torch.cat([prompt, own], dim=-1).float().softmax(dim=-1).to(q.dtype)  # [R, K, H/K, P+S]
        out = self._to_rows(self._to_groups(weights[..., : self.P]) @ values, H // K)
        for j, block in enumerate(self.used):
            start = self.P + j * BLOCK
            out = out + weights[..., start : start + BLOCK] @ block[layer, -1]
        return out.reshape(R, H, 1, d)

    def attention(self, layer: int, slots: Tensor | None = None):
        """What a block calls with its q, k, v: `fill` for new prompts in `slots`, else `attend`."""
        return partial(self.attend, layer) if slots is None else partial(self.fill, layer, slots)

    def _to_groups(self, x: Tensor) -> Tensor:
        """[R, K, h, n] → [A, K, G·h, n]: the rows of a group side by side, for one matrix product."""
        return x[self.table].transpose(1, 2).flatten(2, 3)

    def _to_rows(self, x: Tensor, h: int) -> Tensor:
        """The way back."""
        A, K, _, n = x.shape
        return x.view(A, K, -1, h, n).transpose(1, 2).flatten(0, 1)[self.place]

    def _bias(self, lengths: Tensor, width: int) -> Tensor:
        """[len, 1, 1, width]: 0 for the first `lengths` slots, −inf after."""
        slots = torch.arange(width, device=lengths.device)
        bias = torch.zeros(len(lengths), width, dtype=self.like.dtype, device=lengths.device)
        return bias.masked_fill_(slots >= lengths[:, None], float("-inf"))[:, None, None]
