"""GRPO's correctness, by the numbers of the faults that GRPO code is known for."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch
from conftest import small_model, some_problems

from nanov2.distributed.ranks import Ranks, derive_seed, leave
from nanov2.kernels.advantage import group_advantage
from nanov2.kernels.logprob import linear_logprob
from nanov2.kernels.policy_loss import LOSS_TYPES, policy_loss
from nanov2.method.rewards import NAN, R_gated
from nanov2.model.packing import Completion, Pack, collate
from nanov2.model.rollout import Sampling
from nanov2.model.sampler import sample
from nanov2.records import ProblemRecord
from nanov2.rl.config import GRPOConfig
from nanov2.rl.grpo import Clock, batch_logprobs, loss_denominator, rollout_groups, train_on_groups
from nanov2.rl.stats import Stats
from nanov2.rl.task import Group, Part, Rewards

CONFIG = GRPOConfig(prompts=4, samples=4, max_tokens=12, refill=0)


class LengthTask:
    """A reward that needs no judge: a small first id is better. Turns as given."""

    max_turns = max_given = 1

    def __init__(self, prompts, rewards=None):
        self.prompts, self.given = prompts, rewards

    def prompt(self, item):
        return self.prompts.ids(self.prompts.prove(item.problem))

    def next_turn(self, rollout):
        return None

    def rewards(self, items, rollouts):
        return Rewards(self.given or [1.0 / (1 + r.ids[0]) for r in rollouts])


def some_groups(model, tokenizer, prompts, n=4, samples=4, temperature=1.0):
    questions = [prompts.ids(prompts.prove(p.text)) for p in some_problems(n)]
    rollouts = sample(model, tokenizer, questions, samples, Sampling(temperature, 12), 3)
    rewards = torch.tensor([len(set(r.ids)) + 0.1 * i for i, r in enumerate(rollouts)])
    advantages, _ = group_advantage(rewards, torch.tensor([r.group for r in rollouts]))
    return [
        Group(
            questions[g],
            rollouts[g * samples : (g + 1) * samples],
            advantages[g * samples : (g + 1) * samples].tolist(),
        )
        for g in range(n)
    ]


class KeepGradients(torch.optim.Optimizer):
    """An optimiser that only remembers the gradient it was given."""

    def __init__(self, model):
        super().__init__(model.parameters(), {})
        self.model = model

    def step(self):
        self.seen = torch.cat([p.grad.flatten().clone() for p in self.model.parameters()])


def gradient(model, tokenizer, groups, ranks, reference=None, **settings):
    config = dataclasses.replace(CONFIG, max_grad_norm=math.inf, **settings)
    keep = KeepGradients(model)
    train_on_groups(model, keep, groups, config, ranks, 0, reference)
    return keep.seen


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_C1_gradients_do_not_depend_on_micro_batches(tokenizer, prompts, model, ranks, loss_type, kl_coef):
    groups = some_groups(model, tokenizer, prompts)
    reference = small_model(tokenizer, seed=1)
    whole, single, packed = (
        gradient(
            model,
            tokenizer,
            groups,
            ranks,
            reference,
            loss_type=loss_type,
            kl_coef=kl_coef,
            micro_tokens=m,
            pack_tokens=p,
        )
        for m, p in ((100_000, 512), (1, 1), (200, 100))
    )
    scale = whole.abs().max()
    assert scale > 0
    assert torch.allclose(whole, single, atol=2e-5 * scale)
    assert torch.allclose(whole, packed, atol=2e-5 * scale)


def test_C2_C3_masked_tokens_change_nothing_whatever_they_hold():
    logp = torch.randn(6, requires_grad=True)
    old, advantage, offsets = logp.detach() - 0.1, torch.tensor([1.0, -1.0]), torch.tensor([0, 3, 6])
    mask = torch.tensor([True, True, False, True, False, False])
    clean, _ = policy_loss(logp, old, advantage, offsets, mask=mask)
    (clean_gradient,) = torch.autograd.grad(clean, logp)
    for poison in (math.nan, math.inf, -math.inf, 1e30):
        bad = torch.where(mask, old, poison)
        logp_bad = torch.where(mask, logp.detach(), poison).requires_grad_()
        loss, stats = policy_loss(
            logp_bad,
            bad,
            advantage,
            offsets,
            mask=mask,
            ref_logp=bad,
            kl_coef=0.0,
            sampler_logp=bad,
            is_cap=9.0,
        )
        (grad,) = torch.autograd.grad(loss, logp_bad)
        assert torch.equal(loss, clean) and torch.equal(grad, clean_gradient)
        assert int(stats["tokens"]) == 3


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_C2_a_wholly_masked_row_or_batch_gives_zero_and_finite_gradients(loss_type):
    logp = torch.randn(6, requires_grad=True)
    args = (logp, logp.detach(), torch.tensor([1.0, -1.0]), torch.tensor([0, 3, 6]))
    loss, _ = policy_loss(*args, mask=torch.zeros(6, dtype=torch.bool), loss_type=loss_type, denominator=1.0)
    (grad,) = torch.autograd.grad(loss, logp)
    assert loss == 0 and torch.equal(grad, torch.zeros(6))
    row = torch.tensor([True] * 3 + [False] * 3)
    loss, _ = policy_loss(*args, mask=row, loss_type=loss_type, denominator=1.0)
    (grad,) = torch.autograd.grad(loss, logp)
    assert torch.isfinite(grad).all() and torch.equal(grad[3:], torch.zeros(3))


def test_C4_temperature_divides_the_logits():
    hidden, weight, target = torch.randn(5, 8), torch.randn(11, 8), torch.arange(5)
    expected = torch.log_softmax(hidden @ weight.T / 0.7, -1).gather(1, target[:, None])[:, 0]
    assert torch.allclose(linear_logprob(hidden, weight, target, temperature=0.7), expected, atol=1e-6)


def test_C6_on_policy_the_ratio_is_exactly_one(tokenizer, prompts, model, ranks):
    groups = some_groups(model, tokenizer, prompts)
    config = dataclasses.replace(CONFIG, max_grad_norm=math.inf)
    figures = train_on_groups(model, KeepGradients(model), groups, config, ranks, 0).figures()
    assert figures["ratio"] == 1 and figures["clip_fraction"] == 0
    # and with several optimiser steps, at the first of them: the old log-probs are the trainer's own
    config = dataclasses.replace(config, epochs=2)
    figures = train_on_groups(model, KeepGradients(model), groups, config, ranks, 0).figures()
    assert figures["ratio"] == 1  # this optimiser does not move


def test_several_steps_on_a_rollout_move_the_ratio_and_can_clip(tokenizer, prompts, model, ranks):
    groups = some_groups(model, tokenizer, prompts)
    config = dataclasses.replace(CONFIG, epochs=4, minibatches=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    stats = train_on_groups(model, optimizer, groups, config, ranks, 0)
    assert stats.means["grad_norm"][1] == 8
    assert stats.figures()["clip_fraction"] > 0


class MoveThenKeep(KeepGradients):
    """Moves the weights once, then only remembers gradients: its second step is off policy."""

    def step(self):
        super().step()
        noise = torch.Generator().manual_seed(5)
        for p in self.model.parameters() if not self.state else []:
            p.data += 0.05 * torch.randn(p.shape, generator=noise)
        self.state["moved"] = True


def specified_gradient(model, old, reference, groups, config, sampler=True):
    """That of the loss's reference on every completion's log-probs, each from a pack of its own."""

    def logprobs(m):
        packs = [Pack(g.prompt, [Completion(r.ids, r.sampled)]) for g in groups for r in g.rollouts]
        return torch.cat([batch_logprobs(m, collate([p]), config.temperature) for p in packs])

    rollouts = [r for g in groups for r in g.rollouts]
    advantages = torch.tensor([a for g in groups for a in g.advantages])
    offsets = torch.tensor([0, *(len(r.ids) for r in rollouts)]).cumsum(0)
    with torch.no_grad():
        old_logp, ref_logp = logprobs(old), logprobs(reference)
    model.zero_grad()
    loss, stats = policy_loss(
        logprobs(model),
        old_logp,
        advantages,
        offsets,
        ref_logp=ref_logp,
        sampler_logp=torch.tensor([x for r in rollouts for x in r.logprobs]) if sampler else None,
        is_cap=config.is_cap if sampler else None,
        kl_coef=config.kl_coef,
        kl_weighted=config.kl_weighted,
        off_policy_delta=config.off_policy_delta or None,
        loss_type=config.loss_type,
        ratio=None if config.ratio == "loss_type" else config.ratio,
        denominator=loss_denominator(config, len(rollouts), int(offsets[-1]), config.max_tokens + 1),
        impl="reference",
    )
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]), stats


@pytest.mark.parametrize(
    "settings",
    [
        {"kl_weighted": True},
        {"off_policy_delta": 0.05},
        *({"loss_type": loss, "ratio": "sequence"} for loss in LOSS_TYPES),
        {"loss_type": "dr_grpo", "ratio": "sequence", "kl_weighted": True, "off_policy_delta": 0.05},
        {"ratio": "token", "kl_weighted": True, "off_policy_delta": 0.05},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # bf16: the sampler's log-probs count too
def test_what_is_trained_off_policy_is_what_the_loss_specifies(
    tokenizer, prompts, model, ranks, settings, precision
):
    groups = some_groups(model, tokenizer, prompts)
    config = dataclasses.replace(CONFIG, epochs=2, kl_coef=0.1, max_grad_norm=math.inf, **settings)
    reference, old = small_model(tokenizer, seed=1), copy.deepcopy(model)
    ranks.use("none", precision)  # of the loss alone: nobody places this model
    keep = MoveThenKeep(model)
    figures = train_on_groups(model, keep, groups, config, ranks, 0, reference).figures()
    assert figures["ratio"] != 1
    expected, stats = specified_gradient(model, old, reference, groups, config, precision == "bf16")
    plain, _ = specified_gradient(
        model, old, reference, groups, dataclasses.replace(CONFIG, epochs=2, kl_coef=0.1), precision == "bf16"
    )
    scale = expected.abs().max()
    assert torch.allclose(keep.seen, expected, atol=2e-5 * scale)
    assert not torch.allclose(expected, plain, atol=1e-3 * scale)  # the settings make a difference
    if config.off_policy_delta:
        assert 0 < int(stats["off_policy_rows"]) < len(groups) * 4
        assert figures["off_policy_rate"] == int(stats["off_policy_rows"]) / (2 * 4 * len(groups))


def test_C9_groups_without_variance_have_no_advantage():
    rewards = torch.full((64,), 0.945)
    advantage, stats = group_advantage(rewards, torch.zeros(64, dtype=torch.long))
    assert torch.equal(advantage, torch.zeros(64)) and not stats.has_variance.any()


def test_C9_groups_without_variance_are_left_out_and_refilled(tokenizer, prompts, model, ranks):
    items = [ProblemRecord(p.text) for p in some_problems(12)]
    config = dataclasses.replace(CONFIG, refill=2)
    drawn = []

    def next_items(n):
        drawn.extend(range(n))
        return items[len(drawn) - n : len(drawn)]

    task = LengthTask(prompts, rewards=[1.0] * 16)
    groups, stats = rollout_groups(model, tokenizer, task, next_items, config, ranks, 0, Clock())
    figures = stats.figures()
    assert groups == [] and figures["groups_sampled"] == 12 and figures["groups_kept"] == 0
    trained = train_on_groups(model, KeepGradients(model), groups, config, ranks, 0)
    assert "grad_norm" not in trained.figures()  # nothing to learn from: no step, and no error


class ParityTask(LengthTask):
    """A reward of 0 or 1 by the first id, and a count of what was judged, call by call."""

    def __init__(self, prompts):
        super().__init__(prompts)
        self.judged = []

    def rewards(self, items, rollouts):
        self.judged.append(len(rollouts))
        worth = [float(r.ids[0] % 2) for r in rollouts]
        return Rewards(worth, log={"odd": worth})


def test_a_group_goes_on_only_where_its_first_samples_differ(tokenizer, prompts, model, ranks):
    items = [ProblemRecord(p.text) for p in some_problems(8)]
    config = dataclasses.replace(CONFIG, prompts=8, samples=6, first_samples=2)
    task = ParityTask(prompts)
    groups, stats = rollout_groups(model, tokenizer, task, lambda n: items[:n], config, ranks, 0, Clock())
    figures, asked = stats.figures(), [task.prompt(item) for item in items]
    seeds = [[derive_seed(derive_seed(0, 0, i), j) for j in range(6)] for i in range(8)]
    everything = sample(model, tokenizer, asked, 6, Sampling(1.0, 12), seeds)
    rows = [everything[i : i + 6] for i in range(0, 48, 6)]  # each row is drawn by a seed of its own
    first = [[r.ids[0] % 2 for r in of_one[:2]] for of_one in rows]
    differ = [i for i, (a, b) in enumerate(first) if a != b]
    assert 0 < len(differ) < 8 and task.judged == [16, 4 * len(differ)]
    assert [g.prompt for g in groups] == [asked[i] for i in differ]
    for group, i in zip(groups, differ):
        assert [r.ids for r in group.rollouts] == [r.ids for r in rows[i]]
        worth = torch.tensor([float(r.ids[0] % 2) for r in rows[i]])
        expected, _ = group_advantage(worth, torch.zeros(6, dtype=torch.long))
        assert group.advantages == expected.tolist()  # over all of the group
    # Figures are of the same number of completions of every prompt, but all tokens count.
    assert figures["reward"] == figures["odd"] == sum(map(sum, first)) / 16
    sampled = [r for i, of_one in enumerate(rows) for r in of_one[: 6 if i in differ else 2]]
    assert figures["tokens"] == sum(len(r.ids) for r in sampled)
    assert figures["groups_sampled"] == 8 and figures["groups_kept"] == len(differ)


@pytest.mark.parametrize("scale", ["std", "none", "loo"])
def test_two_stages_change_how_much_a_prompt_weighs_not_where_its_gradient_points(scale):
    """By enumeration, for a policy of three answers of which one is worth 1."""
    logits = torch.tensor([0.3, -0.4, 1.1], dtype=torch.float64)
    p, G, k = logits.softmax(0), 4, 2
    worth = torch.tensor([1.0, 0.0, 0.0])
    score = torch.eye(3, dtype=torch.float64) - p  # ∇ log p of each answer
    true = (p[:, None] * worth[:, None] * score).sum(0)
    found, kept = torch.zeros(3, dtype=torch.float64), 0.0
    for drawn in itertools.product(range(3), repeat=G):
        rewards, chance = worth[list(drawn)], p[list(drawn)].prod()
        if len(set(rewards[:k].tolist())) > 1:
            kept += chance
            advantage, _ = group_advantage(rewards, torch.zeros(G, dtype=torch.long), scale=scale)
            found += chance * (advantage.double()[:, None] * score[list(drawn)]).sum(0)
    assert kept == pytest.approx(1 - p[0].item() ** k - (1 - p[0].item()) ** k)
    assert torch.cosine_similarity(found, true, dim=0) == pytest.approx(1)


def test_C30_an_overlong_prompt_is_counted_and_left_out(tokenizer, prompts, ranks):
    items = [ProblemRecord(p.text) for p in some_problems(4)]
    task = LengthTask(prompts)
    lengths = sorted(len(task.prompt(item)) for item in items)
    model = small_model(tokenizer, context=lengths[-1])  # no room for an answer to the longest
    groups, stats = rollout_groups(model, tokenizer, task, lambda n: items[:n], CONFIG, ranks, 0, Clock())
    overlong, figures = sum(n == lengths[-1] for n in lengths), stats.figures()
    assert figures["overlong"] == overlong and figures["groups_sampled"] == 4 - overlong
    assert groups and all(len(g.prompt) < lengths[-1] for g in groups)


def test_C23_how_far_the_sampler_is_from_the_trainer_is_logged(tokenizer, prompts, model, ranks):
    groups = some_groups(model, tokenizer, prompts)
    figures = train_on_groups(model, KeepGradients(model), groups, CONFIG, ranks, 0).figures()
    assert figures["importance_weight"] == pytest.approx(1, abs=1e-5) and figures["sampler_gap"] < 1e-5
    for group in groups:
        for r in group.rollouts:
            r.logprobs = [x - 1 for x in r.logprobs]
    far = train_on_groups(model, KeepGradients(model), groups, CONFIG, ranks, 0).figures()
    assert far["importance_weight_max"] == pytest.approx(math.e, rel=1e-4)
    assert far["sampler_gap"] == pytest.approx(1, abs=1e-4)


def test_C23_in_bf16_tokens_that_the_sampler_found_unlikely_count_twice_at_most(
    tokenizer, prompts, model, ranks
):
    groups = some_groups(model, tokenizer, prompts)
    plain = gradient(model, tokenizer, groups, ranks)
    for group in groups:
        for r in group.rollouts:
            r.logprobs = [x - 1 for x in r.logprobs]  # weights of e, capped at 2
    assert torch.equal(gradient(model, tokenizer, groups, ranks), plain)  # fp32: nothing to weigh away
    ranks.use("none", "bf16")
    assert torch.allclose(gradient(model, tokenizer, groups, ranks), 2 * plain, rtol=1e-4, atol=1e-6)
    off = gradient(model, tokenizer, groups, ranks, is_cap=0.0)
    assert torch.allclose(off, plain, rtol=1e-4, atol=1e-6)


def test_means_of_unequal_parts_are_those_of_the_whole():
    whole, parts = Stats(), [Stats(), Stats(), Stats()]
    for stats, values in zip(parts, ([1.0, math.nan], [2.0, 3.0, 7.0], [])):
        for s in (stats, whole):
            s.each("x", values)
            s.add("n", len(values))
    parts[1].peak("top", -2.0)
    whole.peak("top", -2.0)
    joined = Stats()
    for part in parts:
        joined |= part
    assert joined.figures() == whole.figures() == {"n": 5, "x": 13 / 4, "top": -2.0}


def test_C10_groups_are_made_by_prompt_not_by_place():
    rewards = torch.rand(24)
    ids = torch.arange(24) % 5 + 100
    advantage, _ = group_advantage(rewards, ids)
    order = torch.randperm(24)
    shuffled, _ = group_advantage(rewards[order], ids[order])
    assert torch.equal(advantage[order], shuffled)


def test_C11_a_judge_that_fails_is_not_a_score_of_zero():
    rewards = torch.tensor([1.0, 0.0, math.nan, 1.0])
    advantage, stats = group_advantage(rewards, torch.zeros(4, dtype=torch.long))
    without, _ = group_advantage(torch.tensor([1.0, 0.0, 1.0]), torch.zeros(3, dtype=torch.long))
    assert advantage[2] == 0 and torch.equal(advantage[[0, 1, 3]], without)
    assert stats.nan_count.tolist() == [1] and stats.reward_mean[0] == pytest.approx(2 / 3)


def test_C11_one_nan_reward_never_reaches_a_batch(tokenizer, prompts, model, ranks):
    items = [ProblemRecord(p.text) for p in some_problems(4)]
    rewards = [NAN if i % 5 == 0 else float(i % 3) for i in range(16)]
    task = LengthTask(prompts, rewards)
    groups, stats = rollout_groups(model, tokenizer, task, lambda n: items[:n], CONFIG, ranks, 0, Clock())
    assert stats.means["reward"][1] == 12 and all(math.isfinite(a) for g in groups for a in g.advantages)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_on_groups(model, optimizer, groups, CONFIG, ranks, 0)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_shut_gate_is_zero_even_where_the_judge_failed():
    assert R_gated(0.0, 1.0, NAN) == R_gated(1.0, 0.0, NAN) == 0 and math.isnan(R_gated(1.0, 1.0, NAN))


def test_C18_the_kl_gradient_agrees_with_exact_enumeration():
    """k3 without the ratio: its expected gradient under π is that of KL(π_ref ‖ π), exactly."""
    torch.manual_seed(0)
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    ref = torch.log_softmax(torch.randn(7, dtype=torch.float64), 0)
    exact = (ref.exp() * (ref - torch.log_softmax(logits, 0))).sum()
    (exact_gradient,) = torch.autograd.grad(exact, logits)
    expected = torch.zeros(7, dtype=torch.float64)
    for x in range(7):
        logp = torch.log_softmax(logits, 0)[x : x + 1]
        loss, _ = policy_loss(
            logp, logp.detach(), torch.zeros(1), torch.tensor([0, 1]), ref_logp=ref[x : x + 1], kl_coef=1.0
        )
        (grad,) = torch.autograd.grad(loss, logits)
        expected += logp.detach().exp() * grad
    assert torch.allclose(expected, exact_gradient, atol=1e-12)


def test_C21_the_standard_deviation_is_the_populations_with_eps_added():
    rewards = torch.tensor([0.0, 0.5, 1.0, 1.0])
    advantage, stats = group_advantage(rewards, torch.zeros(4, dtype=torch.long), eps=1e-6)
    std = rewards.double().std(correction=0)
    expected = (rewards.double() - rewards.double().mean()) / (std + 1e-6)
    assert torch.allclose(advantage.double(), expected, atol=1e-6)
    assert stats.reward_std[0] == pytest.approx(std.item(), abs=1e-6)


def test_C5_truncated_sampling_cannot_be_configured():
    assert not {"top_k", "top_p"} & set(GRPOConfig.__dataclass_fields__)


def test_truncated_importance_weights_are_capped_and_detached():
    logp = torch.zeros(2, requires_grad=True)
    sampler = torch.tensor([-5.0, 1.0])
    loss, stats = policy_loss(
        logp, logp.detach(), torch.tensor([1.0]), torch.tensor([0, 2]), sampler_logp=sampler, is_cap=2.0
    )
    loss.backward()
    assert torch.allclose(logp.grad, -torch.tensor([2.0, math.exp(-1.0)]) / 2)


def test_unsupported_options_raise():
    one = torch.zeros(1)
    with pytest.raises(ValueError, match="dapo, grpo, dr_grpo, gspo"):
        policy_loss(one, one, one, torch.tensor([0, 1]), loss_type="ppo")
    with pytest.raises(ValueError, match="std, none, loo"):
        group_advantage(one, one.long(), scale="rank")
    with pytest.raises(ValueError, match="temperature"):
        linear_logprob(one[None], one[None], one.long(), temperature=0.0)


def _two_rank_gradient(rank, port, path, loss_type):
    import os

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    from nanov2.domains.order.domain import OrderLanguage
    from nanov2.domains.order.tokenizer import order_tokenizer

    ranks, tokenizer = Ranks(), order_tokenizer()
    model = small_model(tokenizer)
    groups = some_groups(
        model, tokenizer, OrderLanguage(tokenizer, strict=True), n=5
    )  # ragged: 3 and 2 groups
    config = dataclasses.replace(CONFIG, loss_type=loss_type)
    keep = KeepGradients(model)
    stats = train_on_groups(model, keep, ranks.mine(groups), config, ranks, 0)
    torch.save((keep.seen, stats.figures()["grad_norm"]), f"{path}/{rank}.pt")
    ranks.close()
    leave()


@pytest.mark.parametrize("loss_type", ["dapo", "gspo"])
def test_C1_C17_two_ranks_have_the_gradient_and_norm_of_one(
    tokenizer, prompts, model, ranks, tmp_path, loss_type
):
    groups = some_groups(model, tokenizer, prompts, n=5)
    keep = KeepGradients(model)
    config = dataclasses.replace(CONFIG, loss_type=loss_type)
    figures = train_on_groups(model, keep, groups, config, ranks, 0).figures()
    port = 20000 + derive_seed(str(tmp_path)) % 20000
    torch.multiprocessing.spawn(_two_rank_gradient, (port, str(tmp_path), loss_type), nprocs=2)
    for rank in range(2):
        seen, norm = torch.load(tmp_path / f"{rank}.pt")
        assert torch.allclose(seen, keep.seen, atol=1e-5 * keep.seen.abs().max())
        assert norm == pytest.approx(figures["grad_norm"], rel=1e-4)


def test_parts_of_a_rollout_are_trained_by_their_own_advantage(tokenizer, prompts, model, ranks):
    groups = some_groups(model, tokenizer, prompts)
    plain = gradient(model, tokenizer, groups, ranks)
    for group in groups:
        group.parts = [[Part(1, 3, 0.7)] for _ in group.rollouts]
        for r in group.rollouts:
            assert len(r.ids) >= 3
    both = gradient(model, tokenizer, groups, ranks)
    for group in groups:  # the parts alone: no other token has an advantage
        group.advantages = [0.0] * len(group.rollouts)
    alone = gradient(model, tokenizer, groups, ranks)
    assert alone.abs().max() > 0 and torch.allclose(both, plain + alone, atol=1e-6)


def test_a_group_whose_rollouts_are_worth_the_same_is_kept_where_its_parts_are_not(
    tokenizer, prompts, model, ranks
):
    items = [ProblemRecord(p.text) for p in some_problems(4)]
    task = LengthTask(prompts, rewards=[1.0] * 16)

    def parts(items, rollouts):
        rows = [
            [Part(0, 1, float(r.group)), Part(1, 2, float(r.group % 2 and i % 2))]
            for i, r in enumerate(rollouts)
        ]
        return Rewards([1.0] * 16, parts=rows)

    task.rewards = parts
    groups, _ = rollout_groups(model, tokenizer, task, lambda n: items[:n], CONFIG, ranks, 0, Clock())
    assert len(groups) == 2
    for group in groups:
        worth = [p.worth for of_one in group.parts for p in of_one]
        assert worth == pytest.approx([0, -1, 0, 1] * 2, abs=1e-4)
        assert group.advantages == [0.0] * 4
