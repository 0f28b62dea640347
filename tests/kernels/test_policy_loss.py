import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import DEVICE, FAST_FORMS, FORMS, generator
from torch.library import opcheck

from nanov2.kernels.policy_loss import LOSS_TYPES, STATS, policy_loss, policy_loss_op

VARIANTS = {
    "plain": {},
    "KL weighted": {"kl_weighted": True},
    "sequence": {"ratio": "sequence"},
    "off policy": {"off_policy_delta": 0.05},
    "all": {"kl_weighted": True, "ratio": "sequence", "off_policy_delta": 0.05},
}
LENGTHS = (7, 1, 0, 12, 3)  # ragged rows, one of a single token and one of none


def batch(lengths=LENGTHS, seed=0, dtype=torch.float32, spread=0.3):
    """Arguments of policy_loss: log-probs that differ enough to be clipped on both sides."""
    g, t = generator(seed), sum(lengths)

    def noise(scale):
        return torch.randn(t, generator=g, dtype=torch.float64) * scale

    old = -torch.rand(t, generator=g, dtype=torch.float64) * 3 - 0.5
    out = {
        "logp": old + noise(spread),
        "old_logp": old,
        "ref_logp": old + noise(spread),
        "sampler_logp": old + noise(0.1),
        "advantage": torch.randn(len(lengths), generator=g, dtype=torch.float64),
    }
    # every precision reads the same numbers: those of float32
    out = {name: x.float().to(dtype).to(DEVICE) for name, x in out.items()}
    offsets = torch.tensor([0, *itertools.accumulate(lengths)])
    mask = torch.rand(t, generator=g) > 0.3
    return out | {"offsets": offsets.to(DEVICE), "mask": mask.to(DEVICE)}


def options(loss_type, kl=False, capped=False, **more):
    denominator = 40.0 if loss_type == "dr_grpo" else None
    chosen = {"loss_type": loss_type, "denominator": denominator, "kl_coef": 0.2 if kl else 0.0}
    return chosen | ({"is_cap": 1.05} if capped else {}) | more


def run(arguments, impl, **chosen):
    """Loss, gradient in logp, statistics; ref and sampler are passed only where the options use them."""
    arguments = dict(arguments)
    if not chosen.get("kl_coef"):
        arguments.pop("ref_logp", None)
    if "is_cap" not in chosen:
        arguments.pop("sampler_logp", None)
    logp = arguments.pop("logp").detach().clone().requires_grad_()
    loss, stats = policy_loss(logp, **arguments, impl=impl, **chosen)
    loss.backward()
    return loss.detach(), logp.grad, stats


def widened(arguments):
    return {k: x.double() if x.is_floating_point() else x for k, x in arguments.items()}


def close(found, wanted, rtol=1e-5, atol=1e-6):
    torch.testing.assert_close(found[0].double(), wanted[0].double(), rtol=rtol, atol=atol)
    torch.testing.assert_close(found[1].double(), wanted[1].double(), rtol=rtol, atol=atol)
    for name in STATS:
        torch.testing.assert_close(found[2][name].double(), wanted[2][name].double(), rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("impl", FAST_FORMS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("kl", [False, True])
@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_form_agrees_with_autograd_in_float64(impl, loss_type, kl, capped, variant):
    """C12: loss type × KL × weight × clipping × mask; nothing is fused away."""
    for clips, masked in itertools.product(((0.2, 0.28), (0.0, 0.0), (1.0, 10.0)), (False, True)):
        arguments = batch()
        if not masked:
            arguments["mask"] = None
        chosen = options(loss_type, kl, capped, clip_low=clips[0], clip_high=clips[1], **VARIANTS[variant])
        wide = {
            k: x if x is None else x.double() if x.is_floating_point() else x for k, x in arguments.items()
        }
        close(run(arguments, impl, **chosen), run(wide, "reference", **chosen))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_closed_form_gradients_are_those_of_finite_differences(loss_type, variant):
    arguments = widened({k: x.cpu() for k, x in batch().items()})
    logp = arguments.pop("logp").requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: policy_loss(
            x, **arguments, impl="cpu", **options(loss_type, True, True, **VARIANTS[variant])
        )[0],
        (logp,),
    )


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logprobs_are_summed_in_float32(impl, dtype):
    """C13."""
    arguments = batch(dtype=dtype)
    loss, grad, stats = run(arguments, impl, **options("dapo", True, True))
    wanted = run(widened(arguments), "reference", **options("dapo", True, True))
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    torch.testing.assert_close(loss.double(), wanted[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats["ratio_sum"].double(), wanted[2]["ratio_sum"], rtol=1e-5, atol=1e-6)


def rows_of(arguments, rows):
    """The arguments of some rows alone."""
    offsets = arguments["offsets"].tolist()
    tokens = [t for r in rows for t in range(offsets[r], offsets[r + 1])]
    out = {k: x[tokens] for k, x in arguments.items() if k not in ("advantage", "offsets")}
    lengths = [offsets[r + 1] - offsets[r] for r in rows]
    ends = torch.tensor([0, *itertools.accumulate(lengths)], device=DEVICE)
    return out | {"advantage": arguments["advantage"][rows], "offsets": ends}, tokens


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("variant", ["plain", "all"])
def test_micro_batches_add_up_to_the_whole(impl, loss_type, variant):
    """C1: the same loss, gradient and statistics from one batch, from pairs and from single rows."""
    arguments = batch()
    for denominator in (17.0,):
        chosen = options(loss_type, True, True, **VARIANTS[variant]) | {"denominator": denominator}
        whole = run(arguments, impl, **chosen)
        for size in (1, 2):
            loss, grad, sums = 0.0, torch.zeros_like(whole[1]), dict.fromkeys(STATS, 0.0)
            for first in range(0, len(LENGTHS), size):
                part, tokens = rows_of(arguments, list(range(first, min(first + size, len(LENGTHS)))))
                found = run(part, impl, **chosen)
                loss += found[0]
                grad[tokens] += found[1]
                for name in STATS:
                    join = max if name == "ratio_max" else float.__add__
                    sums[name] = join(float(sums[name]), float(found[2][name]))
            torch.testing.assert_close(loss, whole[0])
            torch.testing.assert_close(grad, whole[1])
            for name in STATS:
                assert sums[name] == pytest.approx(float(whole[2][name]), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("variant", ["plain", "all"])
def test_masked_rows_give_zero_loss_and_finite_gradients(impl, loss_type, variant):
    """C2: a wholly masked row contributes nothing and is not counted; nor does a wholly masked batch fail."""
    arguments = batch()
    arguments["mask"][:7] = False
    chosen = options(loss_type, True, True, **VARIANTS[variant])
    loss, grad, stats = run(arguments, impl, **chosen)
    rest, tokens = rows_of(arguments, [1, 2, 3, 4])
    alone = run(rest, impl, **chosen)
    torch.testing.assert_close(loss, alone[0])
    torch.testing.assert_close(grad[tokens], alone[1])
    assert not grad[:7].any() and stats["rows"] == alone[2]["rows"]
    arguments["mask"][:] = False
    loss, grad, stats = run(arguments, impl, **chosen)
    assert loss == 0 and not grad.any() and all(float(x) == 0 for x in stats.values())


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), float("-inf"), 1e30])
def test_what_a_masked_position_holds_changes_nothing(impl, loss_type, junk):
    """C3."""
    arguments, chosen = batch(), options(loss_type, True, True, **VARIANTS["all"])
    wanted = run(arguments, impl, **chosen)
    for name in ("logp", "old_logp", "ref_logp", "sampler_logp"):
        arguments[name] = torch.where(arguments["mask"], arguments[name], junk)
        found = run(arguments, impl, **chosen)
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
        assert all(torch.equal(found[2][x], wanted[2][x]) for x in STATS)


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_on_policy_the_ratio_is_exactly_one(impl, loss_type):
    """C6: the same tensor may be given as new and old: the old one has no gradient."""
    arguments = batch()
    logp = arguments.pop("logp").requires_grad_()
    arguments |= {"old_logp": logp, "ref_logp": None, "sampler_logp": None}
    chosen = options(loss_type) | {"denominator": 1.0}
    loss, stats = policy_loss(logp, **arguments, impl=impl, **chosen)
    loss.backward()
    assert stats["ratio_sum"] == stats["tokens"] and stats["ratio_max"] == 1
    assert stats["clip_low_count"] == stats["clip_high_count"] == stats["approx_kl_sum"] == 0
    if loss_type in ("dapo", "dr_grpo"):  # the gradient is the plain policy gradient, −A per token
        lengths = arguments["offsets"].diff()
        assert torch.equal(
            logp.grad, -(arguments["advantage"].repeat_interleave(lengths) * arguments["mask"])
        )


@pytest.mark.parametrize("impl", FORMS)
def test_worked_example(impl):
    """Two rows; ratios 1.5 and 1 at A = 1, and 0.5 at A = −1: upper clip, no clip, lower clip."""
    old = torch.full((3,), -1.0, device=DEVICE)
    arguments = {
        "logp": old + torch.tensor([1.5, 1.0, 0.5], device=DEVICE).log(),
        "old_logp": old,
        "advantage": torch.tensor([1.0, -1.0], device=DEVICE),
        "offsets": torch.tensor([0, 2, 3], device=DEVICE),
    }
    loss, grad, stats = run(arguments, impl)
    assert float(loss) == pytest.approx(-(1.28 + 1.0 - 0.8) / 3)  # dapo: over three tokens
    assert grad.tolist() == pytest.approx([0.0, -1 / 3, 0.0])
    assert (stats["clip_high_count"], stats["clip_low_count"]) == (1, 1)
    loss, grad, _ = run(arguments, impl, loss_type="grpo")
    assert float(loss) == pytest.approx(-((1.28 + 1.0) / 2 - 0.8) / 2)
    loss, _, _ = run(arguments, impl, loss_type="dr_grpo", denominator=2 * 4)
    assert float(loss) == pytest.approx(-(1.28 + 1.0 - 0.8) / 8)
    loss, grad, stats = run(arguments, impl, loss_type="gspo")  # one ratio for the first row: √1.5
    assert float(loss) == pytest.approx(-(1.5**0.5 - 0.8) / 2)
    assert grad.tolist() == pytest.approx([-(1.5**0.5) / 4, -(1.5**0.5) / 4, 0.0])
    assert float(stats["ratio_max"]) == pytest.approx(1.5**0.5)


@pytest.mark.parametrize("impl", FORMS)
def test_importance_weight_is_capped_and_has_no_gradient(impl):
    old = torch.full((2,), -1.0, device=DEVICE)
    arguments = {
        "logp": old,
        "old_logp": old,
        "sampler_logp": old - torch.tensor([1.5, 4.0], device=DEVICE).log(),
        "advantage": torch.ones(1, device=DEVICE),
        "offsets": torch.tensor([0, 2], device=DEVICE),
    }
    loss, grad, stats = run(arguments, impl, is_cap=2.0)
    assert float(loss) == pytest.approx(-(1.5 + 2.0) / 2) and grad.tolist() == pytest.approx([-0.75, -1.0])
    assert float(stats["is_weight_sum"]) == pytest.approx(3.5)


@pytest.mark.parametrize("impl", FORMS)
def test_kl_gradient_agrees_with_exact_enumeration(impl):
    """C18, over a vocabulary of five: k3's mean is KL(π ‖ π_ref), and its gradient, with the samples held
    fixed as any sampled loss holds them, is in expectation that of KL(π_ref ‖ π)."""
    g = generator(3)
    logits = torch.randn(5, generator=g).to(DEVICE).requires_grad_()
    ref = torch.log_softmax(torch.randn(5, generator=g), 0).to(DEVICE)
    logp = torch.log_softmax(logits, 0)
    ends = torch.arange(6, device=DEVICE)
    each = logp.detach().clone().requires_grad_()  # every token once, weighted by its probability below
    none = torch.zeros(5, device=DEVICE)
    loss, _ = policy_loss(each, each, none, ends, ref_logp=ref, kl_coef=1.0, denominator=1.0, impl=impl)
    (per_token,) = torch.autograd.grad(loss, each)
    (found,) = torch.autograd.grad((logp.exp().detach() * per_token * logp).sum(), logits, retain_graph=True)
    (exact,) = torch.autograd.grad((ref.exp() * (ref - logp)).sum(), logits)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)
    d = ref - logp.detach()
    mean_k3 = (logp.exp().detach() * (d.exp() - d - 1)).sum()
    torch.testing.assert_close(mean_k3, (logp.exp() * (logp - ref)).sum().detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("impl", FORMS)
def test_a_weighted_kl_has_the_gradient_of_the_reverse_kl(impl):
    """Over a vocabulary of five: in expectation, with the samples held fixed, that of KL(π ‖ π_ref)."""
    g = generator(3)
    logits = torch.randn(5, generator=g).to(DEVICE).requires_grad_()
    ref = torch.log_softmax(torch.randn(5, generator=g), 0).to(DEVICE)
    logp = torch.log_softmax(logits, 0)
    ends, none = torch.arange(6, device=DEVICE), torch.zeros(5, device=DEVICE)
    each = logp.detach().clone().requires_grad_()  # every token once, weighted by its probability below
    chosen = {"ref_logp": ref, "kl_coef": 1.0, "kl_weighted": True, "denominator": 1.0, "impl": impl}
    (per_token,) = torch.autograd.grad(policy_loss(each, each, none, ends, **chosen)[0], each)
    (found,) = torch.autograd.grad((logp.exp().detach() * per_token * logp).sum(), logits, retain_graph=True)
    (exact,) = torch.autograd.grad((logp.exp() * (logp - ref)).sum(), logits)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("impl", FORMS)
def test_a_row_far_off_policy_with_negative_advantage_has_no_policy_loss(impl):
    """Rows that have lost 0.3 nats a token: the one with A < 0 goes, and counts in the denominator still."""
    old = torch.full((4,), -1.0, device=DEVICE)
    arguments = {
        "logp": old - 0.3,
        "old_logp": old,
        "advantage": torch.tensor([1.0, -1.0], device=DEVICE),
        "offsets": torch.tensor([0, 2, 4], device=DEVICE),
    }
    kept = run(arguments, impl, clip_low=0.5, off_policy_delta=0.31)
    loss, grad, stats = run(arguments, impl, clip_low=0.5, off_policy_delta=0.29)
    assert kept[2]["off_policy_rows"] == 0 and stats["off_policy_rows"] == 1 and stats["tokens"] == 4
    assert kept[1][2:].all() and not grad[2:].any() and torch.equal(grad[:2], kept[1][:2])
    ratio = torch.tensor(-0.3).exp()
    assert float(loss) == pytest.approx(float(-2 * ratio / 4))
    # the sampler's log-probs, where there are some, say how far off the row is
    near = arguments | {"sampler_logp": old - 0.3}
    assert run(near, impl, is_cap=2.0, clip_low=0.5, off_policy_delta=0.29)[2]["off_policy_rows"] == 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=0, max_size=12),
    st.integers(0, 99),
    st.sampled_from(LOSS_TYPES),
    st.sampled_from(list(VARIANTS.values())),
)
def test_any_ragged_batch_agrees_with_the_reference(lengths, seed, loss_type, variant):
    arguments, chosen = batch(tuple(lengths), seed), options(loss_type, True, True, **variant)
    close(run(arguments, "cpu", **chosen), run(widened(arguments), "reference", **chosen))


@pytest.mark.parametrize("form", FAST_FORMS)
def test_operator_keeps_the_contract_of_custom_operators(form):
    x = batch()
    logp, tokens = x["logp"].requires_grad_(), (x["old_logp"], x["ref_logp"], x["sampler_logp"])
    rest = x["advantage"], x["offsets"], x["mask"], 0.2, 0.28, 0.1, 1.5, False, True, True, 0.1, form
    opcheck(policy_loss_op, (logp, *tokens, *rest))
    opcheck(policy_loss_op, (logp, tokens[0], None, None, *rest))


def test_torch_compile_passes_through():
    arguments, chosen = batch(), options("gspo", True, True)
    wanted = run(arguments, None, **chosen)
    logp = arguments.pop("logp").requires_grad_()

    def loss(x):
        return policy_loss(x * 1.0, **arguments, **chosen)[0]

    found = torch.compile(loss, fullgraph=True, backend="aot_eager")(logp)
    found.backward()
    torch.testing.assert_close(found.detach(), wanted[0])
    torch.testing.assert_close(logp.grad, wanted[1])


def test_unsupported_options_raise():
    """C12."""
    x = batch()
    logp, old, a, offsets = x["logp"], x["old_logp"], x["advantage"], x["offsets"]
    with pytest.raises(ValueError, match="dapo, grpo, dr_grpo, gspo"):
        policy_loss(logp, old, a, offsets, loss_type="ppo")
    with pytest.raises(ValueError, match="denominator"):
        policy_loss(logp, old, a, offsets, loss_type="dr_grpo")
    for wrong in (
        {"is_cap": 2.0},
        {"sampler_logp": old},
        {"kl_coef": 0.1},
        {"mask": x["mask"].float()},
        {"mask": x["mask"][:3]},
        {"clip_low": -0.1},
        {"off_policy_delta": -0.1},
        {"ratio": "row"},
        {"ratio": "token", "loss_type": "gspo"},
        {"impl": "fast"},
    ):
        with pytest.raises(ValueError):
            policy_loss(logp, old, a, offsets, **wrong)
    with pytest.raises(ValueError):
        policy_loss(logp, old, a, offsets[:-1])
    with pytest.raises(ValueError):
        policy_loss(logp.cpu(), old.cpu(), a.cpu(), offsets.cpu() + 1)
