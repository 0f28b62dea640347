"""policy_loss and linear_policy_loss give the losses and gradients of TRL 1.16's GRPOTrainer.

`trl_loss` repeats, on rows padded to one length, the formulas of `GRPOTrainer._compute_loss` and
`get_off_policy_mask` (github.com/huggingface/trl, v1.16.0, trl/trainer/grpo_trainer.py, Apache-2.0); where
TRL is installed a test holds it against the trainer's own method.
"""

import itertools
import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from kernel_helpers import generator

from nanov2.kernels.policy_loss import policy_loss

LENGTHS, LONGEST, MAXIMUM = (5, 3, 1, 6), 6, 8
LOSSES = ("grpo", "bnpo", "dapo", "dr_grpo")
GRID = list(
    itertools.product(LOSSES, ("token", "sequence"), (None, False, True), (False, True), (None, 0.02))
)  # loss × ratio × (no KL, KL, weighted KL) × several steps × off-policy mask


def inputs(dtype=torch.float64):
    g = generator(7)
    t = sum(LENGTHS)
    logp = -3 * torch.rand(t, generator=g, dtype=dtype)
    return {
        "logp": logp,
        "old": logp + 0.3 * torch.randn(t, generator=g, dtype=dtype),
        "ref": logp + 0.3 * torch.randn(t, generator=g, dtype=dtype),
        "advantage": torch.tensor([1.0, -0.7, -0.4, -1.1], dtype=dtype),
        "mask": torch.rand(t, generator=g) > 0.2,
    }


def padded(x, fill=0.0):
    out = x.new_full((len(LENGTHS), LONGEST), fill)
    for row, part in enumerate(x.split(LENGTHS)):
        out[row, : len(part)] = part
    return out


def trl_loss(logp, old, ref, advantages, mask, loss_type, level, beta, weighted, delta, num_items):
    """TRL's loss in one micro-batch of one process; all [B, L] but advantages [B, 1]."""
    old = logp.detach() if old is None else old
    log_ratio = logp - old
    if level == "sequence":
        log_ratio = ((log_ratio * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).unsqueeze(-1)
    coef_1 = torch.exp(log_ratio)
    coef_2 = torch.clamp(coef_1, 1 - 0.2, 1 + 0.28)
    per_token = -torch.min(coef_1 * advantages, coef_2 * advantages)
    if delta is not None:
        mean_kl = ((old - logp.detach()) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        per_token = per_token * ((advantages >= 0) | (mean_kl <= delta)).to(mask.dtype)
    if beta:
        kl = torch.exp(ref - logp) - (ref - logp) - 1
        per_token = per_token + beta * (kl * coef_1 if weighted else kl)
    if loss_type == "grpo":
        return ((per_token * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
    divisor = {
        "bnpo": mask.sum().clamp(min=1.0),
        "dapo": num_items,
        "dr_grpo": len(mask) * MAXIMUM,
    }[loss_type]
    return (per_token * mask).sum() / divisor


def trainers_loss(logp, old, ref, advantages, mask, loss_type, level, beta, weighted, delta, num_items):
    """The same by TRL's own method, on an object that has what the method reads."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    pads = torch.zeros(mask.shape, dtype=torch.long)
    same = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1)
    arguments = SimpleNamespace(
        use_bias_correction_kl=weighted, delta=None, steps_per_generation=1, gradient_accumulation_steps=1
    )
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logp, torch.zeros_like(logp), None),
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=delta,
        importance_sampling_level=level,
        beta=beta,
        args=arguments,
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=0.28,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=MAXIMUM,
        accelerator=same,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    batch = {
        "prompt_ids": pads[:, :1],
        "prompt_mask": pads[:, :1],
        "completion_ids": pads,
        "completion_mask": mask,
        "advantages": advantages[:, 0],
        "num_items_in_batch": num_items,
        "ref_per_token_logps": ref,
    }
    if old is not None:
        batch["old_per_token_logps"] = old
    return GRPOTrainer._compute_loss(trainer, None, batch)


def theirs(x, loss, loss_type, level, kl, several, delta):
    logp = x["logp"].clone().requires_grad_()
    value = loss(
        padded(logp),
        padded(x["old"]) if several else None,
        padded(x["ref"]),
        x["advantage"][:, None],
        padded(x["mask"].to(logp.dtype)),
        loss_type,
        level,
        0.0 if kl is None else 0.3,
        bool(kl),
        delta,
        torch.tensor(11.0, dtype=logp.dtype),
    )
    value.backward()
    return value.detach(), logp.grad


def ours(x, loss_type, level, kl, several, delta):
    logp = x["logp"].clone().requires_grad_()
    loss, _ = policy_loss(
        logp,
        x["old"] if several else logp,
        x["advantage"],
        torch.tensor([0, *itertools.accumulate(LENGTHS)]),
        mask=x["mask"],
        **chosen(x, loss_type, level, kl, delta),
    )
    loss.backward()
    return loss.detach(), logp.grad


def chosen(x, loss_type, level, kl, delta):
    """TRL's settings in the words of policy_loss; "bnpo" divides by the tokens of the call itself."""
    rows = len(LENGTHS)
    return {
        "ref_logp": None if kl is None else x["ref"],
        "kl_coef": 0.0 if kl is None else 0.3,
        "kl_weighted": bool(kl),
        "ratio": level,
        "off_policy_delta": delta,
        "loss_type": "dapo" if loss_type == "bnpo" else loss_type,
        "denominator": {"grpo": rows, "bnpo": None, "dapo": 11.0, "dr_grpo": rows * MAXIMUM}[loss_type],
    }


@pytest.mark.parametrize("loss_type, level, kl, several, delta", GRID)
def test_policy_loss_is_that_of_trl(loss_type, level, kl, several, delta):
    case = loss_type, level, kl, several, delta
    wanted, found = theirs(inputs(), trl_loss, *case), ours(inputs(), *case)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-10, atol=1e-12)
    assert math.isfinite(float(found[0]))


def test_the_formulas_are_those_of_the_installed_trl():
    trl = pytest.importorskip("trl")
    if not trl.__version__.startswith("1.16."):
        pytest.skip(f"the formulas are those of TRL 1.16, installed is {trl.__version__}")
    for case in GRID:
        wanted, found = theirs(inputs(), trainers_loss, *case), theirs(inputs(), trl_loss, *case)
        torch.testing.assert_close(found[0], wanted[0], rtol=1e-10, atol=1e-12, msg=str(case))
        torch.testing.assert_close(found[1], wanted[1], rtol=1e-10, atol=1e-12, msg=str(case))
