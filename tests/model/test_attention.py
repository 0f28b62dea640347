"""Attention of packs and of the cache against attention under a dense mask."""

import itertools
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from nanov2.model import attention_flash
from nanov2.model.attention import Layout
from nanov2.model.cache import BLOCK, Cache
from nanov2.model.decoder import Model, ModelConfig
from nanov2.model.packing import Completion, collate, make_packs

SHAPES = ((5, (3, 7, 1)), (9, (4,)), (2, (6, 6)))  # prompts' lengths, and those of their completions


ONE_EACH = ((5, (3,)), (9, (4,)), (1, (6,)))


def some_layout(seed: int = 0, shapes: tuple = SHAPES) -> Layout:
    g = torch.Generator().manual_seed(seed)

    def draw(n: int) -> list[int]:
        return torch.randint(1, 20, (n,), generator=g).tolist()

    packs = []
    for p, lengths in shapes:
        packs += make_packs(draw(p), [Completion(draw(n), [True] * n) for n in lengths], 1000)
    return collate(packs).layout


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("shapes", [SHAPES, ONE_EACH])
def test_C7_blockwise_attention_equals_a_dense_mask_forward_and_backward(heads, kv_heads, shapes):
    layout = some_layout(shapes=shapes)
    T, d = len(layout.ids), 16
    q, k, v = (
        torch.randn(1, n, T, d, dtype=torch.float64, requires_grad=True) for n in (heads, kv_heads, kv_heads)
    )
    weight = torch.randn(1, heads, T, d, dtype=torch.float64)
    blockwise = layout.attention()(q, k, v)
    found = torch.autograd.grad((blockwise * weight).sum(), (q, k, v))
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=layout.mask(), enable_gqa=heads != kv_heads)
    wanted = torch.autograd.grad((dense * weight).sum(), (q, k, v))
    assert torch.allclose(blockwise, dense, atol=1e-9)
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_C7_the_dense_mask_shows_each_token_its_prompt_and_itself_only():
    layout = some_layout()
    mask = layout.mask()
    for row, prompt in zip(layout.completions, layout.prompts, strict=True):
        for completion in row:
            tokens = completion[completion > 0].tolist()
            for i, token in enumerate(tokens):
                seen = set(mask[token].nonzero()[:, 0].tolist())
                assert seen - set(prompt.tolist()) == set(tokens[: i + 1]) - set(prompt.tolist())


@pytest.mark.parametrize("embed_conv", [0, 3])
@torch.no_grad()
def test_C7_decoding_from_the_cache_equals_a_full_forward(embed_conv):
    """Over several blocks, rows at different lengths, rows dropped and a prompt slot used again."""
    shape = dict(vocab_size=30, dim=24, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=32)
    model = Model(ModelConfig(embed_conv=embed_conv, **shape)).init_weights(torch.Generator().manual_seed(1))
    prompts = [[3, 4, 5, 6, 7], [8, 9]]
    cache = Cache(model.config, 4, 2, 5, model.output_weight)
    _, recent = model.prefill(prompts, cache, torch.tensor([0, 1]))
    of = torch.tensor([0, 1, 0, 1])
    cache.seat(torch.arange(4), of, recent[of])
    cache.arrange()
    own: list[list[int]] = [[], [], [], []]

    def feed(rows: list[int], count: int) -> None:
        for _ in range(count):
            ids = torch.randint(0, 30, (len(own),))
            hidden = model.step(ids, cache, torch.tensor(rows))
            for r in rows:
                own[r].append(int(ids[r]))
                packs = make_packs(prompts[of[r]], [Completion(own[r], [True] * len(own[r]))], 1000)
                full = model(collate(packs).layout)[-1]
                assert torch.allclose(hidden[r], full, atol=1e-5)

    feed([0, 1, 2, 3], BLOCK - 2)
    feed([0, 2], 4)  # rows 1 and 3 pause: lengths differ, and a block begins
    prompts[1] = [11, 12, 13]  # both rows of prompt 1 have ended: their slot takes another
    _, recent = model.prefill([prompts[1]], cache, torch.tensor([1]))
    cache.seat(torch.tensor([1, 3]), torch.tensor([1, 1]), recent[[0, 0]])
    cache.arrange()
    own[1], own[3] = [], []
    feed([0, 1, 2, 3], 3)
    cache.keep(torch.tensor([0, 3]))
    cache.arrange()
    own, of = [own[0], own[3]], torch.tensor([0, 1])
    feed([0, 1], 3)
    assert cache.prompt_kv.shape[2] == 2
    cache.keep(torch.tensor([1]))
    cache.arrange()
    own, prompts, of = [own[1]], [prompts[1]], torch.tensor([0])
    feed([0], 2)
    assert cache.prompt_kv.shape[2] == 1


def spans_of(offsets):
    return [slice(a, b) for a, b in itertools.pairwise(offsets.tolist())]


def fake_scores(q, k, i, j, scale, causal):
    h = q.shape[1] // k.shape[1]
    scores = torch.einsum("qhd,khd->hqk", q[i], k[j].repeat_interleave(h, 1)) * scale
    return (
        scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), float("-inf")) if causal else scores
    )


def fake_forward(q, k, v, *, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal, **_):
    """flash-attn's forward in plain PyTorch, with its shapes."""
    out, lse = torch.empty_like(q), q.new_empty(q.shape[1], len(q))
    for i, j in zip(spans_of(cu_seqlens_q), spans_of(cu_seqlens_k), strict=True):
        scores = fake_scores(q, k, i, j, softmax_scale, causal)
        values = v[j].repeat_interleave(q.shape[1] // k.shape[1], 1)
        out[i] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
        lse[:, i] = scores.logsumexp(-1)
    return out, lse, None, None


def fake_backward(
    g, q, k, v, out, lse, dq, dk, dv, *, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal, **_
):
    """flash-attn's backward: probabilities again from the log-sum-exp it is given."""
    h = q.shape[1] // k.shape[1]
    for i, j in zip(spans_of(cu_seqlens_q), spans_of(cu_seqlens_k), strict=True):
        p = (fake_scores(q, k, i, j, softmax_scale, causal) - lse[:, i, None]).exp()
        values, keys = (x[j].repeat_interleave(h, 1) for x in (v, k))
        delta = (g[i] * out[i]).sum(-1).T[..., None]
        ds = p * (torch.einsum("qhd,khd->hqk", g[i], values) - delta) * softmax_scale
        dq[i] = torch.einsum("hqk,khd->qhd", ds, keys)
        dk[j] = torch.einsum("hqk,qhd->khd", ds, q[i]).unflatten(1, (-1, h)).sum(2)
        dv[j] = torch.einsum("hqk,qhd->khd", p, g[i]).unflatten(1, (-1, h)).sum(2)


def fake_aten_forward(q, k, v, cq, ck, longest_q, longest_k, dropout, causal, debug, *, scale):
    """torch's, with its signature."""
    assert dropout == 0.0 and not debug and longest_q == int(cq.diff().max())
    return *fake_forward(q, k, v, cu_seqlens_q=cq, cu_seqlens_k=ck, softmax_scale=scale, causal=causal), None


def fake_aten_backward(
    g, q, k, v, out, lse, cq, ck, longest_q, longest_k, dropout, causal, rng_state, unused, *, scale
):
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    spans = {"cu_seqlens_q": cq, "cu_seqlens_k": ck}
    fake_backward(g, q, k, v, out, lse, dq, dk, dv, softmax_scale=scale, causal=causal, **spans)
    return dq, dk, dv


@pytest.fixture(params=["TorchKernels", "FlashAttnKernels"])
def kernels(request, monkeypatch):
    """Both interfaces over plain PyTorch."""
    monkeypatch.setattr(attention_flash, "_flash_attn_varlen_forward", fake_forward)
    monkeypatch.setattr(attention_flash, "_flash_attn_varlen_backward", fake_backward)
    monkeypatch.setattr(attention_flash, "_aten_forward", fake_aten_forward)
    monkeypatch.setattr(attention_flash, "_aten_backward", fake_aten_backward)
    return getattr(attention_flash, request.param)


def test_kernels_are_trusted_only_where_a_trial_finds_them_right(kernels, monkeypatch):
    shape = (torch.device("cpu"), torch.float32, 6, 2, 8)
    assert attention_flash.error_of(kernels, *shape) < 1e-5
    attention_flash._trusted.cache_clear()
    assert attention_flash._trusted(*shape) is attention_flash.TorchKernels

    def wrong(*args, **more):
        out, *others = fake_aten_forward(*args, **more)
        return out * 1.2, *others

    def missing(*args, **more):
        raise NotImplementedError("no kernel for this GPU")

    for fault, says in ((wrong, "wrong by"), (missing, "no kernel for this GPU")):
        monkeypatch.setattr(attention_flash, "_aten_forward", fault)
        attention_flash._trusted.cache_clear()
        with pytest.warns(UserWarning, match=says):
            assert attention_flash._trusted(*shape) is attention_flash.FlashAttnKernels
    monkeypatch.setattr(attention_flash, "_flash_attn_varlen_forward", None)
    attention_flash._trusted.cache_clear()
    with pytest.warns(UserWarning):
        assert attention_flash._trusted(*shape) is None
    attention_flash._trusted.cache_clear()


@pytest.mark.parametrize(
    "dtype, width, says", [(torch.float32, 64, "in float32"), (torch.bfloat16, 576, "of heads 576 wide")]
)
def test_a_gpu_without_kernels_for_such_heads_says_so_once(dtype, width, says):
    on_a_gpu = SimpleNamespace(is_cuda=True, dtype=dtype, shape=(1, 4, 9, width))
    attention_flash.tell_of_mask.cache_clear()
    with pytest.warns(UserWarning, match=f"no variable-length kernel takes attention {says}") as told:
        assert [attention_flash.kernels_for(on_a_gpu, on_a_gpu) for _ in range(2)] == [None, None]
    assert len(told) == 1
    on_a_cpu = torch.zeros(1, 4, 9, width)
    with warnings.catch_warnings(action="error"):
        assert attention_flash.kernels_for(on_a_cpu, on_a_cpu) is None


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (6, 2)])
def test_C7_the_flash_form_equals_a_dense_mask_given_a_plain_kernel(heads, kv_heads, kernels):
    layout = some_layout()
    T, d = len(layout.ids), 8
    q, k, v = (
        torch.randn(1, n, T, d, dtype=torch.float64, requires_grad=True) for n in (heads, kv_heads, kv_heads)
    )
    weight = torch.randn(1, heads, T, d, dtype=torch.float64)
    packed = attention_flash.FlashSharedPrefix.apply(q, k, v, attention_flash.Pieces(layout), kernels)
    found = torch.autograd.grad((packed * weight).sum(), (q, k, v))
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=layout.mask(), enable_gqa=heads != kv_heads)
    wanted = torch.autograd.grad((dense * weight).sum(), (q, k, v))
    assert torch.allclose(packed, dense, atol=1e-9)
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_C7_flash_kernels_themselves_equal_a_dense_mask():
    layout = some_layout().to("cuda")
    q, k, v = (
        torch.randn(1, 4, len(layout.ids), 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    packed = layout.attention()(q, k, v)
    found = torch.autograd.grad(packed.float().square().sum(), (q, k, v))
    dense = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=layout.mask())
    wanted = torch.autograd.grad(dense.square().sum(), (q, k, v))
    assert torch.allclose(packed.float(), dense, atol=2e-2)
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a.float(), b.float(), atol=0.1 * float(b.abs().max()))


def test_checkpointing_gives_the_same_gradients():
    model = Model(ModelConfig(vocab_size=20, dim=16, n_layers=2, n_heads=2, n_kv_heads=2, ffn_dim=16))
    model.init_weights(torch.Generator().manual_seed(0))
    gradients = []
    for model.checkpointing in (False, True):
        model.zero_grad()
        model(some_layout()).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(*gradients)


def test_a_long_prompt_is_not_computed_again_for_every_completion():
    completions = [Completion([1] * 40, [True] * 40) for _ in range(16)]
    packs = make_packs([2] * 300, completions, 200)
    assert [len(p.completions) for p in packs] == [7, 7, 2]  # as much as the prompt again
    assert [len(p.completions) for p in make_packs([2] * 10, completions, 200)] == [4, 4, 4, 4]
