"""GRPO, written to be taught from. One step:

    items → prompts → rollouts → rewards → advantages → packs → clipped loss → gradients → step

Shao et al. 2024 (arXiv 2402.03300), with DAPO's separate upper clip and its filter of groups without
variance (arXiv 2503.14476), Dr. GRPO's and GSPO's normalisations (arXiv 2503.20783, 2507.18071), and
truncated importance weights for a sampler that differs from the trainer.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.distributed.fsdp import FSDPModule

from nanov2.distributed.ranks import Ranks, derive_seed
from nanov2.distributed.safety import usable
from nanov2.distributed.sharding import IDLE, in_step
from nanov2.kernels.advantage import group_advantage
from nanov2.kernels.logprob import linear_logprob
from nanov2.kernels.policy_loss import policy_loss
from nanov2.model.decoder import Model
from nanov2.model.deepseek import balance
from nanov2.model.packing import Completion, collate, make_packs, micro_batches
from nanov2.model.rollout import Rollout, Sampling
from nanov2.model.sampler import Tokenizer, sample
from nanov2.rl.config import GRPOConfig


@dataclass
class Rewards:
    """Rewards of rollouts. NaN: the judge failed to answer; excluded from its group, never a 0."""

    reward: list[float]  # R before the gates
    gates: list[list[float]] = field(default_factory=list)  # multiplied into R: R_format, R_meta, …
    formed: list[bool] = field(default_factory=list)  # has the required form; empty: all have
    log: dict[str, list[float]] = field(default_factory=dict)  # further figures per rollout, for curves

    @property
    def total(self) -> Tensor:
        """[N] the product; NaN only where it matters: a shut gate (0) is 0 whatever the others say."""
        out = torch.tensor(self.reward, dtype=torch.float32)
        for gate in self.gates:
            g = torch.tensor(gate, dtype=torch.float32)
            out = torch.where((g == 0) | (out == 0), 0.0, out * g)
        return out


class Task(Protocol):
    """What a phase trains on: how an item becomes a prompt, and a rollout a reward."""

    max_turns: int
    max_given: int  # tokens that `next_turn` returns at most

    def prompt(self, item) -> list[int]: ...

    def next_turn(self, rollout: Rollout) -> list[int] | None: ...

    def rewards(self, items: list, rollouts: list[Rollout]) -> Rewards:
        """`items[i]` is the item of `rollouts[i]`."""
        ...


@dataclass
class Group:
    """A prompt's completions that will be trained on, with their advantages."""

    prompt: list[int]
    rollouts: list[Rollout]
    advantages: list[float]


class Clock:
    """Seconds by kind of work, for the timeline of a step."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, kind: str) -> None:
        now = time.perf_counter()
        self.seconds[kind] += now - self._last
        self._last = now


def rollout_groups(
    model: Model,
    tokenizer: Tokenizer,
    task: Task,
    next_items: Callable[[int], list],
    config: GRPOConfig,
    ranks: Ranks,
    seed: int,
    clock: Clock,
) -> tuple[list[Group], dict[str, float]]:
    """Sample groups until `config.prompts` of them (over all ranks) have variance, or refills run out.

    Groups without variance (max == min, C9) have no gradient: they are left out, and out of the loss's
    denominator too. Returns this rank's groups, and sums over all ranks for logging.
    """
    sampling = Sampling(config.temperature, config.max_tokens, config.batch_rows, task.max_given)
    kept: list[Group] = []
    totals: dict[str, float] = defaultdict(float)
    for attempt in range(1 + config.refill):
        drawn = next_items(config.prompts)
        mine = [(item, task.prompt(item), i) for i, item in ranks.mine(list(enumerate(drawn)))]
        fitting = [m for m in mine if model.config.fits(m[1])]
        items, prompts = [item for item, _, _ in fitting], [prompt for _, prompt, _ in fitting]
        seeds = [derive_seed(seed, attempt, i) for *_, i in fitting]
        rollouts = sample(
            model, tokenizer, prompts, config.samples, sampling, seeds, task.next_turn, task.max_turns
        )
        clock.lap("sample")
        rewards = task.rewards([items[r.group] for r in rollouts], rollouts)
        clock.lap("judge")
        groups, sums = _make_groups(prompts, rollouts, rewards, config)
        # The first `prompts` groups with variance, in the order drawn, whatever the number of ranks.
        varied = ranks.gather([group is not None for group in groups])
        room = config.prompts - int(totals["groups_kept"])
        chosen = ranks.mine([v and sum(varied[:i]) < room for i, v in enumerate(varied)])
        kept += [group for group, use in zip(groups, chosen, strict=True) if use]
        sums = ranks.sum(sums | {"overlong": len(mine) - len(fitting)})
        for name, value in sums.items():
            totals[name] += value
        clock.lap("other")
        if totals["groups_kept"] >= config.prompts:
            break
    return kept, dict(totals)


def _make_groups(prompts, rollouts: list[Rollout], rewards: Rewards, config: GRPOConfig):
    """A group for each prompt, None where it has no variance; and this rank's sums for logging."""
    groups, total, n = [], rewards.total, config.samples
    # The reward alone does not tell an answer without end or form from one that is merely wrong.
    formed = rewards.formed or [True] * len(rollouts)
    malformed = [r.truncated or not f for r, f in zip(rollouts, formed, strict=True)]
    penalised = total - config.malformed_penalty * torch.tensor(malformed, dtype=torch.float32)
    sums = defaultdict(float, groups_kept=0, groups_sampled=len(prompts), reward=0, reward_sq=0)
    for name in rewards.log:
        sums["log." + name] = 0.0
        sums["log_n." + name] = 0.0
    if rollouts:
        ids = torch.tensor([r.group for r in rollouts])
        advantages, stats = group_advantage(penalised, ids, scale=config.scale)
        has_variance = dict(zip(stats.group_id.tolist(), stats.has_variance.tolist(), strict=True))
        for g, prompt in enumerate(prompts):
            rows = slice(g * n, (g + 1) * n)
            group = Group(prompt, rollouts[rows], advantages[rows].tolist())
            groups.append(group if has_variance[g] else None)
    answered = total[~total.isnan()]
    sums["groups_kept"] = sum(group is not None for group in groups)
    sums["rows"] = len(rollouts)
    sums["answered"] = len(answered)
    sums["reward"] = answered.sum().item()
    sums["reward_sq"] = (answered**2).sum().item()
    sums["cut"] = sum(r.truncated for r in rollouts)
    sums["sampled_tokens"] = sum(sum(r.sampled) for r in rollouts)
    sums["neg_logprob"] = -sum(sum(r.logprobs) for r in rollouts)
    for name, values in rewards.log.items():
        good = [v for v in values if v == v]
        sums["log." + name], sums["log_n." + name] = sum(good), len(good)
    return groups, dict(sums)


def loss_denominator(config: GRPOConfig, rows: float, tokens: float, turn_limit: int) -> float:
    """What the summed loss of the whole step (all micro-batches, all ranks) is divided by (C1)."""
    if config.loss_type == "dapo":
        return max(tokens, 1.0)
    if config.loss_type == "dr_grpo":
        return max(rows, 1.0) * turn_limit
    return max(rows, 1.0)


def batch_logprobs(model: Model, batch, temperature: float) -> Tensor:
    """Log-probs [T] of a packed batch's completion tokens: log_softmax(logits / temperature) (C4)."""
    hidden = model(batch.layout)[batch.at]
    return linear_logprob(hidden, model.output_weight, batch.target, temperature=temperature)


def train_on_groups(
    model: Model,
    optimizer: torch.optim.Optimizer,
    groups: list[Group],
    config: GRPOConfig,
    ranks: Ranks,
    seed: int,
    reference: Model | None = None,
    max_turns: int = 1,
) -> dict[str, float]:
    """Optimiser steps on one rollout: `epochs` passes of `minibatches` steps. Returns sums for logging.

    With one step in all, the old policy is the present one, and the ratio is exactly 1 (C6). Otherwise
    the old log-probs are computed by the trainer, once, before the first step.
    """
    steps = config.epochs * config.minibatches
    device, model.checkpointing = ranks.device, config.checkpointing
    old = _logprob_table(model, groups, config, device) if steps > 1 else None
    is_cap = config.is_cap if ranks.precision == "bf16" else 0.0  # in fp32 the sampler is the trainer
    sums: dict[str, float] = defaultdict(float)
    for epoch in range(config.epochs):
        order = list(range(len(groups)))
        if steps > 1:
            shuffle = torch.Generator().manual_seed(derive_seed(seed, epoch) & (2**63 - 1))
            order = torch.randperm(len(groups), generator=shuffle).tolist()
        for m in range(config.minibatches):
            part = [groups[i] for i in order[m :: config.minibatches]]
            size = ranks.sum(
                {
                    "rows": sum(len(g.rollouts) for g in part),
                    "tokens": sum(sum(r.sampled) for g in part for r in g.rollouts),
                }
            )
            if not size["rows"]:  # no group with variance on any rank: nothing to learn from
                continue
            limit = (config.max_tokens + 1) * max_turns
            denominator = loss_denominator(config, size["rows"], size["tokens"], limit)
            _accumulate(model, part, config, is_cap, device, denominator, old, reference, sums)
            ranks.sum_gradients(model)
            norm = ranks.clip_gradients(model, config.max_grad_norm)
            if usable(norm, config.skip_norm):
                optimizer.step()
                balance(model, ranks)
                sums["grad_norm"] += norm
            else:
                sums["skipped"] += 1
            optimizer.zero_grad(set_to_none=True)
            sums["optimizer_steps"] += 1
    return dict(sums)


IDLE_ROLLOUT = Rollout([0], -1, [0], [False], [0.0])  # of the idle packs of a sharded step


def _row_batches(model: Model, groups: list[Group], config: GRPOConfig, device: torch.device):
    """Micro-batches of packs, and the rollout and the advantage of each completion in them."""
    rows = [(g, i) for g, group in enumerate(groups) for i in range(len(group.rollouts))]
    number = {row: n for n, row in enumerate(rows)}
    packs = []
    for g, group in enumerate(groups):
        completions = [Completion(r.ids, r.sampled, number[g, i]) for i, r in enumerate(group.rollouts)]
        packs += make_packs(group.prompt, completions, config.pack_tokens)
    for packs_of_batch in in_step(model, micro_batches(packs, config.micro_tokens)):
        batch = collate(packs_of_batch).to(device)
        if packs_of_batch == [IDLE]:
            yield batch, [IDLE_ROLLOUT], torch.zeros(1, device=device)
            continue
        rollouts = [groups[rows[n][0]].rollouts[rows[n][1]] for n in batch.rows.tolist()]
        advantages = [groups[rows[n][0]].advantages[rows[n][1]] for n in batch.rows.tolist()]
        yield batch, rollouts, torch.tensor(advantages, device=device)


def _logprob_table(model: Model, groups, config: GRPOConfig, device) -> dict[int, Tensor]:
    """Log-probs of every rollout under the model as it is, by the rollout's identity."""
    table = {id(IDLE_ROLLOUT): torch.zeros(1, device=device)}
    with torch.no_grad():
        for batch, rollouts, _ in _row_batches(model, groups, config, device):
            logp = batch_logprobs(model, batch, config.temperature)
            sizes = batch.offsets.diff().tolist()
            table |= {id(r): part for r, part in zip(rollouts, logp.split(sizes), strict=True)}
    return table


def _accumulate(model, groups, config: GRPOConfig, is_cap, device, denominator, old, reference, sums) -> None:
    """Add the gradients of one optimiser step's groups, micro-batch by micro-batch."""
    for batch, rollouts, advantages in _row_batches(model, groups, config, device):
        logp = batch_logprobs(model, batch, config.temperature)
        old_logp = logp.detach() if old is None else torch.cat([old[id(r)] for r in rollouts])
        ref_logp = sampler_logp = None
        if config.kl_coef:
            with torch.no_grad():
                ref_logp = batch_logprobs(reference, batch, config.temperature)
        if is_cap:
            sampler_logp = torch.tensor([x for r in rollouts for x in r.logprobs], device=device)
        loss, stats = policy_loss(
            logp,
            old_logp,
            advantages,
            batch.offsets,
            mask=batch.counted,
            ref_logp=ref_logp,
            sampler_logp=sampler_logp,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            kl_coef=config.kl_coef,
            is_cap=is_cap or None,
            loss_type=config.loss_type,
            denominator=denominator,
        )
        loss.backward()
        sums["loss"] += loss.item()
        for name, value in stats.items():
            if name != "ratio_max":
                sums[name] += float(value)


def make_optimizer(model: Model, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; all in one kernel where the weights are whole."""
    settings = dict(lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    if isinstance(model, FSDPModule):
        return torch.optim.AdamW(model.parameters(), **settings)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **settings)
    # The fused kernel does not say that it has changed the weights, and copies in bf16 must know.
    optimizer.register_step_post_hook(lambda *_: increment_version(model.parameters()))
    return optimizer


def schedule(step: int, steps: int, warmup: int, decay: float, floor: float) -> float:
    """The learning rate's factor at a step: linear warm-up, flat, then linear down to `floor`."""
    up = min(1.0, (step + 1) / max(warmup, 1))
    left = (steps - step) / max(decay * steps, 1e-9)
    return up * max(floor, min(1.0, left))
