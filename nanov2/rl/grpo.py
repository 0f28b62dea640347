"""GRPO, written to be taught from. One step:

    items → prompts → rollouts → rewards → advantages → packs → clipped loss → gradients → step

Shao et al. 2024 (arXiv 2402.03300), with DAPO's separate upper clip and its filter of groups without
variance (arXiv 2503.14476), Dr. GRPO's and GSPO's normalisations (arXiv 2503.20783, 2507.18071), and
truncated importance weights for a sampler that differs from the trainer.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import accumulate

import torch
from torch import Tensor

from nanov2.distributed.ranks import Ranks, derive_seed
from nanov2.distributed.sharding import IDLE, in_step
from nanov2.kernels.advantage import group_advantage
from nanov2.kernels.linear_policy_loss import linear_policy_loss
from nanov2.kernels.logprob import linear_logprob
from nanov2.model.decoder import Model
from nanov2.model.packing import Completion, collate, make_packs, micro_batches
from nanov2.model.rollout import Rollout, Sampling
from nanov2.model.sampler import Tokenizer, sample
from nanov2.rl.config import GRPOConfig
from nanov2.rl.optimizer import descend
from nanov2.rl.stats import Stats
from nanov2.rl.task import Group, Part, Rewards, Task


class Clock:
    """Seconds by kind of work, for the timeline of a step."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, kind: str) -> None:
        now = time.perf_counter()
        self.seconds[kind] += now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """The seconds since it was last called."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken


def rollout_groups(
    model: Model,
    tokenizer: Tokenizer,
    task: Task,
    next_items: Callable[[int], list],
    config: GRPOConfig,
    ranks: Ranks,
    seed: int,
    clock: Clock,
    saw: Callable[[list[float | None]], None] = lambda spreads: None,
) -> tuple[list[Group], Stats]:
    """Sample groups until `config.prompts` of them (over all ranks) have variance, or refills run out.

    Groups without variance (max == min, C9) have no gradient: they are left out, and out of the loss's
    denominator too. So are items whose prompt fills the model's context; "overlong" counts them.
    `saw` is told of each round of items, in order, the standard deviation of their groups' rewards (None:
    nobody was rewarded), the same on every rank. Returns this rank's groups and figures.

    With `config.first_samples` = k a group has its other G − k completions only where the rewards of the
    first k differ; its advantages are over all G. With rewards of 0 and 1 and a chance p of 1, a prompt is
    trained on with probability 1 − p^k − (1 − p)^k instead of 1 − p^G − (1 − p)^G: prompts that nearly always
    or nearly never succeed teach less often, and a rare reward is more frequent in the groups that are kept
    than elsewhere. That changes how much a prompt weighs, not where its gradient points: given m ones, it is
    on average m (G − m) / G times the difference of the two rewards' mean gradients, whatever m was drawn.
    With three or more rewards the selection also shifts their weights against each other. Figures are of the
    first k, of every group the same number; "tokens" are all.
    """
    judges = getattr(task, "judges", {}).values()
    kept, room, stats = [], config.prompts, Stats()
    for attempt in range(1 + config.refill):
        mine = ranks.mine(list(enumerate(next_items(config.prompts))))
        asked = [(i, item, task.prompt(item)) for i, item in mine]
        fitting = [row for row in asked if model.config.fits(row[2])]
        stats.add("overlong", len(asked) - len(fitting))
        prompts = [prompt for *_, prompt in fitting]
        seeds = [derive_seed(seed, attempt, i) for i, *_ in fitting]
        items = [item for _, item, _ in fitting]
        spent = sum(getattr(j, "tokens", 0) for j in judges)
        rollouts, rewards = _completions(model, tokenizer, task, items, prompts, seeds, config, clock, stats)
        stats.add("judge_tokens", sum(getattr(j, "tokens", 0) for j in judges) - spent)
        made, spreads = _make_groups(prompts, rollouts, rewards, config)
        groups = {i: group for (i, *_), group in zip(fitting, made, strict=True)}
        spread = {i: s for (i, *_), s in zip(fitting, spreads, strict=True)}
        # The first `room` groups with variance, in the order drawn, whatever the number of ranks.
        drawn = ranks.gather([[groups.get(i) is not None, spread.get(i)] for i, _ in mine])
        saw([s for _, s in drawn])
        first = [i for i, (has_variance, _) in enumerate(drawn) if has_variance][:room]
        kept += [groups[i] for i in first if i in groups]
        room -= len(first)
        stats.add("groups_sampled", len(prompts))
        stats.add("groups_kept", sum(group is not None for group in groups.values()))
        clock.lap("other")
        if not room:
            break
    return kept, stats


def _completions(
    model: Model,
    tokenizer: Tokenizer,
    task: Task,
    items: list,
    prompts: list[list[int]],
    seeds: list[int],
    config: GRPOConfig,
    clock: Clock,
    stats: Stats,
) -> tuple[list[Rollout], Rewards]:
    """Each prompt's completions, in order, and what they are worth, counted in `stats`."""
    sampling = Sampling(config.temperature, config.max_tokens, config.batch_rows, task.max_given)

    def write(which: list[int], n: int, seeds: list) -> tuple[list[Rollout], Rewards]:
        """n completions of these prompts."""
        how = (n, sampling, seeds, task.next_turn, task.max_turns)
        some, of = [items[i] for i in which], [prompts[i] for i in which]
        rollouts, rewards = _sample_and_judge(model, tokenizer, task, some, of, how, clock)
        for r in rollouts:
            r.group = which[r.group]
        return rollouts, rewards

    k, everywhere = config.first_samples, list(range(len(prompts)))
    if not k:
        rollouts, rewards = write(everywhere, config.samples, seeds)
        _count(stats, rollouts, rewards)
        return rollouts, rewards
    own = [[derive_seed(seed, j) for j in range(config.samples)] for seed in seeds]  # of each completion
    rollouts, rewards = write(everywhere, k, [row[:k] for row in own])
    _count(stats, rollouts, rewards)
    groups, _ = _make_groups(prompts, rollouts, rewards, config)
    differ = [i for i, group in enumerate(groups) if group]
    more, theirs = write(differ, config.samples - k, [own[i][k:] for i in differ])
    stats.add("tokens", sum(sum(r.sampled) for r in more))
    return _joined([rollouts, more], [rewards, theirs])


def _sample_and_judge(
    model: Model, tokenizer: Tokenizer, task: Task, items: list, prompts: list[list[int]], how: tuple, clock
) -> tuple[list[Rollout], Rewards]:
    """The rollouts of all prompts, in order, and what they are worth. An engine goes on sampling while the
    groups that have ended are judged."""
    if model.engine is None:
        batches: Iterable[list[Rollout]] = [sample(model, tokenizer, prompts, *how)]
    else:
        ended = model.engine.groups(model, tokenizer, prompts, *how)
        batches = ([r for group in groups for r in group] for groups in ended)
    rollouts, parts = [], []
    for batch in batches:
        clock.lap("sample")
        parts.append(task.rewards([items[r.group] for r in batch], batch))
        rollouts += batch
        clock.lap("judge")
    return _joined([rollouts], parts)


def _joined(rollouts: Iterable[list[Rollout]], rewards: Iterable[Rewards]) -> tuple[list[Rollout], Rewards]:
    """Several lists as one, by group, and within a group in the order given."""
    rows = [r for part in rollouts for r in part]
    order = sorted(range(len(rows)), key=lambda i: rows[i].group)
    return [rows[i] for i in order], Rewards.joined(list(rewards), order)


def _make_groups(
    prompts: list[list[int]], rollouts: list[Rollout], rewards: Rewards, config: GRPOConfig
) -> tuple[list[Group | None], list[float | None]]:
    """A group for each prompt, None where it has no variance; and the deviation of each prompt's rewards,
    None where none is known."""
    if not rollouts:
        return [], []
    # The reward alone does not tell an answer without end or form from one that is merely wrong.
    formed = rewards.formed or [True] * len(rollouts)
    malformed = [r.truncated or not f for r, f in zip(rollouts, formed, strict=True)]
    reward = torch.tensor(rewards.reward, dtype=torch.float32)
    penalised = reward - config.malformed_penalty * torch.tensor(malformed, dtype=torch.float32)
    ids = torch.tensor([r.group for r in rollouts])
    advantages, stats = group_advantage(penalised, ids, scale=config.scale)
    parts = _part_advantages(rollouts, rewards.parts, config)
    sizes = Counter(r.group for r in rollouts)
    ends = list(accumulate(sizes[g] for g in range(len(prompts))))
    rows = [slice(end - sizes[g], end) for g, end in enumerate(ends)]
    groups: list[Group | None] = []
    for prompt, part, varied in zip(prompts, rows, stats.has_variance.tolist(), strict=True):
        credited = any(p.worth for of_one in parts[part] for p in of_one)
        group = Group(prompt, rollouts[part], advantages[part].tolist(), parts[part])
        groups.append(group if varied or credited else None)
    scored = zip(stats.reward_std.tolist(), stats.count.tolist(), strict=True)
    return groups, [std if count else None for std, count in scored]


def _part_advantages(
    rollouts: list[Rollout], parts: list[list[Part]], config: GRPOConfig
) -> list[list[Part]]:
    """The parts with their advantages: each prompt's j-th parts are a group of their own."""
    if not any(parts):
        return []
    rows = zip(rollouts, parts, strict=True)
    flat = [(r.group, j, part) for r, of_one in rows for j, part in enumerate(of_one)]
    number = {key: i for i, key in enumerate(dict.fromkeys((g, j) for g, j, _ in flat))}
    worth = torch.tensor([part.worth for *_, part in flat], dtype=torch.float32)
    ids = torch.tensor([number[g, j] for g, j, _ in flat])
    advantages = iter(group_advantage(worth, ids, scale=config.scale)[0].tolist())
    return [[part._replace(worth=next(advantages)) for part in of_one] for of_one in parts]


def _count(stats: Stats, rollouts: list[Rollout], rewards: Rewards) -> None:
    """What was sampled, and what it is worth."""
    tokens = sum(sum(r.sampled) for r in rollouts)
    stats.each("reward", rewards.reward)
    stats.each("reward_squared", [r * r for r in rewards.reward])
    stats.each("unanswered", [float(math.isnan(r)) for r in rewards.reward])
    stats.each("cut", [float(r.truncated) for r in rollouts])
    stats.each("length", [float(sum(r.sampled)) for r in rollouts])
    stats.add("tokens", tokens)
    # −log p of sampled tokens has the entropy as its mean
    stats.average("entropy", -sum(sum(r.logprobs) for r in rollouts), tokens)
    for name, values in rewards.log.items():  # only of what somebody knows
        stats.each(name, values)


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
    exact: bool = True,
) -> Stats:
    """Optimiser steps on one rollout: `epochs` passes of `minibatches` steps. Returns this rank's figures.

    `exact`: the rollouts' log-probs are those of this model in fp32; an engine's are not.

    With one step in all, the old policy is the present one, and the ratio is exactly 1 (C6). Otherwise
    the old log-probs are computed by the trainer, once, before the first step.
    """
    steps, stats = config.optimizer_steps, Stats()
    device, model.checkpointing = ranks.device, config.checkpointing
    old = _logprob_table(model, groups, config, device) if steps > 1 else None
    same = ranks.precision == "fp32" and exact  # then the sampler is the trainer
    is_cap = 0.0 if same else config.is_cap
    stats.peak("skipped", 0.0)
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
            _accumulate(model, part, config, is_cap, device, denominator, old, reference, stats)
            norm = descend(model, optimizer, config, ranks)
            stats.each("grad_norm", [] if norm is None else [norm])
            stats.peak("skipped", stats.maxima["skipped"] + (norm is None))
    return stats


IDLE_ROLLOUT = Rollout([0], -1, [0], [False], [0.0])  # of the idle packs of a sharded step


def _row_batches(model: Model, groups: list[Group], config: GRPOConfig, device: torch.device):
    """Micro-batches of packs, the rollout of each completion in them, and their segments: tokens and
    advantage of each, end to end (a completion is one, unless parts of it have advantages of their own)."""
    rows = [(g, i) for g, group in enumerate(groups) for i in range(len(group.rollouts))]
    number = {row: n for n, row in enumerate(rows)}
    packs = []
    for g, group in enumerate(groups):
        completions = [Completion(r.ids, r.sampled, number[g, i]) for i, r in enumerate(group.rollouts)]
        packs += make_packs(group.prompt, completions, config.pack_tokens)
    for packs_of_batch in in_step(model, micro_batches(packs, config.micro_tokens)):
        batch = collate(packs_of_batch).to(device)
        if packs_of_batch == [IDLE]:
            yield batch, [IDLE_ROLLOUT], [(1, 0.0)]
            continue
        at = [rows[n] for n in batch.rows.tolist()]
        rollouts = [groups[g].rollouts[i] for g, i in at]
        yield batch, rollouts, [segment for g, i in at for segment in groups[g].segments(i)]


def _logprob_table(model: Model, groups, config: GRPOConfig, device) -> dict[int, Tensor]:
    """Log-probs of every rollout under the model as it is, by the rollout's identity."""
    table = {id(IDLE_ROLLOUT): torch.zeros(1, device=device)}
    with torch.no_grad():
        for batch, rollouts, _ in _row_batches(model, groups, config, device):
            logp = batch_logprobs(model, batch, config.temperature)
            sizes = batch.offsets.diff().tolist()
            table |= {id(r): part for r, part in zip(rollouts, logp.split(sizes), strict=True)}
    return table


def _accumulate(model, groups, config: GRPOConfig, is_cap, device, denominator, old, reference, stats):
    """Add the gradients of one optimiser step's groups, micro-batch by micro-batch."""
    for batch, rollouts, segments in _row_batches(model, groups, config, device):
        lengths, advantages = zip(*segments, strict=True)
        offsets = torch.tensor([0, *lengths], device=device).cumsum(0)
        old_logp = None if old is None else torch.cat([old[id(r)] for r in rollouts])
        sampler_logp = torch.tensor([x for r in rollouts for x in r.logprobs], device=device)
        ref_logp = None
        if config.kl_coef:
            with torch.no_grad():
                ref_logp = batch_logprobs(reference, batch, config.temperature)
        loss, out = linear_policy_loss(
            model(batch.layout)[batch.at],
            model.output_weight,
            batch.target,
            torch.tensor(advantages, device=device),
            offsets,
            mask=batch.counted,
            old_logp=old_logp,
            ref_logp=ref_logp,
            sampler_logp=sampler_logp if is_cap else None,
            temperature=config.temperature,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            kl_coef=config.kl_coef,
            kl_weighted=config.kl_weighted,
            is_cap=is_cap or None,
            off_policy_delta=config.off_policy_delta or None,
            loss_type=config.loss_type,
            ratio=None if config.ratio == "loss_type" else config.ratio,
            denominator=denominator,
        )
        loss.backward()
        stats.add("loss", loss.item())
        counts = {name: float(x) for name, x in out.stats.items()}
        _count_trained(stats, counts)
        if config.off_policy_delta:
            stats.average("off_policy_rate", counts["off_policy_rows"], counts["rows"])
        trainer_logp = out.logp if old_logp is None else old_logp
        _compare(stats, (trainer_logp - sampler_logp)[batch.counted])


def _count_trained(stats: Stats, counts: dict[str, float]) -> None:
    """The loss's own statistics of a micro-batch."""
    tokens = counts["tokens"]
    stats.add("trained_tokens", tokens)
    stats.average("ratio", counts["ratio_sum"], tokens)
    stats.average("kl", counts["kl_sum"], tokens)
    stats.average("clip_fraction", counts["clip_low_count"] + counts["clip_high_count"], tokens)


def _compare(stats: Stats, difference: Tensor) -> None:
    """How far the sampler is from the trainer: log-prob of the one minus that of the other, by token."""
    if len(difference):
        weight = difference.exp()
        stats.average("importance_weight", float(weight.sum()), len(difference))
        stats.peak("importance_weight_max", float(weight.max()))
        stats.average("sampler_gap", float(difference.abs().sum()), len(difference))
