"""Sampling with continuous batching: groups of completions of the same prompt, turn by turn.

A prompt is computed once for its whole group, and what all prompts begin with (rubrics, mostly) once for
all. Rows that finish are replaced by those of the next prompts; when none wait, the batch shrinks. Each row
draws from its own line of uniform numbers, so its sample depends neither on its neighbours nor on how the
work is split over ranks. Token in, token out: what was sampled is never decoded and encoded again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nanov2.model.cache import Cache
from nanov2.model.compiled import CompiledCache, cache_for
from nanov2.model.decoder import Model
from nanov2.model.packing import WORTH_SHARING, common_prefix
from nanov2.model.rollout import NextTurn, Rollout, Sampling, Served, Turns, has_ended


class Tokenizer(Protocol):
    """What sampling and training need of a tokenizer."""

    end: int  # the id that ends an answer

    def decode(self, ids: list[int]) -> str: ...


WIDTH = 1024  # entries of the vocabulary in one part of the cumulative sum


@torch.no_grad()
def sample(
    model: Model | Served,
    tokenizer: Tokenizer,  # where it has several `ends`, each ends a turn
    prompts: list[list[int]],
    n: int,
    sampling: Sampling,
    seed: int | list[int] | list[list[int]],
    next_turn: NextTurn | None = None,
    max_turns: int = 1,
) -> list[Rollout]:
    """n completions of each prompt (ids), in order: all of prompt 0, then all of prompt 1, …

    `seed` draws the randomness: one number for all prompts, or one for each, or one for each completion (then
    a prompt's samples are the same in any batch). Any of `tokenizer.ends` ends a turn (`tokenizer.end` where
    it has no `ends`). When a turn ends, `next_turn(rollout)` gives the ids that open the next turn, or None;
    they are forced, not sampled. At most `max_turns` turns.

    Prompt and completion never pass the model's context: a turn that reaches it is truncated, no turn begins
    that it has no room for, and a prompt without room for an answer has empty rollouts, truncated too.

    A model with an `engine` is sampled by it.
    """
    if sampling.temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {sampling.temperature}")
    if isinstance(model, Served) or model.engine is not None:
        ended = model.engine.groups(model, tokenizer, prompts, n, sampling, seed, next_turn, max_turns)
        rollouts = []
        for rollout in (r for groups in ended for group in groups for r in group):
            has_ended(rollout)
            rollouts.append(rollout)
        return sorted(rollouts, key=lambda r: r.group)
    seeds = seed if isinstance(seed, list) else [hash((seed, i)) for i in range(len(prompts))]
    ends = frozenset(getattr(tokenizer, "ends", None) or [tokenizer.end])
    was_training = model.training
    model.eval()
    rollouts = [Rollout(list(p), i) for i, p in enumerate(prompts) for _ in range(n)]
    for rollout in rollouts:
        if not model.config.fits(rollout.prompt):
            rollout.turns, rollout.truncated = [[]], True
    fitting = [i for i, p in enumerate(prompts) if model.config.fits(p)]
    if fitting and n:
        groups = [(rollouts[i * n : (i + 1) * n], seeds[i]) for i in fitting]
        _Batch(model, ends, groups, sampling, next_turn, max_turns).run()
    model.train(was_training)
    return rollouts


@torch.no_grad()
def next_logprobs(model: Model, prompts: list[list[int]]) -> Tensor:
    """Log-probs [prompts, V] in fp32 of the token that comes after each prompt (ids), at temperature 1."""
    was_training = model.training
    model.eval()
    weight = model.output_weight
    cache = Cache(model.config, 1, len(prompts), max(map(len, prompts)), weight)
    hidden, _ = model.prefill(prompts, cache, torch.arange(len(prompts), device=weight.device))
    model.train(was_training)
    return torch.log_softmax(logits(hidden, sum_in_fp32(weight)), dim=-1)


@dataclass
class Row:
    """A rollout that is being decoded."""

    rollout: Rollout
    prompt_slot: int  # of the cache: where its prompt is
    begun: int = 0  # its tokens before the present turn
    forced: deque[int] = field(default_factory=deque)  # the driver's tokens, to be fed next

    def turn(self) -> list[int]:
        """Ids of the present turn, copied."""
        return self.rollout.ids[self.begun :]

    def tokens(self) -> int:
        """How many they are, which every token asks."""
        return len(self.rollout.ids) - self.begun


class _Batch:
    """The rows being decoded, and the groups that wait to be."""

    def __init__(self, model, ends, groups, sampling, next_turn, max_turns):
        self.model, self.ends, self.sampling = model, ends, sampling
        self.turns = Turns(sampling, next_turn, max_turns, model.config.context)
        self.n = len(groups[0][0])
        self.limit = (sampling.max_tokens + sampling.max_given) * max_turns  # tokens of a row
        # Prompts of like length are computed together; the longest first, so that room only falls.
        self.waiting = deque(sorted(groups, key=lambda g: len(g[0][0].prompt), reverse=True))
        at_once = min(len(groups), max(1, sampling.batch_rows // self.n))
        weight = model.output_weight
        R = at_once * self.n
        # A group holds its prompt until its last row ends, so some room for more groups than fit whole.
        slots = min(len(groups), at_once if self.n == 1 else at_once + (at_once + 1) // 2)
        self.cache = cache_for(model, R, slots, len(self.waiting[0][0][0].prompt))
        prompts = [group[0].prompt for group, _ in groups]
        prefix = common_prefix(prompts)[: min(map(len, prompts)) - 1]
        shares = not isinstance(self.cache, CompiledCache)  # which is for models with short prompts
        if shares and len(prompts) > 1 and len(prefix) >= WORTH_SHARING:
            model.prefill_common(prefix, self.cache)
        self.hidden = weight.new_zeros(R, weight.shape[1])
        self.uniforms = torch.zeros(R, self.limit, dtype=torch.float64, device=weight.device)
        self.rows: list[Row | None] = [None] * R  # by the cache's row

    def run(self) -> None:
        weight = sum_in_fp32(self.model.output_weight)
        while self._admit_or_shrink():
            tokens, logprobs = self._draw(weight)
            ids = tokens.tolist()
            for b, logprob in enumerate(logprobs.tolist()):
                if row := self.rows[b]:
                    ids[b], goes_on = self._advance(row, ids[b], logprob)
                    self.rows[b] = row if goes_on else None
                    if not goes_on:
                        has_ended(row.rollout)
            if alive := self._alive():
                index = torch.tensor(alive, device=tokens.device)
                self.hidden = self.model.step(torch.tensor(ids, device=tokens.device), self.cache, index)

    def _draw(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A token of each row, and its log-prob."""
        temperature = self.sampling.temperature
        if isinstance(self.cache, CompiledCache):
            rows = torch.tensor(self._alive())
            return self.cache.draw(self.hidden, self.uniforms, rows, temperature)
        uniform = self.uniforms.gather(1, self.cache.lengths[:, None])[:, 0]
        return draw(logits(self.hidden, weight), uniform, temperature)

    def _alive(self) -> list[int]:
        return [b for b, row in enumerate(self.rows) if row]

    def _advance(self, row: Row, drawn: int, logprob: float) -> tuple[int, bool]:
        """The token that the row takes, which is the one to feed, and whether the row goes on."""
        rollout = row.rollout
        if row.forced:  # whatever was drawn
            token = row.forced.popleft()
            rollout.add(token, False, 0.0)
            row.begun = len(rollout.ids)
            return token, True
        rollout.add(drawn, True, logprob)
        if drawn in self.ends:
            rollout.turns.append(row.turn()[:-1])
            row.forced = deque(self.turns.opening(rollout))
            return drawn, bool(row.forced)
        if row.tokens() < self.sampling.max_tokens and self.turns.room(rollout):
            return drawn, True
        rollout.turns.append(row.turn())
        rollout.truncated = True
        return drawn, False

    def _admit_or_shrink(self) -> bool:
        """Fill free rows with the next prompts; when none wait, drop free rows, many at once: it copies.

        False: nothing is left to do.
        """
        R, alive = len(self.rows), self._alive()
        if self.waiting:
            free = [b for b in range(R) if not self.rows[b]]
            taken = {row.prompt_slot for row in self.rows if row}
            slots = [s for s in range(len(self.cache.prompt_lengths)) if s not in taken]
            room = min(len(free) // self.n, len(slots), len(self.waiting))
            # Prefills are cheaper together, but no row waits for long.
            if room and (room * self.n >= R // 8 or room == len(self.waiting) or not alive):
                self._admit(free[: room * self.n], slots[:room])
        elif 0 < len(alive) <= 0.8 * R:
            index = torch.tensor(alive, device=self.hidden.device)
            self.cache.keep(index)
            self.hidden, self.uniforms = self.hidden[index], self.uniforms[index]
            self.rows = [self.rows[b] for b in alive]  # their prompt slots matter no more: none wait
            self.cache.arrange()
        return any(self.rows)

    def _admit(self, free: list[int], slots: list[int]) -> None:
        """The next groups: their prompts into `slots`, their rows into `free`."""
        new = [self.waiting.popleft() for _ in slots]
        device = self.hidden.device
        at = torch.tensor(slots, device=device)
        hidden, recent = self.model.prefill([group[0].prompt for group, _ in new], self.cache, at)
        rows = torch.tensor(free, device=device)
        self.cache.seat(rows, at.repeat_interleave(self.n), recent.repeat_interleave(self.n, dim=0))
        self.hidden[rows] = hidden.repeat_interleave(self.n, dim=0)
        for j, ((group, seed), slot) in enumerate(zip(new, slots, strict=True)):
            mine = free[j * self.n : (j + 1) * self.n]
            uniforms = _uniforms(seed, self.n, self.limit)
            self.uniforms[mine] = uniforms.to(device)
            for b, rollout in zip(mine, group, strict=True):
                self.rows[b] = Row(rollout, slot)
        self.cache.arrange()


def _uniforms(seed: int | list[int], rows: int, width: int) -> Tensor:
    """Numbers [rows, width] in float64 by a seed for all rows, or one for each."""
    seeds = seed if isinstance(seed, list) else [seed]
    draws = (torch.Generator().manual_seed(s & (2**63 - 1)) for s in seeds)
    shape = (rows // len(seeds), width)
    return torch.cat([torch.rand(shape, generator=g, dtype=torch.float64) for g in draws])


def sum_in_fp32(weight: Tensor) -> Tensor:
    """The output weights as `logits` takes them: in fp32 where there is no product of halves into fp32."""
    return weight if weight.is_cuda and torch.version.cuda else weight.float()


def logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """[B, V] in fp32, summed in fp32 at any dtype of `hidden` and `weight`: never rounded on the way."""
    if hidden.dtype == weight.dtype == torch.float32:
        return hidden @ weight.T
    if weight.is_cuda and torch.version.cuda:
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    return hidden.float() @ weight.float().T


def draw(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution at `uniform` [B] in float64, and its log-prob.

    At temperature 0 the likeliest token, with its log-prob at temperature 1.

    A token of probability 0 is never drawn, also at a uniform number of exactly 0, and every other can be:
    sums are in float64, over parts of the vocabulary first, then within the one that is hit.
    """
    logprobs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
    if temperature == 0:
        tokens = logits.argmax(dim=-1)
    else:
        probs, V = logprobs.exp(), logits.shape[1]
        parts = F.pad(probs, (0, -V % WIDTH)).unflatten(1, (-1, WIDTH)) if V > WIDTH else probs[:, None]
        sums = parts.sum(dim=-1, dtype=torch.float64)
        part, left = _invert(sums, uniform * sums.sum(dim=-1))
        hit = parts.gather(1, part[:, None, None].expand(-1, 1, parts.shape[2]))[:, 0].double()
        within, _ = _invert(hit, left)
        tokens = part * parts.shape[2] + within
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _invert(weights: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """In which of the weights [B, n] ≥ 0, laid end to end, `at` [B] lies, and how far into it.

    Never in one of weight 0: where rounding takes `at` to the end, in the last that is positive.
    """
    ends = weights.cumsum(dim=-1)
    last = (ends < ends[:, -1:]).sum(dim=-1)
    index = torch.minimum((ends <= at[:, None]).sum(dim=-1), last)
    begin = (ends - weights).gather(1, index[:, None])[:, 0]
    return index, (at - begin).clamp(min=0.0)
