"""The three kernels in a row, as GRPO uses them: rewards → advantages → log-probs → loss → gradients."""

import itertools

import pytest
import torch
from kernel_helpers import DEVICE, FAST_FORMS, generator, relative_error

from nanov2.kernels import logprob_cpu
from nanov2.kernels.advantage import group_advantage
from nanov2.kernels.linear_policy_loss import linear_policy_loss
from nanov2.kernels.logprob import linear_logprob
from nanov2.kernels.policy_loss import LOSS_TYPES, policy_loss

LENGTHS, GROUPS = (5, 3, 1, 6, 4, 2), (0, 1, 0, 1, 1, 0)


def inputs(masks):
    g = generator(4)
    t = sum(LENGTHS)
    mask = torch.ones(t, dtype=torch.bool)
    if masks != "none":
        mask = torch.rand(t, generator=g) > 0.4
    if masks == "whole row":
        mask[5:8] = False
    tensors = {
        "hidden": torch.randn(t, 6, generator=g),
        "weight": torch.randn(37, 6, generator=g),
        # old = present + shift: ratios on both sides of 1, of tokens and of whole rows
        "old_shift": 0.3 * torch.randn(t, generator=g)
        + torch.tensor([0.4, -0.4, 0.5, -0.5, 0.4, -0.4]).repeat_interleave(torch.tensor(LENGTHS)),
        "reward": torch.rand(len(LENGTHS), generator=g),
        "target": torch.randint(0, 37, (t,), generator=g),
        "mask": mask,
    }
    return {name: x.to(DEVICE) for name, x in tensors.items()}


def step(x, impl, dtype, loss_type, clips, kl):
    """Gradients of the hidden states and the output weights of one whole step."""
    hidden, weight = (x[name].clone().to(dtype).requires_grad_() for name in ("hidden", "weight"))
    ids = torch.tensor(GROUPS, device=DEVICE)
    advantage, _ = group_advantage(x["reward"], ids, impl=impl)
    target = torch.where(x["mask"], x["target"], -100)
    logp = linear_logprob(hidden, weight, target, temperature=0.8, impl=impl)
    with torch.no_grad():  # the other policies, from the same numbers in every form and precision
        wide = x["hidden"].double(), x["weight"].double()
        base = linear_logprob(*wide, target, temperature=0.8, impl="reference").to(logp.dtype)
    loss, stats = policy_loss(
        logp,
        base + x["old_shift"].to(dtype),
        advantage,
        torch.tensor([0, *itertools.accumulate(LENGTHS)], device=DEVICE),
        mask=x["mask"],
        ref_logp=base - 0.5 * x["old_shift"].to(dtype) if kl else None,
        sampler_logp=base + 0.9 * x["old_shift"].to(dtype),
        is_cap=1.5,
        clip_low=clips[0],
        clip_high=clips[1],
        kl_coef=kl,
        loss_type=loss_type,
        denominator=24.0 if loss_type == "dr_grpo" else None,
        impl=impl,
    )
    loss.backward()
    return loss.detach(), hidden.grad, weight.grad, stats


@pytest.mark.parametrize("impl", FAST_FORMS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("masks", ["none", "tokens", "whole row"])
def test_fused_step_has_the_gradients_of_the_reference(impl, loss_type, masks, monkeypatch):
    """C12, for the whole step: loss type × clipping × KL × mask, against autograd in float64."""
    monkeypatch.setattr(logprob_cpu, "TILE", 64)
    x = inputs(masks)
    for clips, kl in itertools.product(((0.2, 0.28), (0.05, 0.05)), (0.0, 0.1)):
        found = step(x, impl, torch.float32, loss_type, clips, kl)
        wanted = step(x, "reference", torch.float64, loss_type, clips, kl)
        torch.testing.assert_close(found[0].double(), wanted[0], rtol=1e-5, atol=1e-6)
        assert relative_error(found[1], wanted[1]) < 1e-5 and relative_error(found[2], wanted[2]) < 1e-5
        for name, value in wanted[3].items():
            torch.testing.assert_close(found[3][name].double(), value, rtol=1e-5, atol=1e-5)
    assert found[3]["clip_low_count"] + found[3]["clip_high_count"] > 0  # the grid does reach the clips


@pytest.mark.parametrize("impl", FAST_FORMS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("steps", [1, 2])
def test_the_fused_loss_has_the_gradients_of_the_two_functions(impl, loss_type, steps):
    """As `rl/grpo.py` calls it: on policy with one step, with the old log-probs of a table otherwise."""
    x = inputs("tokens")
    rows = torch.tensor([0, *itertools.accumulate(LENGTHS)], device=DEVICE)
    advantage, _ = group_advantage(x["reward"], torch.tensor(GROUPS, device=DEVICE), impl=impl)
    target = torch.where(x["mask"], x["target"], -100)
    chosen = {"kl_coef": 0.1, "loss_type": loss_type, "denominator": 24.0, "impl": impl}

    def leaves():
        return [x[name].clone().requires_grad_() for name in ("hidden", "weight")]

    ours, theirs = leaves(), leaves()
    logp = linear_logprob(*theirs, target, temperature=0.8, impl=impl)
    old = logp.detach() if steps == 1 else logp.detach() + x["old_shift"]
    chosen |= {"mask": x["mask"], "ref_logp": logp.detach() - 0.1, "is_cap": 1.5}
    chosen["sampler_logp"] = old + 0.1 * x["old_shift"]
    wanted, stats = policy_loss(logp, old, advantage, rows, **chosen)
    given = None if steps == 1 else old
    loss, out = linear_policy_loss(
        *ours, x["target"], advantage, rows, old_logp=given, temperature=0.8, **chosen
    )
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(loss, wanted)
    for a, b in zip(ours, theirs, strict=True):
        assert relative_error(a.grad, b.grad) < 1e-5
    for name, value in stats.items():
        torch.testing.assert_close(out.stats[name], value, rtol=1e-5, atol=1e-5)
