"""Models in shards: the same training as whole ones, in less memory, and checkpoints that fit any ranks."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import small_model, some_problems, some_proofs

from benchmarks import scaling
from nanov2.distributed.checkpoints import Snapshots
from nanov2.distributed.ranks import Ranks, derive_rng, derive_seed, leave
from nanov2.distributed.sharding import Sharded, local_bytes
from nanov2.domains.order.demos import Noise, make_demonstration
from nanov2.domains.order.domain import OrderLanguage
from nanov2.domains.order.tokenizer import order_tokenizer
from nanov2.method.judges import meta_judge, verifier_judge
from nanov2.method.tasks import SelfVerifyTask, VerifierTask
from nanov2.model.deepseek import LatentConfig
from nanov2.model.experts import ExpertsConfig
from nanov2.model.packing import micro_batches
from nanov2.records import ProblemRecord, ProofRecord
from nanov2.rl.config import BaseConfig, GRPOConfig
from nanov2.rl.optimizer import make_optimizer
from nanov2.rl.trainer import MICRO_TOKENS, Trainee, supervised_loss, train_grpo, train_supervised

STEPS = 20
GRPO = GRPOConfig(
    steps=STEPS,
    prompts=5,  # odd: the ranks have unequal shares
    samples=3,
    max_tokens=6,
    refill=0,
    warmup=1,
    micro_tokens=96,
    epochs=1,
    eval_every=100,
    save_every=10,
    kl_coef=0.05,
)


class RewardOfLength:
    """Any reward that varies: the judge's where there is one, and a little for the length."""

    def rewards(self, items, rollouts):
        out = super().rewards(items, rollouts)
        out.reward = [(0.0 if r != r else r) + len(x.ids) / 50 for r, x in zip(out.reward, rollouts)]
        return out


class Single(RewardOfLength, VerifierTask):
    pass


class Multi(RewardOfLength, SelfVerifyTask):
    pass


def nothing(model, step):
    return {}


def example(step, i):
    rng = derive_rng("demo", step, i)
    written = make_demonstration(rng, some_problems(1, seed=step * 10 + i)[0], Noise())
    return OrderLanguage(order_tokenizer(), strict=True).document(written)


def train(kind, folder, ranks, **changes):
    """Train one kind of phase; returns the model, and the losses of its steps."""
    tokenizer = order_tokenizer()
    prompts, model, judge = (
        OrderLanguage(tokenizer, strict=True),
        small_model(tokenizer),
        small_model(tokenizer, seed=1),
    )
    if kind == "experts":  # of DeepSeek's architecture, balanced as it is trained
        model = small_model(
            tokenizer,
            n_kv_heads=4,
            latent=LatentConfig(8, 6, 4, 10, q_lora_rank=12),
            experts=ExpertsConfig(4, 2, 16, balance_rate=0.01),
        )
    trainee = Trainee(folder, kind, model, tokenizer, ranks)
    if kind in ("supervised", "muon", "experts"):
        settings = dict(steps=STEPS, batch=5, warmup=1, lr=3e-4, eval_every=100, save_every=10) | changes
        settings |= {"optimizer": "muon"} if kind == "muon" else {}
        train_supervised(trainee, example, BaseConfig(**settings), nothing)
    else:
        config = dataclasses.replace(GRPO, **changes)
        if kind == "single":
            task = Single(prompts, meta_judge(judge, prompts, max_tokens=4))
            items = [ProofRecord(p.text, proof, 1.0) for p, proof in some_proofs(17)]
        else:
            task = Multi(prompts, verifier_judge(judge, prompts, max_tokens=4), max_turns=3)
            items = [ProblemRecord(p.text) for p in some_problems(17)]
        train_grpo(trainee, task, items, config, lambda *_: ({}, []))
    rows = []
    if ranks.main:
        rows = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return model, rows


def _rank(rank, port, job, path, size, nodes, *args):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size // nodes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    ranks = Ranks()
    try:
        torch.save(job(ranks, Path(path), *args), f"{path}/result{rank}.pt")
    finally:
        ranks.close()
    leave()


def on_ranks(job, path, *args, size=2, nodes=1):
    """`job(ranks, path, …)` on so many processes over gloo; returns what each of them returned."""
    port = 20000 + derive_seed(str(path), job.__name__, args) % 20000
    torch.multiprocessing.spawn(_rank, (port, job, str(path), size, nodes, *args), nprocs=size)
    return [torch.load(path / f"result{rank}.pt") for rank in range(size)]


def _train_kinds(ranks, path, shard, kinds):
    ranks.shard = shard
    return {
        kind: (model.state_dict(), rows)
        for kind in kinds
        for model, rows in [train(kind, path / f"{shard}-{kind}", ranks)]
    }


KINDS = ("supervised", "experts", "single", "multi")


def test_two_ranks_in_shards_train_as_one_process_does(tmp_path):
    """20 steps of every phase's kind: loss and weights to 1e-5 in fp32 (C1, C16, C17)."""
    sharded, other = on_ranks(_train_kinds, tmp_path, "full", KINDS)
    for kind in KINDS:
        model, rows = train(kind, tmp_path / kind, Ranks())
        weights, sharded_rows = sharded[kind]
        near = 2e-4 if kind == "experts" else 1e-5  # a token that rounding sends to another expert: 1e-4
        assert len(rows) == len(sharded_rows) == STEPS
        for a, b in zip(rows, sharded_rows):
            rounded = 1.01 * near  # of two that are written with six digits, one in the last place
            assert a["loss"] == pytest.approx(b["loss"], abs=rounded), (kind, a["step"])
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3, abs=1e-6), (kind, a["step"])
        difference = max((p - weights[name]).abs().max().item() for name, p in model.state_dict().items())
        print(f"{kind}: weights differ by at most {difference:.1e}")
        assert difference <= near
        assert all(torch.equal(weights[name], other[kind][0][name]) for name in weights)


def _bytes(ranks, path):
    """Bytes of weights, gradients and optimiser state on this rank, after a step; and of the whole model."""
    ranks.shard = "full"
    model = small_model(order_tokenizer(), dim=64, n_layers=4)
    whole = 4 * 4 * model.n_params  # fp32 weights, gradients, and AdamW's two moments
    placed = Sharded(model, ranks)
    optimizer = make_optimizer(placed.model, 1e-3, 0.0)
    packs = [example(0, i) for i in range(2)]
    supervised_loss(placed.model, packs, 100.0, backward=True)
    gradients = [p.grad for p in placed.model.parameters()]
    optimizer.step()
    moments = [v for s in optimizer.state.values() for k, v in s.items() if k != "step"]
    held = local_bytes([*placed.model.parameters(), *gradients, *moments])
    shell_empty = all(p.is_meta for p in model.parameters())
    with placed.whole():
        shell_filled = not any(p.is_meta for p in model.parameters())
    return held / whole, shell_empty, shell_filled


def test_each_of_two_ranks_holds_about_half_of_weights_gradients_and_optimiser(tmp_path):
    for share, shell_empty, shell_filled in on_ranks(_bytes, tmp_path):
        assert 0.45 <= share <= 0.55 and shell_empty and shell_filled


def _fewer_prompts_than_ranks(ranks, path):
    trained = [train(kind, path / kind, ranks, prompts=1, steps=2) for kind in ("single", "multi")]
    return [(model.state_dict(), len(rows)) for model, rows in trained]


def test_C22_every_kind_of_task_trains_where_a_rank_has_no_prompt(tmp_path):
    one, other = on_ranks(_fewer_prompts_than_ranks, tmp_path)
    for (weights, steps), (others, _) in zip(one, other):
        assert steps == 2 and all(torch.equal(p, others[name]) for name, p in weights.items())


def test_hybrid_shards_over_two_nodes_train_as_one_process_does(tmp_path):
    """Two nodes of two ranks: shards within a node, copies across; many micro-batches a step."""
    sharded, *_ = on_ranks(_train_kinds, tmp_path, "hybrid", ("multi",), size=4, nodes=2)
    model, _ = train("multi", tmp_path / "one", Ranks())
    weights, _ = sharded["multi"]
    assert all(torch.allclose(p, weights[n], rtol=0, atol=1e-5) for n, p in model.state_dict().items())


def _reduced_once(ranks, path, shard):
    """The same packs in micro-batches, with gradients summed after each, and once."""
    ranks.shard = shard
    packs = ranks.mine(
        [example(1, i) for i in range(24 * ranks.size)]
    )  # several micro-batches, and not equally many
    found = []
    for ranks.reduce in ("micro", "step"):
        placed = Sharded(small_model(order_tokenizer()), ranks)
        optimizer = make_optimizer(placed.model, 1e-3, 0.0)
        for _ in range(3):
            supervised_loss(placed.model, packs, 1000.0, backward=True)
            gradients = [p.grad.full_tensor() for p in placed.model.parameters()]
            optimizer.step()
            optimizer.zero_grad()
        found.append([*gradients, *(p.detach().full_tensor() for p in placed.model.parameters())])
    return len(micro_batches(packs, MICRO_TOKENS)), *found


@pytest.mark.parametrize("shard, size, nodes", [("full", 2, 1), ("hybrid", 4, 2)])
def test_gradients_summed_once_a_step_are_those_summed_after_each_micro_batch(tmp_path, shard, size, nodes):
    for count, micro, step in on_ranks(_reduced_once, tmp_path, shard, size=size, nodes=nodes):
        assert count > 1
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(micro, step))


def _bf16(ranks, path):
    ranks.shard, ranks.precision = "full", "bf16"
    model = small_model(order_tokenizer())
    placed = Sharded(model, ranks)
    with placed.whole():
        sampled = model.output_weight.dtype
    kept = next(placed.model.parameters()).dtype
    _, rows = train("supervised", path / "bf16", ranks)
    return sampled, kept, [r["loss"] for r in rows]


def test_bf16_computes_in_bf16_and_keeps_the_weights_in_fp32(tmp_path):
    (sampled, kept, losses), _ = on_ranks(_bf16, tmp_path)
    assert sampled == torch.bfloat16 and kept == torch.float32
    _, rows = train("supervised", tmp_path / "fp32", Ranks())
    assert losses == pytest.approx([r["loss"] for r in rows], abs=0.05)


@pytest.mark.parametrize("kind", ["supervised", "single"])
def test_C26_bf16_on_one_rank_is_honoured(tmp_path, kind):
    """Losses near those of fp32 and not the same; weights, optimiser and what the phase leaves in fp32."""
    ranks = Ranks()
    ranks.use("none", "bf16")
    half, rows = train(kind, tmp_path / "bf16", ranks)
    whole, exact = train(kind, tmp_path / "fp32", Ranks())
    assert not any(torch.equal(a, b) for a, b in zip(half.parameters(), whole.parameters()))
    assert all(p.dtype == torch.float32 for p in half.parameters()) and not half.in_bf16
    if kind == "supervised":
        assert [r["loss"] for r in rows] == pytest.approx([r["loss"] for r in exact], abs=0.05)


def _stop_and_go_on(ranks, path, shard):
    """20 steps at once; and 10, a stop, and 10 in a new process state."""
    ranks.shard = shard
    whole, _ = train("single", path / f"{shard}-whole", ranks)
    folder = path / f"{shard}-parts"
    train("single", folder, ranks)  # leaves snapshots of steps 10 and 20
    if ranks.main:
        shutil.rmtree(folder / "snapshots" / "step-00000020")
    ranks.barrier()
    again, rows = train("single", folder, ranks)
    return all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters())), len(rows)


@pytest.mark.parametrize("shard", ["none", "full"])
def test_C14_on_two_ranks_a_stop_halfway_changes_no_bit(tmp_path, shard):
    for equal, _ in on_ranks(_stop_and_go_on, tmp_path, shard):
        assert equal
    steps = [
        json.loads(x)["step"] for x in (tmp_path / f"{shard}-parts/metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(STEPS))


def _write_state(ranks, path):
    ranks.shard = "full"
    train("single", path / "run", ranks)


def _read_state(ranks, path):
    """Load what one process wrote, into shards."""
    ranks.shard = "full"
    model = small_model(order_tokenizer(), seed=3)
    placed = Sharded(model, ranks)
    optimizer = make_optimizer(placed.model, 1e-3, 0.0)
    snapshots = Snapshots(path / "one", ranks)
    extra = snapshots.load(snapshots.newest("step"), placed.model, optimizer)
    moments = {n: optimizer.state[p]["exp_avg"].full_tensor() for n, p in placed.model.named_parameters()}
    placed.give_back()
    return model.state_dict(), moments, extra["step"]


def test_snapshots_of_two_ranks_are_read_by_one_and_back(tmp_path):
    on_ranks(_write_state, tmp_path)
    snapshots = Snapshots(tmp_path / "run", Ranks())
    files = {p.name for p in snapshots.newest("step").iterdir()}
    assert len([f for f in files if f.endswith(".safetensors")]) == 2 and not any(
        "distcp" in f for f in files
    )
    model = small_model(order_tokenizer(), seed=5)
    optimizer = make_optimizer(model, 1e-3, 0.0)
    extra = snapshots.load(snapshots.newest("step"), model, optimizer)
    assert extra["step"] == STEPS and extra["cursor"] == STEPS * GRPO.prompts
    Snapshots(tmp_path / "one", Ranks()).save("step", model, optimizer, extra)
    for weights, moments, step in on_ranks(_read_state, tmp_path):
        assert step == STEPS
        for name, p in model.named_parameters():
            assert torch.equal(weights[name], p) and torch.equal(moments[name], optimizer.state[p]["exp_avg"])


def test_a_run_begun_on_two_ranks_goes_on_alone(tmp_path):
    on_ranks(_write_state, tmp_path)
    shutil.rmtree(tmp_path / "run" / "snapshots" / "step-00000020")
    continued, rows = train("single", tmp_path / "run", Ranks())
    alone, _ = train("single", tmp_path / "alone", Ranks())
    assert len(rows) == STEPS
    assert all(
        torch.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(continued.parameters(), alone.parameters())
    )


def test_the_simulated_costs_of_two_ranks_are_the_measured_ones():
    for name, simulated, measured in scaling.measure():
        assert measured == pytest.approx(simulated, rel=0.001), name
