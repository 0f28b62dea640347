"""The arithmetic of --dry-run, beside what the code really keeps."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scripts import run
from torch.utils._python_dispatch import TorchDispatchMode

from nanov2.distributed.ranks import Ranks
from nanov2.distributed.sharding import local_bytes
from nanov2.errors import InputError
from nanov2.hub import hf
from nanov2.hub.engine import RolloutConfig
from nanov2.model.cache import Cache
from nanov2.model.decoder import Model, ModelConfig
from nanov2.model.deepseek import LatentConfig
from nanov2.model.experts import ExpertsConfig
from nanov2.model.layers import Linear
from nanov2.model.lora import LoraConfig, add_adapters
from nanov2.model.packing import Completion, collate, make_packs
from nanov2.model.rollout import Sampling
from nanov2.model.sampler import sample
from nanov2.rl.config import GRPOConfig
from nanov2.rl.optimizer import make_optimizer
from nanov2.rl.state import Phase
from nanov2.run import start
from nanov2.run.config import load_config
from nanov2.run.costs import HARDWARE, Costs, activation_bytes, cache_bytes, count, launches, share_of
from nanov2.run.phases import PHASES, title
from nanov2.run.plan import adapter_seconds, dry_run, make_plan, plan_phase, work_of

ROOT = Path(__file__).parents[2]
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
    params, met, _, _ = count(hf.to_config(ROOT / "configs" / "shapes" / f"{shape}.json"))
    assert params == pytest.approx(total, rel=1e-9 if total < 1e10 else 1e-3)
    assert met == pytest.approx(active, rel=1e-9 if total < 1e10 else 5e-3)


@pytest.mark.parametrize("dense", [None, 0, 1, 2])
def test_parameters_are_those_of_the_model(dense):
    latent = LatentConfig(kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8)
    experts = ExpertsConfig(4, 2, 32, first_k_dense_replace=dense or 0)
    extra = {} if dense is None else {"latent": latent, "experts": experts, "embed_conv": 0}
    shape = ModelConfig(100, dim=64, n_layers=4, n_heads=4, **extra)
    model = Model(shape)
    assert count(shape)[:2] == (model.n_params, model.n_active)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("extra", [{}, {"n_kv_heads": 2}, {"head_size": 64, "qk_norm": True}])
def test_activations_are_about_what_is_saved_for_backward(extra, precision):
    config = ModelConfig(
        100, **{"dim": 256, "n_layers": 3, "n_heads": 8, "n_kv_heads": 8, "ffn_dim": 640} | extra
    )
    config = ModelConfig(**config.to_dict() | {"embed_conv": 0})
    model = Model(config).init_weights(torch.Generator().manual_seed(0))
    batch = collate(make_packs([1] * 100, [Completion([2] * 103, [True] * 103) for _ in range(4)], 9999))
    model.set_precision(precision)
    copies = [m._in_half() for m in model.modules() if isinstance(m, Linear)] if precision == "bf16" else []
    weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *copies]}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        _hidden = model(batch.layout)
    real = sum(saved.values()) / 512 / config.n_layers
    planned = activation_bytes(config, 4 if precision == "fp32" else 2, stream=4, attention=4)
    assert 1 / 1.3 < planned / real < 1.3


def test_bytes_held_are_those_of_the_simulated_shards():
    from scaling import SHAPES, simulate

    shape = SHAPES["8B"]
    simulated = simulate(shape, 8, "full", "bf16").state
    assert simulated == pytest.approx(16 * count(shape)[0] / 8, rel=0.01)


def test_models_are_whole_while_sampling_and_when_a_phase_ends(tmp_path):
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        ranks = Ranks()
        ranks.size, ranks.shard, ranks.precision = 2, "full", "bf16"
        shape = ModelConfig(512, dim=256, n_heads=4, n_kv_heads=2, ffn_dim=704, embed_conv=0)
        model, judge = (Model(shape).init_weights(torch.Generator().manual_seed(i)) for i in range(2))
        frozen = SimpleNamespace(model=judge.requires_grad_(False))
        phase = Phase(tmp_path, model, GRPOConfig(), ranks, {"verifier": frozen})
        for p in phase.model.parameters():
            p.grad = torch.zeros_like(p)
        phase.optimizer.step()
        phase.optimizer.zero_grad(set_to_none=True)

        shards = [*phase.model.parameters(), *phase.frozen["verifier"].model.parameters()]

        def held() -> float:  # bytes a parameter, on one of two ranks
            moments = [v for s in phase.optimizer.state.values() for k, v in s.items() if k != "step"]
            whole = [p for m in (model, judge) for p in m.parameters() if not p.is_meta]
            return local_bytes([*shards, *moments, *whole]) / count(shape)[0]

        with phase.whole():
            sampling = held()
        phase.end()
        ended = held()
    finally:
        torch.distributed.destroy_process_group()
    # Weights, moments and a frozen model's weights in shards; two models whole, in bf16.
    assert sampling == ended == pytest.approx((12 + 2) / 2 + 2 * 2, rel=0.01)
    config = load_config(ROOT / "configs" / "qwen3-8b-8gpu.toml", ["--grpo.judge=run", "--eval.proofs=1"])
    p = make_plan(config, 8, 8, HARDWARE["h100-80gb"]).phases["generator"]
    assert p.ends == pytest.approx(((12 + 2) / 8 + 2 * 2) * 8_190_735_360, rel=0.01)


def test_gradients_that_are_summed_once_a_step_are_held_whole():
    path = ROOT / "configs" / "qwen3-8b-8gpu.toml"
    micro, step = (
        make_plan(load_config(path, [f"--parallel.reduce={when}"]), 8, 8, HARDWARE["h100-80gb"])
        for when in ("micro", "step")
    )
    for name, p in micro.phases.items():
        assert step.phases[name].training - p.training == pytest.approx(4 * micro.params)


LORA = ["--lora.rank=4", "--parallel.precision=bf16"]


@pytest.mark.parametrize(
    "overrides",
    [[], LORA, LORA[:1], LORA[1:], ["--grpo.optimizer=muon"]],
    ids=["plain", "lora bf16", "lora", "bf16", "muon"],
)
def test_bytes_held_are_those_of_model_gradients_and_moments(overrides):
    config = load_config(None, overrides)
    x = Costs(config, 1, 1, HARDWARE["cpu-core"])
    model = Model(x.c).init_weights(torch.Generator().manual_seed(0))
    if config.lora.rank:
        add_adapters(model, config.lora, 0, x.unit == 2)
    model.set_precision(config.parallel.precision)
    batch = collate(make_packs([1] * 9, [Completion([2] * 9, [True] * 9) for _ in range(2)], 99))
    optimizer = make_optimizer(model, 1e-3, 0.0, config.generator.optimizer)
    model(batch.layout).sum().backward()
    learnt = [p for p in model.parameters() if p.requires_grad]
    for p in learnt:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    optimizer.step()
    moments = [v for state in optimizer.state.values() for k, v in state.items() if k != "step"]
    copies = [m._copy[1] for m in model.modules() if isinstance(m, Linear) and m._copy]
    tensors = [*model.parameters(), *(p.grad for p in learnt), *moments, *copies]
    held = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
    assert x.state(config.generator.optimizer) == pytest.approx(held, rel=0.02)
    assert x.trained == sum(p.numel() for p in learnt)


def test_one_card_of_24_gb_trains_a_model_of_1_7_billion_on_8000_tokens():
    path, card = ROOT / "configs" / "qwen3-1.7b-24gb.toml", HARDWARE["rtx4090-24gb"]
    plan = make_plan(load_config(path), 1, 1, card)
    assert max(p.peak for p in plan.phases.values()) < 0.9 * 24e9
    config = load_config(path)
    assert max(p.prompt + config.phase(name).max_tokens for name, p in plan.phases.items()) > 8000
    assert "fits into 24 GB" in dry_run(config, 1, "rtx4090-24gb")
    served = ["--rollout.engine=vllm", "--rollout.start=true", "--grpo.judge=engine"]
    share = "--rollout.options=--gpu-memory-utilization=0.25"
    two = make_plan(load_config(path, [*served, share]), 1, 1, card).phases["generator"]
    assert two.servers == 2 * 0.25 * 24e9 and two.peak < 0.9 * 24e9
    whole = make_plan(load_config(path, ["--lora.rank=0"]), 1, 1, card).phases["verifier"]
    assert whole.held > 24e9  # and with moments of one byte each, beside a judge, 23.5
    eight_bit = whole.held - 6 * plan.params + 2 * plan.params
    assert 23e9 < eight_bit < 24e9
    said = path.read_text().replace("#   ", "")
    assert all(line in said for line in dry_run(config, 1, "rtx4090-24gb").splitlines())


def test_engines_take_their_share_and_this_process_no_keys_and_values():
    path = ROOT / "configs" / "qwen3-8b-8gpu.toml"
    own = make_plan(load_config(path, ["--grpo.judge=run"]), 8, 8, HARDWARE["h100-80gb"]).phases["generator"]
    urls = ["--rollout.engine=vllm", '--rollout.urls=["http://a:1"]', '--rollout.judge_urls=["http://a:2"]']
    config = load_config(path, [*urls, "--grpo.judge=engine"])
    there = make_plan(config, 8, 8, HARDWARE["h100-80gb"]).phases["generator"]
    assert there.servers == there.sampling == 0 and there.held < own.held
    assert there.seconds < own.seconds
    assert "GPUs of their own" in dry_run(config, 8, "h100-80gb")
    rollout = RolloutConfig(engine="vllm", start=True, options="--x 1 --gpu-memory-utilization 0.4")
    assert share_of(rollout) == 0.4
    assert share_of(RolloutConfig(engine="sglang", options="--mem-fraction-static=0.5")) == 0.5
    assert share_of(RolloutConfig(engine="vllm")) == 0.9


def test_what_does_not_fit_is_refused_at_the_start_by_what_is_really_held(monkeypatch):
    monkeypatch.setattr(start, "memory_of", lambda device: 24e9)
    monkeypatch.chdir(ROOT)
    flags = ["--pretrained.shape=configs/shapes/qwen3-1.7b.json", "--parallel.precision=bf16"]
    config = load_config(None, ["--pretrained.folder=none", *flags])
    with pytest.raises(InputError, match=r"holds 30\.3 GB.* has 24\.0 GB.*lora\.rank"):
        start._check_memory(config, Ranks())
    lora = load_config(None, ["--pretrained.folder=none", *flags, "--lora.rank=32"])
    start._check_memory(lora, Ranks())
    engine = ["--rollout.engine=vllm", "--rollout.start=true", "--rollout.dtype=fp32", "--grpo.judge=engine"]
    served = load_config(None, ["--pretrained.folder=none", *flags, "--lora.rank=600", *engine])
    with pytest.raises(InputError, match=r"updates of rank 600 holds .* engines started here take 13\.8 GB"):
        start._check_memory(served, Ranks())


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("extra", [{}, {"qk_norm": True}])
@pytest.mark.parametrize("rank", [0, 2])
def test_operators_of_a_decoded_token_are_counted(half, extra, rank):
    shape = ModelConfig(50, dim=32, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=48, embed_conv=0, **extra)
    model = Model(shape).init_weights(torch.Generator().manual_seed(0))
    if rank:
        add_adapters(model, LoraConfig(rank), 0, half)
    model.set_precision("bf16" if half else "fp32")

    def operators(tokens: int) -> int:
        with Operators() as counted:
            sample(model, SimpleNamespace(end=-1), [[1] * 5], 4, Sampling(1.0, tokens), 0)
        return counted.n

    found = (operators(24) - operators(8)) / 16
    assert launches(shape, half, rank > 0) == pytest.approx(found, rel=0.02)


class Operators(TorchDispatchMode):
    """Counts operators that compute: no views."""

    n = 0
    VIEWS = "view _unsafe_view t transpose expand unsqueeze squeeze select slice permute detach".split()
    VIEWS += ["alias", "split", "unbind", "lift_fresh", "_local_scalar_dense"]

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        self.n += f.overloadpacket.__name__ not in self.VIEWS
        return f(*args, **(kwargs or {}))


def test_the_cache_is_what_sampling_fills():
    config = load_config(None, ["--model.n_kv_heads=2"])
    costs = Costs(config, 1, 1, HARDWARE["cpu-core"])
    cache = Cache(costs.c, rows=8, prompts=3, prompt_len=40, like=torch.zeros(0))
    held = cache.prompt_kv.nbytes
    for cache.longest in range(0, 96, 32):
        cache.begin()
    own = cache.own_kv.nbytes
    assert (held, own) == (cache_bytes(costs.c, 4) * 120, cache_bytes(costs.c, 4) * 8 * 128)
    assert costs.sampler(4, 8, 5, 4, 40, 96) == held + 1.8 * own + 20 * 8 * costs.c.vocab_size


def test_fp32_on_a_gpu_holds_all_scores_of_grouped_heads_and_is_slow():
    config = load_config(ROOT / "configs" / "qwen3-1.7b-1gpu.toml", [])
    costs = Costs(config, 1, 1, HARDWARE["h100-80gb"])
    assert costs.dense(4) and not costs.dense(2)
    assert not Costs(config, 1, 1, HARDWARE["cpu-core"]).dense(4)
    assert costs.rate() == 0.35 * 67e12
    told = "no variable-length kernel takes attention in float32"
    assert told in dry_run(config, 1, "h100-80gb")
    half = load_config(ROOT / "configs" / "qwen3-1.7b-1gpu.toml", ["--parallel.precision=bf16"])
    assert told not in dry_run(half, 1, "h100-80gb") and told not in dry_run(config, 1, "cpu-core")
    alike = Costs(load_config(None, []), 1, 1, HARDWARE["h100-80gb"])  # as many key-value heads
    assert alike.masked(4) and not alike.dense(4)
    longer = load_config(ROOT / "configs" / "qwen3-1.7b-1gpu.toml", ["--grpo.micro_tokens=32768"])
    assert "does NOT fit" in dry_run(longer, 1, "h100-80gb")


def test_adapters_take_time_beside_frozen_weights():
    config = [load_config(None, [*LORA[1:], f"--lora.rank={rank}"]) for rank in (4, 40)]
    few, many = (Costs(c, 1, 1, HARDWARE["cpu-core"]) for c in config)
    assert few.sides == many.sides and many.lora == 10 * few.lora
    small, large = (plan_phase(c, x, "verifier") for c, x in zip(config, (few, many)))
    work = work_of(config[0], 1, "verifier", 1)
    assert large.flops - small.flops == pytest.approx(3 * 2 * 9 * few.lora * work.trained)
    assert large.seconds > small.seconds
    assert adapter_seconds(work, few) == pytest.approx(12 * 2 * few.sides * work.trained / 8e9)
    assert adapter_seconds(work, Costs(load_config(None, []), 1, 1, HARDWARE["cpu-core"])) == 0


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
    assert verifier("--grpo.samples=8").sampling < verifier().sampling


def test_a_dry_run_makes_nothing_on_disk(tmp_path):
    flags = ["--dry-run", "--config=configs/qwen3-8b-8gpu.toml", f"--dir={tmp_path}/run", "--ranks=8"]
    flags.append("--hardware=h100-80gb")
    code, out, err = run("train.py", *flags)
    assert code == 0, err
    assert "8,190,735,360 parameters" in out and "fits into 80 GB" in out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_takes_this_machine_and_adds_up_the_laps():
    config = load_config(ROOT / "configs" / "smoke.toml")
    text = dry_run(config, 2, "this")
    assert "this machine (" in text.splitlines()[0] and "all GRPO phases of 2 laps" in text
    one, two = (make_plan(load_config(None, [f"--laps={n}"]), 1, 1, HARDWARE["cpu-core"]) for n in (1, 2))
    assert one.hours == pytest.approx(sum(p.hours for p in one.phases.values()))
    assert two.hours > one.hours and one.phases == two.phases


def test_what_a_dry_run_cannot_know_is_told():
    config = load_config(ROOT / "configs" / "qwen3-8b-8gpu.toml", ["--pretrained.shape=no.json"])
    with pytest.raises(InputError, match="neither models/Qwen3-8B/config.json nor pretrained.shape"):
        dry_run(config, 8, "h100-80gb")
    with pytest.raises(InputError, match="unknown hardware 'tpu'; one of cpu-core"):
        dry_run(config, 8, "tpu")
    assert json.loads((ROOT / "configs/shapes/qwen3-8b.json").read_text())["_source"] == "Qwen/Qwen3-8B"


def test_the_verifier_of_a_later_lap_has_its_own_name():
    assert "πφ v2" in title("verifier2", 1) and "πφ v3" in title("verifier2", 2)
    assert title("generator", 2) == title("generator", 1)


def test_every_phase_that_grpo_trains_is_planned():
    trained = {"verifier", "meta", "renew_meta", "verifier2", "generator", "selfverify"}
    plan = make_plan(load_config(ROOT / "configs" / "smoke.toml"), 1, 1, HARDWARE["cpu-core"])
    assert set(plan.phases) == trained
    assert not any(PHASES[name].follows for name in ("verifier", "meta", "verifier2"))
