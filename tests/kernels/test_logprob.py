import itertools

import pytest
import torch
from kernel_helpers import DEVICE, FAST_FORMS, FORMS, generator, relative_error
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from nanov2.kernels import logprob_cpu
from nanov2.kernels.logprob import linear_logprob, linear_sums

OPTIONS = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "softcap": {"softcap": 2.5},
    "bias": {"use_bias": True},
    "all": {"temperature": 1.7, "softcap": 4.0, "use_bias": True},
}


@pytest.fixture
def small_tiles(monkeypatch):
    """Cuts small problems of the chunked form into many tiles, with ragged last ones."""
    monkeypatch.setattr(logprob_cpu, "TILE", 20)
    monkeypatch.setattr(logprob_cpu, "ROWS", 4)


def problem(n, v, d, dtype=torch.float32, seed=0, scale=1.0):
    g = generator(seed)
    hidden, weight = torch.randn(n, d, generator=g) * scale, torch.randn(v, d, generator=g)
    target, bias = torch.randint(0, v, (n,), generator=g), torch.randn(v, generator=g)
    move = {"device": DEVICE, "dtype": dtype}
    return hidden.to(**move), weight.to(**move), target.to(DEVICE), bias.to(**move)


def outputs(hidden, weight, target, bias, impl, entropy=True, **options):
    """Log-prob and entropy, and gradients in hidden, weight (and bias) of a loss that weights all rows."""
    leaves = [x.detach().clone().requires_grad_() for x in (hidden, weight, bias)]
    use_bias = options.pop("use_bias", False)
    found = linear_logprob(
        *leaves[:2],
        target,
        bias=leaves[2] if use_bias else None,
        return_entropy=entropy,
        impl=impl,
        **options,
    )
    logp, ent = found if entropy else (found, torch.zeros_like(found))
    rows = torch.linspace(0.5, 1.5, len(logp), device=logp.device, dtype=logp.dtype)
    ((rows * logp).sum() + (rows.flip(0) * ent).sum()).backward()
    grads = [x.grad for x in leaves[: 3 if use_bias else 2]]
    return {"logp": logp.detach(), "entropy": ent.detach()} | dict(
        zip(("dh", "dw", "db"), grads, strict=False)
    )


def expected(hidden, weight, target, bias, **options):
    return outputs(hidden.double(), weight.double(), target, bias.double(), "reference", **options)


def check(found, wanted, logp=2e-6, grad=1e-5):
    for name, value in found.items():
        bound = logp if name in ("logp", "entropy") else grad
        assert relative_error(value, wanted[name]) <= bound, name
        assert value.shape == wanted[name].shape
    assert found["logp"].dtype == found["entropy"].dtype == torch.float32
    assert bool((found["logp"] <= 0).all())


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 4), (9, 257, 16), (13, 64, 33)])
@pytest.mark.parametrize("impl", ["one tile", *FAST_FORMS])
def test_every_form_agrees_with_float64(impl, shape, entropy, name, request):
    if impl == "cpu":
        request.getfixturevalue("small_tiles")
    arguments = problem(*shape)
    form = "triton" if impl == "triton" else "cpu"
    found = outputs(*arguments, form, entropy=entropy, **OPTIONS[name])
    # at V = 1 or with a bounded logit a gradient can be all rounding: then errors are relative to 1
    wanted = expected(*arguments, entropy=entropy, **OPTIONS[name])
    if shape[1] == 1:
        assert all(float(x.abs().max()) <= 1e-6 for x in found.values())
    else:
        check(found, wanted)


@pytest.mark.parametrize("dtype, rounding", [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
@pytest.mark.parametrize("impl", FAST_FORMS)
def test_low_precision_inputs_have_float32_logits_and_sums(impl, dtype, rounding, small_tiles):
    """C13: the log-prob is as exact as in float32, and gradients as exact as their dtype."""
    if impl == "triton" and dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("the interpreter's bfloat16 products are wrong")
    arguments = problem(12, 300, 24, dtype)
    found = outputs(*arguments, impl, **OPTIONS["all"])
    check(found, expected(*arguments, **OPTIONS["all"]), grad=rounding * (1 if impl == "cpu" else 3))
    assert found["dh"].dtype == found["dw"].dtype == found["db"].dtype == dtype


@pytest.mark.parametrize("impl", FORMS)
def test_small_float16_gradients_survive(impl, small_tiles):
    """A loss divided by a large denominator: gradients of 1e-8 would round to 0 in float16."""
    hidden, weight, target, _ = problem(4, 50, 8, torch.float16)
    leaf = hidden.clone().requires_grad_()
    (linear_logprob(leaf, weight, target, impl=impl).sum() * 1e-5).backward()
    wide = hidden.double().requires_grad_()
    (linear_logprob(wide, weight.double(), target, impl="reference").sum() * 1e-5).backward()
    assert relative_error(leaf.grad, wide.grad) < 5e-3


@pytest.mark.parametrize("v", [3, 257, 50257])
@pytest.mark.parametrize("impl", FAST_FORMS)
def test_logprob_is_never_above_zero(impl, v):
    """C20: odd vocabularies, all-negative logits, and a token that has nearly all the probability."""
    for scale in (1.0, 40.0):
        hidden, weight, target, bias = problem(6, v, 4, scale=scale)
        bias = -bias.abs() - 100 * scale  # all logits negative
        target[:3] = (hidden @ weight.T + bias).argmax(1)[:3]
        logp, entropy = linear_logprob(hidden, weight, target, bias=bias, return_entropy=True, impl=impl)
        reference = linear_logprob(
            hidden.double(),
            weight.double(),
            target,
            bias=bias.double(),
            return_entropy=True,
            impl="reference",
        )
        assert bool((logp <= 0).all()) and bool(logp.isfinite().all())
        # float32 rounds logits of size 100 by 4e-6 each: the error is theirs, not the sum's
        assert float((logp - reference[0]).abs().max()) < 2e-6 * 200 * scale
        assert float((entropy - reference[1]).abs().max()) < 2e-6 * 200 * scale


@pytest.mark.parametrize("impl", FORMS)
def test_extreme_logits_stay_exact(impl, small_tiles):
    """±1e4: numbers that float32 holds exactly, so that every error would be the kernel's own."""
    hidden = torch.tensor([[1e4, 0.0], [-1e4, 0.0], [0.0, 1e4], [1.0, 1.0]], device=DEVICE)
    weight = torch.tensor([[1.0, 0.0], [1.0, 1 / 8192], [-1.0, 0.5], [0.0, -1.0], [0.5, 1.0]], device=DEVICE)
    target = torch.tensor([1, 2, 0, 4], device=DEVICE)
    arguments = hidden, weight, target, torch.zeros(5, device=DEVICE)
    check(outputs(*arguments, impl), expected(*arguments))


@pytest.mark.parametrize("impl", FORMS)
def test_no_tokens_give_no_logprobs_and_zero_gradients(impl, small_tiles):
    found = outputs(*problem(0, 7, 3), impl, **OPTIONS["all"])
    assert found["logp"].shape == (0,) and found["dh"].shape == (0, 3)
    assert not found["dw"].any() and not found["db"].any()


@pytest.mark.parametrize("ignore_index", [-100, 2, -1])
@pytest.mark.parametrize("impl", FORMS)
def test_ignored_rows_change_nothing_even_with_nan(impl, ignore_index, small_tiles):
    """C3."""
    hidden, weight, target, bias = problem(9, 11, 5)
    target[target == ignore_index] = 0
    ignored = torch.zeros(9, dtype=torch.bool, device=DEVICE)
    ignored[[0, 4, 8]] = True
    target[ignored] = ignore_index
    hidden[ignored] = torch.nan
    leaf, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logp, entropy = linear_logprob(leaf, w, target, return_entropy=True, ignore_index=ignore_index, impl=impl)
    (logp.sum() + entropy.sum()).backward()
    alone, w2 = hidden[~ignored].requires_grad_(), weight.clone().requires_grad_()
    wanted = linear_logprob(
        alone, w2, target[~ignored], return_entropy=True, ignore_index=-7, impl="reference"
    )
    (wanted[0].sum() + wanted[1].sum()).backward()
    assert not logp[ignored].any() and not entropy[ignored].any() and not leaf.grad[ignored].any()
    torch.testing.assert_close(logp[~ignored], wanted[0])
    torch.testing.assert_close(leaf.grad[~ignored], alone.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(w.grad, w2.grad, rtol=1e-4, atol=1e-6)


def test_temperature_divides_the_logits(small_tiles):
    """C4, in every form: log_softmax(logits / T), and softcap before T."""
    hidden, weight, target, _ = problem(6, 30, 8)
    for impl, softcap in itertools.product(FORMS, (None, 1.5)):
        logits = hidden @ weight.T
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        wanted = torch.log_softmax(logits / 0.3, -1).gather(1, target[:, None])[:, 0]
        found = linear_logprob(hidden, weight, target, temperature=0.3, softcap=softcap, impl=impl)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("impl", FAST_FORMS)
def test_two_calls_give_the_same_bits(impl, small_tiles):
    """C6 rests on it: the ratio of a policy to itself is exactly 1."""
    first, second = (outputs(*problem(9, 40, 8), impl) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("d", [2, 3, 8, 30])
@pytest.mark.parametrize("name", ["plain", "all"])
def test_logits_that_wait_in_the_gradients_memory_are_used_once(d, name, small_tiles):
    """Every part's, every third's …; a second backward pass over the same graph makes all of them again."""
    hidden, weight, target, bias = (x.cpu() for x in problem(7, 43, d))
    options = {k: v for k, v in OPTIONS[name].items() if k != "use_bias"}
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    logp = linear_logprob(*leaves[:2], target, bias=bias, impl="cpu", **options)
    first = torch.autograd.grad(logp.sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(logp.sum(), leaves)
    wanted = linear_logprob(*leaves[:2], target, bias=bias, impl="reference", **options)
    for a, b, c in zip(first, second, torch.autograd.grad(wanted.sum(), leaves), strict=True):
        assert relative_error(a, c) < 1e-5 and relative_error(b, c) < 1e-5  # parts are added in another order


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("entropy", [True, False])
def test_gradients_of_the_chunked_form_are_those_of_finite_differences(name, entropy, small_tiles):
    hidden, weight, target, bias = (x.cpu() for x in problem(6, 9, 3, torch.float64))
    target[2] = -100
    options = dict(OPTIONS[name])
    options.pop("use_bias", None)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_logprob(h, w, target, bias=b, return_entropy=entropy, impl="cpu", **options),
        leaves,
    )


@pytest.mark.parametrize("form", FAST_FORMS)
def test_operator_keeps_the_contract_of_custom_operators(form):
    hidden, weight, target, bias = problem(5, 12, 4)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    opcheck(linear_sums, (*leaves, target, 0.7, None, True, form))
    opcheck(linear_sums, (*leaves[:2], None, target, 1.0, 3.0, False, form))


def test_torch_compile_passes_through(small_tiles):
    hidden, weight, target, bias = problem(10, 40, 8)
    target[3] = -100

    def loss(h, w, b):
        logp, entropy = linear_logprob(h, w, target, bias=b, temperature=0.8, return_entropy=True)
        return (logp + 0.1 * entropy).sum()

    found, wanted = ([x.detach().clone().requires_grad_() for x in (hidden, weight, bias)] for _ in range(2))
    torch.compile(loss, fullgraph=True, backend="aot_eager")(*found).backward()
    loss(*wanted).backward()
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_no_tensor_of_tokens_times_vocabulary_is_made(monkeypatch):
    """C13: 3,000 × 5,000 logits, of which a tile holds 2,048 × 16."""
    monkeypatch.setattr(logprob_cpu, "TILE", 1 << 15)
    hidden, weight, target, _ = (x.cpu() for x in problem(3000, 5000, 4))
    with Largest() as largest:
        linear_logprob(hidden.requires_grad_(), weight.requires_grad_(), target, impl="cpu").sum().backward()
    assert largest.elements <= 4 * 3000 * 313  # the four sums of every tile


def test_frozen_weights_and_frozen_hidden_states_get_no_gradient(small_tiles):
    hidden, weight, target, _ = problem(6, 20, 5)
    for impl in FAST_FORMS:
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        linear_logprob(h, weight, target, impl=impl).sum().backward()
        linear_logprob(hidden, w, target, impl=impl).sum().backward()
        full = outputs(hidden, weight, target, weight[:, 0], impl, entropy=False)
        assert h.grad is not None and w.grad is not None and full["dh"].isfinite().all()


def test_unsupported_options_raise():
    """C12."""
    hidden, weight, target, bias = (x.cpu() for x in problem(4, 6, 3))
    for wrong in ({"temperature": 0.0}, {"softcap": -1.0}, {"impl": "cuda"}, {"bias": bias[:2]}):
        with pytest.raises(ValueError):
            linear_logprob(hidden, weight, target, **wrong)
    with pytest.raises(ValueError):
        linear_logprob(hidden[:, :2], weight, target)
    with pytest.raises(ValueError):
        linear_logprob(hidden.double(), weight.double(), target, impl="triton")
    with pytest.raises(ValueError):
        linear_logprob(hidden.half(), weight, target, impl="triton")
    with pytest.raises(IndexError):
        linear_logprob(hidden, weight, torch.tensor([0, 1, 6, 2]))
    with pytest.raises(IndexError):
        linear_logprob(hidden, weight, torch.tensor([0, 1, -1, 2]))
