"""nanov2/rl/optimizer.py: Muon is torch's, and is refused where a matrix is in parts."""

import pytest
import torch
from conftest import small_model

from nanov2.errors import InputError
from nanov2.rl.optimizer import make_optimizer, orthogonal
from nanov2.run.config import load_config
from nanov2.run.start import _check_optimizer


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_muon_is_torchs_for_the_matrices_of_the_blocks_and_adamw_for_the_rest(tokenizer, precision):
    model, other = small_model(tokenizer), small_model(tokenizer)
    model.set_precision(precision)
    matrices = [p for n, p in other.named_parameters() if "proj" in n]
    rest = [p for n, p in other.named_parameters() if "proj" not in n]
    assert len(matrices) == 14
    muon = torch.optim.Muon(matrices, 1e-2, 0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, 1e-2, (0.9, 0.98), weight_decay=0.1)
    optimizer, generator = make_optimizer(model, 1e-2, 0.1, "muon"), torch.Generator().manual_seed(1)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        for p, q in zip(model.parameters(), other.parameters()):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        for one in (optimizer, muon, adamw):
            one.step()
    for p, q, old in zip(model.parameters(), other.parameters(), before):
        assert (p - q).norm() < 0.02 * (p - old).norm()  # torch's multiplies in bf16
    assert {g["lr"] for g in optimizer.param_groups} == {1e-2}


def test_a_step_of_muon_has_the_size_of_adamws(tokenizer):
    model = small_model(tokenizer)
    weight = model.layers[0].mlp.up_proj.weight
    before, optimizer = weight.detach().clone(), make_optimizer(model, 1e-2, 0.0, "muon")
    weight.grad = 1e-4 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert (weight - before).pow(2).mean().sqrt().item() == pytest.approx(0.2 * 1e-2, rel=0.25)


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 6, 6)])
def test_orthogonal_keeps_directions_and_makes_all_of_one_size(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    found = u.mT @ orthogonal(matrices) @ vt.mT  # diagonal, where u and v are those of the matrix
    sizes = found.diagonal(dim1=1, dim2=2)
    assert torch.allclose(found, torch.diag_embed(sizes), atol=1e-4)
    assert (sizes > 0.3).all() and (sizes < 1.3).all()
    assert not orthogonal(torch.zeros(shape)).any()


def test_weights_copied_to_bf16_are_copied_again_after_a_step(tokenizer):
    model = small_model(tokenizer)
    model.set_precision("bf16")
    optimizer = make_optimizer(model, 1e-2, 0.0, "muon")
    versions = [p._version for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(p._version > old for p, old in zip(model.parameters(), versions))


@pytest.mark.parametrize("other", ["--lora.rank=4", "--parallel.shard=full"])
@pytest.mark.parametrize("section", ["base", "verifier2", "consolidate"])
def test_muon_is_refused_where_a_matrix_is_in_parts(section, other):
    config = load_config(None, [f"--{section}.optimizer=muon"])
    _check_optimizer(config)
    config = load_config(None, [f"--{section}.optimizer=muon", other])
    name = other.removeprefix("--").partition("=")[0]
    with pytest.raises(
        InputError, match=f'{section}.optimizer = "muon" is for whole matrices, not with {name}'
    ):
        _check_optimizer(config)
