"""linear_policy_loss against the composition of the two references, in float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import DEVICE, FAST_FORMS, generator, relative_error
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from nanov2.kernels import linear_policy_loss as module
from nanov2.kernels import linear_policy_loss_cpu
from nanov2.kernels.linear_policy_loss import linear_policy_loss, linear_policy_loss_op
from nanov2.kernels.policy_loss import LOSS_TYPES, STATS

LENGTHS = (7, 1, 0, 12, 3)
VARIANTS = {
    "plain": {},
    "KL": {"kl_coef": 0.2},
    "weighted KL": {"kl_coef": 0.2, "kl_weighted": True},
    "capped": {"is_cap": 1.05},
    "entropy": {"entropy_coef": 0.05},
    "sequence": {"ratio": "sequence"},
    "off policy": {"off_policy_delta": 0.05},
    "all": {
        "kl_coef": 0.2,
        "kl_weighted": True,
        "is_cap": 1.05,
        "entropy_coef": 0.05,
        "ratio": "sequence",
        "off_policy_delta": 0.05,
    },
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Cuts small problems into many chunks and tiles, with ragged last ones."""
    monkeypatch.setattr(linear_policy_loss_cpu, "WIDTH", 8)


def batch(lengths=LENGTHS, seed=0, v=37, d=6, scale=1.0):
    g, t = generator(seed), sum(lengths)
    hidden, weight = torch.randn(t, d, generator=g) * scale, torch.randn(v, d, generator=g)
    target, mask = torch.randint(0, v, (t,), generator=g), torch.rand(t, generator=g) > 0.3
    logp = torch.log_softmax(hidden.double() @ weight.double().T / 0.8, -1).gather(1, target[:, None])[:, 0]
    others = {
        name: (logp + noise * torch.randn(t, generator=g)).float()
        for name, noise in (("old_logp", 0.3), ("ref_logp", 0.3), ("sampler_logp", 0.1))
    }
    tensors = {
        "hidden": hidden,
        "weight": weight,
        "target": target,
        "advantage": torch.randn(len(lengths), generator=g),
        "offsets": torch.tensor([0, *itertools.accumulate(lengths)]),
        "mask": mask,
    }
    return {name: x.to(DEVICE) for name, x in (tensors | others).items()}


def run(x, impl, dtype=torch.float32, loss_type="dapo", on_policy=False, chunk=5, **options):
    """Loss, gradients and output; the log-probs of others are passed where an option uses them."""
    x = dict(x)
    leaves = [x.pop(name).detach().clone().to(dtype).requires_grad_() for name in ("hidden", "weight")]
    if on_policy:
        x.pop("old_logp")
    if not options.get("kl_coef"):
        x.pop("ref_logp")
    if "is_cap" not in options:
        x.pop("sampler_logp")
    options.setdefault("denominator", 40.0 if loss_type == "dr_grpo" else None)
    target, advantage, offsets = (x.pop(name) for name in ("target", "advantage", "offsets"))
    loss, out = linear_policy_loss(
        *leaves, target, advantage, offsets, temperature=0.8, loss_type=loss_type, chunk=chunk, impl=impl,
        **x, **options,
    )  # fmt: skip
    loss.backward()
    return {"loss": loss.detach(), "dh": leaves[0].grad, "dw": leaves[1].grad, "out": out}


def check(found, wanted, grad=1e-5, value=1e-5):
    for name in ("dh", "dw"):
        assert relative_error(found[name], wanted[name]) <= grad, name
    torch.testing.assert_close(found["loss"].double(), wanted["loss"], rtol=value, atol=1e-6)
    for name in ("logp", "entropy"):
        a, b = getattr(found["out"], name), getattr(wanted["out"], name)
        assert relative_error(a, b) <= value and not a.requires_grad
    assert bool((found["out"].logp <= 0).all())
    for name in STATS:
        a, b = found["out"].stats[name].double(), wanted["out"].stats[name].double()
        torch.testing.assert_close(a, b, rtol=value, atol=1e-5, msg=name)


@pytest.mark.parametrize("impl", FAST_FORMS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("on_policy", [True, False])
def test_every_form_agrees_with_the_two_references(impl, loss_type, variant, on_policy):
    """C12: and no option is fused away, wherever the coefficient is known in time or not."""
    options = VARIANTS[variant] | {"loss_type": loss_type, "on_policy": on_policy}
    for masked in (False, True):
        x = batch()
        if not masked:
            x["mask"][:] = True
        check(run(x, impl, **options), run(x, "reference", torch.float64, **options))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("on_policy", [True, False])
def test_one_pass_is_taken_wherever_the_coefficient_is_known_in_time(variant, on_policy, monkeypatch):
    """Two functions run only for ratios and masks of whole rows that the log-probs of a row decide."""
    two = []
    monkeypatch.setattr(module, "two_functions", lambda *a: two.append(1) or (a[0].sum() * 0.0, None))
    run(batch(), "cpu", on_policy=on_policy, **VARIANTS[variant])
    needs_rows = {"sequence": not on_policy, "off policy": not on_policy, "all": True}
    assert bool(two) == needs_rows.get(variant, False)


class Products(TorchDispatchMode):
    """Counts the multiplications of matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.mkldnn._linear_pointwise.default):
            self.count += args[0].shape[0] * args[0].shape[1] * out.shape[1]
        return out


@pytest.mark.parametrize("old", ["given", "clipped"])
def test_three_products_and_none_for_tokens_without_a_coefficient(old):
    x = batch()
    size = x["weight"].numel()
    if old == "clipped":  # all ratios are far above 1, so that rows with A > 0 have no gradient
        x["old_logp"] = x["old_logp"] - 3.0
    with Products() as products:
        run({k: v.cpu() for k, v in x.items()}, "cpu")
    counts = x["mask"]
    positive = (x["advantage"] > 0).repeat_interleave(x["offsets"].diff())
    clipped = counts & positive if old == "clipped" else counts & False
    if old == "clipped":
        assert clipped.any() and products.count == size * int(counts.sum() + 2 * (counts & ~clipped).sum())
    else:
        assert products.count <= 3 * size * int(counts.sum())


@pytest.mark.parametrize("impl", FAST_FORMS)
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
def test_what_a_masked_token_holds_changes_nothing(impl, junk):
    """C3: its hidden state, its target and its other log-probs."""
    x, options = batch(), VARIANTS["all"] | {"ratio": None, "off_policy_delta": None}
    wanted = run(x, impl, **options)
    x["hidden"] = torch.where(x["mask"][:, None], x["hidden"], junk)
    x["target"] = torch.where(x["mask"], x["target"], 10**6)
    for name in ("old_logp", "ref_logp", "sampler_logp"):
        x[name] = torch.where(x["mask"], x[name], junk)
    found = run(x, impl, **options)
    assert torch.equal(found["loss"], wanted["loss"])
    assert torch.equal(found["dh"], wanted["dh"]) and torch.equal(found["dw"], wanted["dw"])
    assert not found["dh"][~x["mask"]].any()


@pytest.mark.parametrize("impl", FAST_FORMS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_micro_batches_add_up_to_the_whole(impl, loss_type):
    """C1."""
    x, options = batch(), {"loss_type": loss_type, "denominator": 17.0, "kl_coef": 0.2, "on_policy": True}
    whole = run(x, impl, **options)
    loss, dw = 0.0, torch.zeros_like(whole["dw"])
    for row, (start, end) in enumerate(itertools.pairwise(x["offsets"].tolist())):
        part = {k: v[start:end] for k, v in x.items() if k not in ("weight", "advantage", "offsets")}
        ends = torch.tensor([0, end - start], device=DEVICE)
        part |= {"weight": x["weight"], "advantage": x["advantage"][row : row + 1], "offsets": ends}
        found = run(part, impl, **options)
        loss, dw = loss + found["loss"], dw + found["dw"]
        torch.testing.assert_close(found["dh"], whole["dh"][start:end])
    torch.testing.assert_close(loss, whole["loss"])
    torch.testing.assert_close(dw, whole["dw"])


@pytest.mark.parametrize("impl", FAST_FORMS)
@pytest.mark.parametrize("v, scale", [(3, 1.0), (257, 40.0), (5003, 40.0)])
def test_logprobs_are_never_above_zero_and_extreme_logits_stay_finite(impl, v, scale, monkeypatch):
    """C20: logits of hundreds, and tokens that have nearly all the probability."""
    monkeypatch.setattr(linear_policy_loss_cpu, "WIDTH", 1024)
    x = batch(v=v, scale=scale)
    x["target"][::2] = (x["hidden"] @ x["weight"].T).argmax(1)[::2]
    found = run(x, impl, on_policy=True, entropy_coef=0.1, chunk=None)
    wanted = run(x, "reference", torch.float64, on_policy=True, entropy_coef=0.1)
    assert bool((found["out"].logp <= 0).all()) and bool(found["dh"].isfinite().all())
    assert (
        relative_error(found["dh"], wanted["dh"]) < 1e-4 and relative_error(found["dw"], wanted["dw"]) < 1e-4
    )


def test_bfloat16_products_keep_log_probs_of_the_rounded_numbers_and_float32_gradients():
    """Rounded once, before the product: the log-probs are then float32's, and gradients bfloat16-exact."""
    x = batch(d=24, v=300)
    found = run(x, "cpu", precision="bf16", kl_coef=0.1)
    rounded = x | {name: x[name].bfloat16().float() for name in ("hidden", "weight")}
    wanted = run(rounded, "reference", torch.float64, kl_coef=0.1)
    check(found, wanted, grad=2**-7)
    assert found["dw"].dtype == torch.float32
    low = run(x, "cpu", torch.bfloat16, kl_coef=0.1)  # by the dtype of the inputs
    assert low["dw"].dtype == torch.bfloat16 and relative_error(low["dw"], wanted["dw"]) < 2**-6


@pytest.mark.parametrize("impl", FAST_FORMS)
def test_small_float16_gradients_survive(impl):
    """A loss divided by a large denominator: gradients of 1e-8 would round to 0 in float16."""
    x = batch()
    x = x | {name: x[name].half().float() for name in ("hidden", "weight")}
    found = run(x, impl, torch.float16, denominator=1e4, kl_coef=0.1)
    wanted = run(x, "reference", torch.float64, denominator=1e4, kl_coef=0.1)
    assert relative_error(found["dh"], wanted["dh"]) < 5e-3
    assert relative_error(found["out"].logp, wanted["out"].logp) < 1e-5


def test_the_gradient_of_a_nearly_certain_token_survives_bfloat16():
    """p = 0.9999: c · (1 − p) is smaller than the rounding of p itself."""
    x = batch(lengths=(4,), v=20, d=8)
    x["weight"] = x["weight"].bfloat16().float()
    x["mask"][:] = True
    x["hidden"] = 12.0 * x["weight"][x["target"]] / x["weight"][x["target"]].norm(dim=1, keepdim=True) ** 2
    x["hidden"] = x["hidden"].bfloat16().float()
    found = run(x, "cpu", precision="bf16", on_policy=True)
    wanted = run(x, "reference", torch.float64, on_policy=True)
    assert relative_error(found["dh"], wanted["dh"]) < 2**-6


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8),
    st.integers(0, 99),
    st.sampled_from(LOSS_TYPES),
    st.sampled_from(list(VARIANTS.values())),
    st.integers(1, 12),
    st.booleans(),
)
def test_any_ragged_batch_agrees_with_the_references(lengths, seed, loss_type, variant, chunk, on_policy):
    x = batch(tuple(lengths), seed)
    options = variant | {"loss_type": loss_type, "on_policy": on_policy}
    check(run(x, "cpu", chunk=chunk, **options), run(x, "reference", torch.float64, **options))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_in_float64_the_gradient_is_that_of_autograd(loss_type, variant):
    x, options = batch(), VARIANTS[variant] | {"loss_type": loss_type, "on_policy": True}
    x = {name: value.cpu() for name, value in x.items()}
    found, wanted = (run(x, impl, torch.float64, **options) for impl in ("cpu", "reference"))
    check(found, wanted, grad=1e-12, value=1e-12)


def test_without_gradients_only_the_logits_are_made():
    x = batch()
    arguments = [x[name].cpu() for name in ("hidden", "weight", "target", "advantage", "offsets")]
    with Products() as products, torch.no_grad():
        loss, _ = linear_policy_loss(*arguments, impl="cpu")
    assert products.count == x["weight"].numel() * len(x["target"]) and not loss.requires_grad
    weight = arguments[1].clone().requires_grad_()
    linear_policy_loss(arguments[0], weight, *arguments[2:], impl="cpu")[0].backward()
    assert weight.grad.any()


def test_no_tensor_of_tokens_times_vocabulary_is_made(monkeypatch):
    """C13: 3,000 × 5,000 logits, of which a chunk holds 16."""
    monkeypatch.setattr(linear_policy_loss_cpu, "WIDTH", 1024)
    x = batch((3000,), v=5000, d=4)
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for y in out if isinstance(out, (tuple, list)) else (out,):
                largest = max(largest, y.numel() if isinstance(y, torch.Tensor) else 0)
            return out

    with Largest():
        run(x, "cpu", chunk=16, on_policy=True)
    assert largest <= 5000 * 16


def test_a_second_backward_pass_is_refused():
    x = batch()
    hidden = x["hidden"].requires_grad_()
    loss, _ = linear_policy_loss(hidden, x["weight"], x["target"], x["advantage"], x["offsets"], impl="cpu")
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


@pytest.mark.parametrize("form", FAST_FORMS)
def test_operator_keeps_the_contract_of_custom_operators(form):
    x = batch()
    tokens = len(x["target"])
    a, share = torch.randn(tokens, device=DEVICE), torch.rand(tokens, device=DEVICE)
    leaves = x["hidden"].requires_grad_(), x["weight"].requires_grad_()
    others = x["old_logp"], x["ref_logp"], x["sampler_logp"]
    rest = 0.8, 0.1, [0.2, 0.28, 0.1, 1.5, 0, 0, 1, float("inf")], False, 4, [True, True], form
    opcheck(linear_policy_loss_op, (*leaves, x["target"], a, share * x["mask"], x["mask"], *others, *rest))


def test_torch_compile_passes_through():
    x = batch()
    rest = [x[name] for name in ("target", "advantage", "offsets")]

    def loss(h, w):
        return linear_policy_loss(
            h * 1.0, w * 1.0, *rest, mask=x["mask"], kl_coef=0.1, ref_logp=x["ref_logp"]
        )[0]

    found, wanted = ([x[k].clone().requires_grad_() for k in ("hidden", "weight")] for _ in range(2))
    torch.compile(loss, fullgraph=True, backend="aot_eager")(*found).backward()
    loss(*wanted).backward()
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_unsupported_options_raise():
    x = {k: v.cpu() for k, v in batch().items()}
    arguments = [x[name] for name in ("hidden", "weight", "target", "advantage", "offsets")]
    for wrong in (
        {"temperature": 0.0},
        {"precision": "fp8"},
        {"loss_type": "ppo"},
        {"kl_coef": 0.1},
        {"is_cap": 2.0},
        {"mask": x["mask"].float()},
        {"old_logp": x["old_logp"][:3]},
        {"impl": "fast"},
    ):
        with pytest.raises(ValueError):
            linear_policy_loss(*arguments, **wrong)
    with pytest.raises(ValueError):
        linear_policy_loss(*arguments[:4], x["offsets"] + 1)
    with pytest.raises(IndexError):
        linear_policy_loss(*arguments[:2], x["target"] + 30, *arguments[3:])
