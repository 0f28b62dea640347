"""The arithmetic of --dry-run, beside what the code really keeps."""

import json
import sys
from pathlib import Path

import pytest
import torch
from test_phases import run

from nanov2 import hf
from nanov2.config import load_config
from nanov2.errors import InputError
from nanov2.model import Model, ModelConfig
from nanov2.packing import Completion, collate, make_packs
from nanov2.plan import HARDWARE, activation_bytes, cache_bytes, dry_run, make_plan

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))


@pytest.mark.parametrize(
    "shape, total, active",
    [  # as the models' publishers count them
        ("smollm2-135m", 134_515_008, 134_515_008),
        ("qwen3-8b", 8_190_735_360, 8_190_735_360),
        ("deepseek-v3", 671.0e9, 37.6e9),
    ],
)
def test_parameters_are_those_of_the_published_models(shape, total, active):
    with torch.device("meta"):
        model = Model(hf.to_config(ROOT / "configs" / "shapes" / f"{shape}.json"))
    assert model.n_params == pytest.approx(total, rel=1e-9 if total < 1e10 else 1e-3)
    assert model.n_active == pytest.approx(active, rel=1e-9 if total < 1e10 else 5e-3)


@pytest.mark.parametrize("extra", [{}, {"n_kv_heads": 2}, {"head_size": 64, "qk_norm": True}])
def test_activations_are_about_what_is_saved_for_backward(extra):
    config = ModelConfig(
        100, **{"dim": 256, "n_layers": 3, "n_heads": 8, "n_kv_heads": 8, "ffn_dim": 640} | extra
    )
    config = ModelConfig(**config.to_dict() | {"embed_conv": 0})
    model = Model(config).init_weights(torch.Generator().manual_seed(0))
    batch = collate(make_packs([1] * 100, [Completion([2] * 103, [True] * 103) for _ in range(4)], 9999))
    weights, saved = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        _hidden = model(batch.layout)
    real = sum(saved.values()) / 512 / config.n_layers
    assert 1 / 1.3 < activation_bytes(config, 4) / real < 1.3


def test_bytes_held_are_those_of_the_simulated_shards():
    from scaling import SHAPES, simulate

    shape = SHAPES["8B"]
    simulated = simulate(shape, 8, "full", "bf16").state
    with torch.device("meta"):
        params = Model(shape).n_params
    assert simulated == pytest.approx(16 * params / 8, rel=0.01)


def test_the_cache_of_latents_is_small():
    deepseek = hf.to_config(ROOT / "configs" / "shapes" / "deepseek-v3.json")
    assert cache_bytes(deepseek, 2) == 2 * 61 * 576  # 70 kB a token, for 671 billion parameters


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_every_configuration_has_a_plan(path):
    config = load_config(path, [])
    if config.pretrained.folder and not config.pretrained.shape:
        config = load_config(path, ["--pretrained.shape=configs/shapes/smollm2-135m.json"])
    plan = make_plan(config, 8, 8, HARDWARE["h100-80gb"])
    assert all(p.peak > 0 and p.seconds > 0 for p in plan.phases.values())


def test_shards_and_checkpointing_take_less_memory_each():
    path = ROOT / "configs" / "qwen3-8b-8gpu.toml"

    def verifier(*overrides, ranks=8):
        config = load_config(path, list(overrides))
        return make_plan(config, ranks, 8, HARDWARE["h100-80gb"]).phases["verifier"]

    assert verifier(ranks=16).held == pytest.approx(verifier().held / 2)
    assert verifier("--parallel.shard=hybrid", ranks=16).held == pytest.approx(verifier().held)
    assert verifier().training < 0.2 * verifier("--grpo.checkpointing=false").training
    assert verifier("--grpo.batch_rows=8").sampling < verifier().sampling


def test_a_dry_run_makes_nothing_on_disk(tmp_path):
    flags = ["--dry-run", "--config=configs/qwen3-8b-8gpu.toml", f"--dir={tmp_path}/run", "--ranks=8"]
    code, out, err = run("train.py", *flags)
    assert code == 0, err
    assert "8,190,735,360 parameters" in out and "fits into 80 GB" in out
    assert not list(tmp_path.iterdir())


def test_what_a_dry_run_cannot_know_is_told():
    config = load_config(ROOT / "configs" / "qwen3-8b-8gpu.toml", ["--pretrained.shape=no.json"])
    with pytest.raises(InputError, match="neither models/Qwen3-8B/config.json nor pretrained.shape"):
        dry_run(config, 8, "h100-80gb")
    with pytest.raises(InputError, match="unknown hardware 'tpu'; one of cpu-core"):
        dry_run(config, 8, "tpu")
    assert json.loads((ROOT / "configs/shapes/qwen3-8b.json").read_text())["_source"] == "Qwen/Qwen3-8B"
