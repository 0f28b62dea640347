"""Sampling with continuous batching: groups of completions of the same prompt, turn by turn.

A prompt is computed once for its whole group. Rows that finish are replaced by those of the next prompts;
when none wait, the batch shrinks. Each row draws from its own line of uniform numbers, so its sample
depends neither on its neighbours nor on how the work is split over ranks. Token in, token out: what was
sampled is never decoded and encoded again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nanov2.domains.order.tokenizer import Tokenizer
from nanov2.model.cache import Cache
from nanov2.model.decoder import Model
from nanov2.model.rollout import Rollout, Sampling

NextTurn = Callable[[Rollout], list[int] | None]


@torch.no_grad()
def sample(
    model: Model,
    tokenizer: Tokenizer,  # or any with an `end`
    prompts: list[list[int]],
    n: int,
    sampling: Sampling,
    seed: int | list[int],
    next_turn: NextTurn | None = None,
    max_turns: int = 1,
) -> list[Rollout]:
    """n completions of each prompt (ids), in order: all of prompt 0, then all of prompt 1, …

    `seed` draws the randomness: one number for all prompts, or one for each (then a prompt's samples are
    the same in any batch). When a turn ends, `next_turn(rollout)` gives the ids that open the next turn,
    or None; they are forced, not sampled. At most `max_turns` turns. `tokenizer.end` ends a turn.
    """
    if sampling.temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {sampling.temperature}")
    seeds = seed if isinstance(seed, list) else [hash((seed, i)) for i in range(len(prompts))]
    was_training = model.training
    model.eval()
    rollouts = [Rollout(list(p), i) for i, p in enumerate(prompts) for _ in range(n)]
    if prompts:
        _Batch(model, tokenizer, prompts, n, rollouts, seeds, sampling, next_turn, max_turns).run()
    model.train(was_training)
    return rollouts


class _Batch:
    """The rows being decoded. Row slots and prompt slots of the cache are handed out as they fall free."""

    def __init__(self, model, tokenizer, prompts, n, rollouts, seeds, sampling, next_turn, max_turns):
        self.model, self.tokenizer, self.prompts, self.n = model, tokenizer, prompts, n
        self.rollouts, self.seeds, self.sampling = rollouts, seeds, sampling
        self.next_turn, self.max_turns = next_turn, max_turns
        self.limit = (sampling.max_tokens + sampling.max_given) * max_turns  # tokens of a row
        # Prompts of like length are computed together; the longest first, so that room only falls.
        self.waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        groups = min(len(prompts), max(1, sampling.batch_rows // n))
        R, weight = groups * n, model.output_weight
        # A group holds its prompt until its last row ends, so some room for more groups than fit whole.
        slots = min(len(prompts), groups if n == 1 else groups + (groups + 1) // 2)
        self.cache = Cache(model.config, R, slots, len(prompts[self.waiting[-1]]), weight)
        self.hidden = weight.new_zeros(R, weight.shape[1])
        self.uniforms = torch.zeros(R, self.limit, device=weight.device)
        self.rows: list[int | None] = [None] * R  # which rollout each row slot is at
        self.tenants = [0] * slots  # how many rows still need each prompt slot
        self.slot_of: list[int] = [0] * R  # the prompt slot of each row
        self.started = [0] * R  # where each row's present turn began
        self.given: list[list[int]] = [[]] * R  # the driver's tokens to feed next, the last first

    def run(self) -> None:
        alive = []
        while alive or self.waiting:
            alive = self._admit_or_shrink(alive)
            uniform = self.uniforms.gather(1, self.cache.lengths[:, None])[:, 0]
            weight, temperature = self.model.output_weight, self.sampling.temperature
            tokens, logprobs = _draw(self.hidden, weight, uniform, temperature)
            drawn = tokens.tolist()
            fed = [self._advance(b, drawn, logprob) for b, logprob in enumerate(logprobs.tolist())]
            alive = [b for b, on in enumerate(fed) if on]
            if alive:
                index = torch.tensor(alive, device=tokens.device)
                ids = torch.tensor(drawn, device=tokens.device)
                self.hidden = self.model.step(ids, self.cache, index)

    def _advance(self, b: int, drawn: list[int], logprob: float) -> bool:
        """Row b takes its token (`drawn[b]` becomes what to feed). False: the row has ended, or is empty."""
        if self.rows[b] is None:
            return False
        row = self.rollouts[self.rows[b]]
        if self.given[b]:  # the driver's token, whatever was drawn
            drawn[b] = self.given[b].pop()
            row.add(drawn[b], False, 0.0)
            self.started[b] = len(row.ids)
            return True
        row.add(drawn[b], True, logprob)
        length = len(row.ids) - self.started[b]
        if drawn[b] == self.tokenizer.end:
            row.turns.append(row.ids[self.started[b] : -1])
            given = self.next_turn(row) if self.next_turn and len(row.turns) < self.max_turns else None
            if given is not None:
                if not 0 < len(given) <= self.sampling.max_given:
                    raise ValueError(
                        f"a turn opens with {len(given)} tokens, max_given is {self.sampling.max_given}"
                    )
                self.given[b] = given[::-1]
                return True
        elif length < self.sampling.max_tokens:
            return True
        else:
            row.turns.append(row.ids[self.started[b] :])
            row.truncated = True
        self.tenants[self.slot_of[b]] -= 1
        self.rows[b] = None
        return False

    def _admit_or_shrink(self, alive: list[int]) -> list[int]:
        """Fill free rows with the next prompts; when none wait, drop free rows, many at once: it copies."""
        R = len(self.rows)
        if self.waiting:
            free = [b for b in range(R) if self.rows[b] is None]
            slots = [s for s, tenants in enumerate(self.tenants) if not tenants]
            room = min(len(free) // self.n, len(slots), len(self.waiting))
            # Prefills are cheaper together, but no row waits for long.
            if room and (room * self.n >= R // 8 or room == len(self.waiting) or not alive):
                self._admit(free[: room * self.n], slots[:room])
        elif len(alive) <= 0.8 * R:
            index = torch.tensor(alive, device=self.hidden.device)
            self.cache.keep(index)
            self.hidden, self.uniforms = self.hidden[index], self.uniforms[index]
            self.rows, self.started, self.given = (
                [old[b] for b in alive] for old in (self.rows, self.started, self.given)
            )
            self._arranged()
        return [b for b, row in enumerate(self.rows) if row is not None]

    def _admit(self, free: list[int], slots: list[int]) -> None:
        """The next prompts into `slots`, their rows into `free`."""
        new = [self.waiting.pop() for _ in slots]
        device = self.hidden.device
        at = torch.tensor(slots, device=device)
        hidden, recent = self.model.prefill([self.prompts[i] for i in new], self.cache, at)
        rows = torch.tensor(free, device=device)
        self.cache.seat(rows, at.repeat_interleave(self.n), recent.repeat_interleave(self.n, dim=0))
        self.hidden[rows] = hidden.repeat_interleave(self.n, dim=0)
        for j, i in enumerate(new):
            draws = torch.Generator().manual_seed(self.seeds[i] & (2**63 - 1))
            mine = free[j * self.n : (j + 1) * self.n]
            self.uniforms[mine] = torch.rand(self.n, self.limit, generator=draws).to(device)
            for k, b in enumerate(mine):
                self.rows[b], self.started[b], self.given[b] = i * self.n + k, 0, []
        self._arranged()

    def _arranged(self) -> None:
        self.cache.arrange()
        self.slot_of = self.cache.group.tolist()
        self.tenants = [0] * len(self.cache.prompt_lengths)
        for b, row in enumerate(self.rows):
            self.tenants[self.slot_of[b]] += row is not None


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
