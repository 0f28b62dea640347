"""Sampling: groups of completions of the same prompt, turn by turn, with their log-probs.

A prompt is prefilled once and its cache repeated for the group; finished rows leave the batch. Each row
draws from its own line of uniform numbers, so its sample depends neither on its neighbours nor on how
the work is split over ranks. Token in, token out: what was sampled is never decoded and encoded again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nanov2.model import Cache, Model
from nanov2.tokenizer import Tokenizer

NextTurn = Callable[["Rollout"], str | None]


@dataclass
class Rollout:
    """One sampled sequence: what it continues, its tokens, and which of them the model chose itself."""

    prompt: list[int]
    index: int  # which of the prompts it belongs to: the group (C10)
    ids: list[int] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)  # False: put there by the driver (the loss mask)
    logprobs: list[float] = field(default_factory=list)  # of the sampler; 0.0 where not chosen
    turns: list[list[int]] = field(default_factory=list)  # ids of each turn, without <end>
    cut: bool = False  # the last turn hit its limit before <end>

    def add(self, token: int, chosen: bool, logprob: float) -> None:
        self.ids.append(token)
        self.chosen.append(chosen)
        self.logprobs.append(logprob)


@dataclass(frozen=True)
class Sampling:
    """How to sample."""

    temperature: float = 1.0  # logits are divided by it; 0 = greedy
    max_tokens: int = 64  # per turn, <end> included
    batch_rows: int = 512  # rows that are decoded together


@torch.no_grad()
def sample(
    model: Model,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    n: int,
    sampling: Sampling,
    seed: int | list[int],
    next_turn: NextTurn | None = None,
    max_turns: int = 1,
) -> list[Rollout]:
    """n completions of each prompt (ids), in order: all of prompt 0, then all of prompt 1, …

    `seed` draws the randomness: one number for all prompts, or one for each (then a prompt's samples are
    the same in any batch). When a turn ends, `next_turn(rollout)` names the task of the next turn, or
    None; its control token is appended as given, not chosen. At most `max_turns` turns.
    """
    if sampling.temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {sampling.temperature}")
    seeds = seed if isinstance(seed, list) else [hash((seed, i)) for i in range(len(prompts))]
    was_training = model.training
    model.eval()
    rollouts = [Rollout(list(p), i) for i, p in enumerate(prompts) for _ in range(n)]
    # Prompts of like length together waste little padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    per_batch = max(1, sampling.batch_rows // n)
    for b in range(0, len(order), per_batch):
        group = order[b : b + per_batch]
        rows = [rollouts[i * n + j] for i in group for j in range(n)]
        turn_limit = sampling.max_tokens * max_turns + max_turns
        uniforms = torch.stack(
            [
                torch.rand(n, turn_limit, generator=torch.Generator().manual_seed(seeds[i] & (2**63 - 1)))
                for i in group
            ]
        ).view(len(rows), turn_limit)
        _decode(
            model, tokenizer, [prompts[i] for i in group], n, rows, uniforms, sampling, next_turn, max_turns
        )
    model.train(was_training)
    return rollouts


def _decode(model, tokenizer, prompts, n, rows, uniforms, sampling, next_turn, max_turns) -> None:
    """Sample one batch of rows to their ends."""
    device = model.output_weight.device
    width = max(map(len, prompts))
    start = torch.tensor([width - len(p) for p in prompts], device=device)
    ids = torch.tensor([[tokenizer.pad] * (width - len(p)) + p for p in prompts], device=device)
    cache = Cache(model.config, start, width, model.output_weight.dtype)
    hidden = model.step(ids, cache).repeat_interleave(n, dim=0)
    cache = cache.repeat(n, width + 32)

    alive = list(range(len(rows)))  # row of `rows` that each row of the batch is
    started = [0] * len(rows)  # where the row's present turn began
    done = [False] * len(rows)
    given = [-1] * len(rows)  # a control token to feed next, if any
    uniforms = uniforms.to(device)
    for t in range(uniforms.shape[1]):
        tokens, logprobs = _draw(hidden, model.output_weight, uniforms[:, t], sampling.temperature)
        token_list, logprob_list = tokens.tolist(), logprobs.tolist()
        for b, r in enumerate(alive):
            row = rows[r]
            if done[r]:
                continue
            if given[r] >= 0:  # the driver's token, whatever was drawn
                token_list[b] = given[r]
                row.add(given[r], False, 0.0)
                given[r], started[r] = -1, len(row.ids)
                continue
            token = token_list[b]
            row.add(token, True, logprob_list[b])
            turn = row.ids[started[r] :]
            if token == tokenizer.end:
                row.turns.append(turn[:-1])
                task = next_turn(row) if next_turn and len(row.turns) < max_turns else None
                if task is None:
                    done[r] = True
                else:
                    given[r] = tokenizer.task[task]
            elif len(turn) >= sampling.max_tokens:
                row.turns.append(turn)
                row.cut = done[r] = True
        keep = [b for b, r in enumerate(alive) if not done[r]]
        if not keep:
            return
        tokens = torch.tensor(token_list, device=device)
        if len(keep) <= 0.8 * len(alive):  # finished rows leave; not one by one, for that copies the cache
            alive = [alive[b] for b in keep]
            index = torch.tensor(keep, device=device)
            cache.keep(index)
            tokens, uniforms = tokens[index], uniforms[index]
        hidden = model.step(tokens[:, None], cache)


def _draw(hidden: Tensor, weight: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution at `uniform` [B], and its log-prob.

    At temperature 0 the likeliest token, with its log-prob at temperature 1.
    """
    logits = (hidden @ weight.T).float()
    logprobs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
    if temperature == 0:
        tokens = logits.argmax(dim=-1)
    else:
        cumulative = logprobs.exp().cumsum(dim=-1)
        # Scaled by the total, which rounding leaves a hair off 1: else the last token could come by accident
        tokens = (cumulative < uniform[:, None] * cumulative[:, -1:]).sum(dim=-1)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]
