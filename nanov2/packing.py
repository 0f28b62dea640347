"""From sequences to packs: a prompt once, then all completions that continue it, end to end.

A pack is one row of a `Layout`. Packs are gathered into micro-batches of about equal work.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nanov2.model import Layout


@dataclass
class Completion:
    """One completion of a prompt: its tokens and which of them count in the loss."""

    ids: list[int]
    counted: list[bool]
    row: int = 0  # the caller's index


@dataclass
class Pack:
    prompt: list[int]
    completions: list[Completion]

    def __len__(self) -> int:
        return len(self.prompt) + sum(len(c.ids) for c in self.completions)


def make_packs(prompt: list[int], completions: list[Completion], max_tokens: int) -> list[Pack]:
    """As few packs as hold all completions at `max_tokens` each (a single longer one has its own pack)."""
    packs = [Pack(prompt, [])]
    for completion in completions:
        if packs[-1].completions and len(packs[-1]) + len(completion.ids) > max_tokens:
            packs.append(Pack(prompt, []))
        packs[-1].completions.append(completion)
    return packs


def micro_batches(packs: list[Pack], max_tokens: int) -> list[list[Pack]]:
    """Packs of like length together, each micro-batch at most `max_tokens` with its padding."""
    batches: list[list[Pack]] = []
    for pack in sorted(packs, key=len, reverse=True):  # so the first pack of a batch is its longest
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0]) <= max_tokens:
            batches[-1].append(pack)
        else:
            batches.append([pack])
    return batches


@dataclass
class PackedBatch:
    """A layout and, for its completion tokens in order, where to read the hidden state that predicts each."""

    layout: Layout
    at: Tensor  # [T] flat index (into B·L) of the position that predicts the token
    target: Tensor  # [T] the token
    counted: Tensor  # [T] bool
    offsets: Tensor  # [R+1] completion r is tokens offsets[r]:offsets[r+1]
    rows: Tensor  # [R] the caller's index of each completion

    def to(self, device: torch.device) -> PackedBatch:
        layout = Layout(*(getattr(self.layout, f.name).to(device) for f in fields(Layout)))
        rest = (getattr(self, f.name).to(device) for f in fields(self) if f.name != "layout")
        return PackedBatch(layout, *rest)


def collate(packs: list[Pack], pad: int) -> PackedBatch:
    """One batch of packs; no prompt may be empty: it predicts the first token of its completions."""
    length = max(map(len, packs))
    shape = (len(packs), length)
    ids = torch.full(shape, pad)
    positions, segments = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    previous = torch.full(shape, -1)
    at, target, counted, sizes, rows = [], [], [], [], []
    for b, pack in enumerate(packs):
        P = len(pack.prompt)
        ids[b, :P] = torch.tensor(pack.prompt)
        positions[b, :P] = torch.arange(P)
        segments[b, :P] = 0
        previous[b, :P] = torch.arange(-1, P - 1)
        here = P
        for s, completion in enumerate(pack.completions, start=1):
            n = len(completion.ids)
            new = slice(here, here + n)
            ids[b, new] = torch.tensor(completion.ids)
            positions[b, new] = torch.arange(P, P + n)
            segments[b, new] = s
            before = torch.arange(here - 1, here + n - 1)
            before[0] = P - 1
            previous[b, new] = before
            at.append(b * length + before)
            target += completion.ids
            counted += completion.counted
            sizes.append(n)
            rows.append(completion.row)
            here += n
    return PackedBatch(
        Layout(ids, positions, segments, previous),
        torch.cat(at),
        torch.tensor(target),
        torch.tensor(counted),
        torch.tensor([0, *sizes]).cumsum(0),
        torch.tensor(rows),
    )
