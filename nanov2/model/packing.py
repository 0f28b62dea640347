"""From sequences to packs: a prompt once, then all completions that continue it, end to end.

Packs are gathered into micro-batches, which hold no padding (see nanov2.attention.Layout).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nanov2.model.attention import Layout

WORTH_SHARING = 32  # tokens that prompts begin with alike


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
    """As few packs as hold all completions at `max_tokens` each, or twice the prompt where that is more, so
    that a long prompt is not computed again for every completion (a single longer one has its own pack).

    Completions of like length come together, for attention lays them out in rectangles.
    """
    max_tokens = max(max_tokens, 2 * len(prompt))
    packs = [Pack(prompt, [])]
    for completion in sorted(completions, key=lambda c: -len(c.ids)):
        if packs[-1].completions and len(packs[-1]) + len(completion.ids) > max_tokens:
            packs.append(Pack(prompt, []))
        packs[-1].completions.append(completion)
    return packs


def common_prefix(prompts: list[list[int]]) -> list[int]:
    """What all prompts begin with."""
    first, last = min(prompts), max(prompts)
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:n]


def share_prefix(packs: list[Pack], max_tokens: int) -> list[Pack]:
    """Packs whose prompts begin alike as packs of that beginning, computed once; the rest of each prompt
    begins its completion, uncounted. What counts sees the same tokens as before. Packs of several
    completions, whose rest of the prompt would be computed for each, stay as they are, and so do packs of
    which no two begin alike."""
    if any(len(p.completions) > 1 for p in packs):
        return packs
    alike: list[list[Pack]] = []
    for pack in sorted(packs, key=lambda p: p.prompt):
        shared = len(common_prefix([alike[-1][0].prompt, pack.prompt])) if alike else 0
        if shared < max(WORTH_SHARING, len(pack.prompt) // 3):
            alike.append([])
        alike[-1].append(pack)
    if len(alike) == len(packs):
        return packs  # in their order
    return [q for like in alike for q in _as_one(like, max_tokens)]


def _as_one(packs: list[Pack], max_tokens: int) -> list[Pack]:
    if len(packs) == 1:
        return packs
    prefix, completions = common_prefix([p.prompt for p in packs]), []
    for pack in packs:
        rest, (c,) = pack.prompt[len(prefix) :], pack.completions
        completions.append(Completion(rest + c.ids, [False] * len(rest) + c.counted, c.row))
    return make_packs(prefix, completions, max_tokens)


def micro_batches(packs: list[Pack], max_tokens: int) -> list[list[Pack]]:
    """Packs of like length together, at most `max_tokens` in all (a single longer pack is alone)."""
    batches: list[list[Pack]] = []
    room = 0
    for pack in sorted(packs, key=len, reverse=True):
        if not batches or len(pack) > room:
            batches.append([])
            room = max_tokens
        batches[-1].append(pack)
        room -= len(pack)
    return batches


@dataclass
class PackedBatch:
    """A layout and, for its completion tokens in order, where to read the hidden state that predicts each."""

    layout: Layout
    at: Tensor  # [N] index of the token that predicts
    target: Tensor  # [N] the token
    counted: Tensor  # [N] bool
    offsets: Tensor  # [R+1] completion r is tokens offsets[r]:offsets[r+1]
    rows: Tensor  # [R] the caller's index of each completion

    def to(self, device: torch.device) -> PackedBatch:
        return PackedBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


def collate(packs: list[Pack]) -> PackedBatch:
    """One batch of packs; no prompt may be empty: it predicts the first token of its completions."""
    A, P = len(packs), max(len(p.prompt) for p in packs)
    G = max(len(p.completions) for p in packs)
    S = max(len(c.ids) for p in packs for c in p.completions)
    prompts, completions = torch.zeros(A, P, dtype=torch.long), torch.zeros(A, G, S, dtype=torch.long)
    lengths = torch.zeros(A, G, dtype=torch.long)
    ids, positions, previous, home = [], [], [], []
    at, target, counted, sizes, rows = [], [], [], [], []
    for a, pack in enumerate(packs):
        start, p = len(ids), len(pack.prompt)
        prompts[a, :p] = torch.arange(start, start + p)
        ids += pack.prompt
        positions += range(p)
        previous += [-1, *range(start, start + p - 1)]
        home += range(a * P, a * P + p)
        for g, completion in enumerate(pack.completions):
            here, n = len(ids), len(completion.ids)
            completions[a, g, :n] = torch.arange(here, here + n)
            lengths[a, g] = n
            before = [start + p - 1, *range(here, here + n - 1)]
            ids += completion.ids
            positions += range(p, p + n)
            previous += before
            first = A * P + (a * G + g) * S
            home += range(first, first + n)
            at += before
            target += completion.ids
            counted += completion.counted
            sizes.append(n)
            rows.append(completion.row)
    prompt_lengths = [len(p.prompt) for p in packs]
    ids, positions, previous, prompt_lengths, home = (
        torch.tensor(x) for x in (ids, positions, previous, prompt_lengths, home)
    )
    return PackedBatch(
        Layout(ids, positions, previous, prompts, completions, prompt_lengths, lengths, home),
        torch.tensor(at),
        torch.tensor(target),
        torch.tensor(counted),
        torch.tensor([0, *sizes]).cumsum(0),
        torch.tensor(rows),
    )
