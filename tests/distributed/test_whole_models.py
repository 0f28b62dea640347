"""Ranks that share a model in shards never hold it whole in fp32, from loading to saving it."""

import dataclasses
import runpy
from pathlib import Path

import pytest
import torch
from conftest import small_model, some_proofs, varied
from test_sharding import on_ranks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanov2.distributed.checkpoints import fingerprint
from nanov2.distributed.ranks import Ranks
from nanov2.distributed.sharding import fill
from nanov2.domains.domain import fresh_model
from nanov2.hub import hf
from nanov2.method.tasks import GeneratorTask, VerifierTask
from nanov2.model.experts import ExpertsConfig
from nanov2.records import LEVELS, ProofRecord, read_json
from nanov2.run.config import ParallelConfig, load_config
from nanov2.run.folder import Run

ROOT = Path(__file__).parents[2]
SETTINGS = [
    # Sides that are no multiples of one another: nothing but a whole weight has the shape of one.
    *("--model.dim=48", "--model.n_layers=4", "--model.n_heads=4", "--model.n_kv_heads=1"),
    "--model.embed_conv=0",
    *("--model.ffn_dim=80", "--base.steps=2", "--base.batch=4", "--grpo.steps=2", "--grpo.kl_coef=0.01"),
    *("--world.problems=40", "--world.hard_problems=20", "--world.held_out=4", "--world.validation=4"),
    *("--eval.proofs=4", "--eval.samples=1", "--eval.greedy=false", "--grpo.max_tokens=12"),
    *("--generator.init=base", "--generator.judged_by=verifier", "--generator.keep_best=truth"),
]
PHASES = ("base", "verifier", "generator")


class WholeWeights(TorchDispatchMode):
    """`most`: the largest total of bytes that fp32 tensors in the shape of a weight matrix had at a time."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes, self.alive, self.most = shapes, {}, 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        for t in tree_leaves((args, kwargs, out)):
            if type(t) in (torch.Tensor, torch.nn.Parameter) and t.dtype == torch.float32 and not t.is_meta:
                self.see(t)
        return out

    def see(self, t):
        storage = t.untyped_storage()
        key = storage.data_ptr(), t.storage_offset()
        if tuple(t.shape) in self.shapes:
            self.alive[key] = StorageWeakRef(storage), t.nbytes
            self.alive = {k: (ref, size) for k, (ref, size) in self.alive.items() if not ref.expired()}
            self.most = max(self.most, sum(size for _, size in self.alive.values()))


def write_proofs(run):
    """Phase coldstart, by hand: an untrained base writes no proof that can be read."""
    run.begin("coldstart", 1)
    proofs = [ProofRecord(p.text, text, LEVELS[i % 3]) for i, (p, text) in enumerate(some_proofs(12))]
    for name in ("dv", "held_out_proofs", "held_out_hard_proofs", "validation_proofs"):
        run.write("coldstart", 1, f"{name}.jsonl", proofs[:4] if name != "dv" else proofs)
    run.finish("coldstart", 1, 0.0)


def run_phases(folder, ranks, *more):
    """The most bytes of whole weights in fp32 in each phase, as a share of the model's; and the share of what
    a step reduces at a time: the gradients of a block, and of what is outside of blocks."""
    run = Run(folder, load_config(ROOT / "configs" / "smoke.toml", [*SETTINGS, *more]), ranks)
    run.claim()
    write_proofs(run)
    do_phase = runpy.run_path(str(ROOT / "train.py"), run_name="script")["do_phase"]
    model, found = run.domain.start()[0], {}
    matrices = [p for p in model.parameters() if p.ndim > 1]
    inside = [sum(p.numel() for p in layer.parameters() if p.ndim > 1) for layer in model.layers]
    whole = sum(p.numel() for p in matrices)
    for phase in PHASES:
        with varied(VerifierTask), varied(GeneratorTask):
            with WholeWeights({tuple(p.shape) for p in matrices}) as seen:
                do_phase(run, phase, 1)
        found[phase] = seen.most / (4 * whole)
    return found, (max(inside) + whole - sum(inside)) / whole


def _phases(ranks, path, *more):
    return run_phases(path / "run", ranks, *more)


def test_no_rank_ever_holds_a_whole_model_in_fp32(tmp_path):
    shares = on_ranks(_phases, tmp_path, "--parallel.shard=full", "--parallel.precision=bf16")
    print(shares)
    for phases, reduced in shares:
        assert all(share <= reduced < 0.5 for share in phases.values()), (phases, reduced)
    before = dict(hf.load(tmp_path / "run" / "base").named_parameters())
    for phase in ("verifier", "generator"):
        assert read_json(tmp_path / "run" / phase / "config.json")["torch_dtype"] == "float32"
        after = dict(hf.load(tmp_path / "run" / phase).named_parameters())
        changed = [n for n in before if not torch.equal(before[n], after[n])]
        assert len(changed) > len(before) / 2
        assert not any(torch.equal(p, p.bfloat16().float()) for p in after.values() if p.ndim > 1)


def test_one_process_holds_it_and_is_seen_to(tmp_path):
    """What the test above measures with is not blind."""
    assert all(share >= 1 for share in run_phases(tmp_path / "run", Ranks())[0].values())


@pytest.mark.parametrize("kind", ["drawn", "drawn, mimetic", "of a folder", "of a folder, with experts"])
def test_a_source_gives_the_weights_of_one_process(kind, tokenizer, tmp_path):
    drawn = kind.startswith("drawn")
    if drawn:
        mimetic = f"--model.mimetic={'true' if 'mimetic' in kind else 'false'}"
        config = load_config(None, ["--model.n_layers=2", "--model.dim=32", mimetic])
        sharded = dataclasses.replace(config, parallel=ParallelConfig(shard="full"))
        whole, lazy = fresh_model(config, tokenizer), fresh_model(sharded, tokenizer)
    else:
        experts = dict(experts=ExpertsConfig(4, 2, 16, scores="softmax", n_shared_experts=0), qk_norm=True)
        whole = small_model(tokenizer, embed_conv=0, **(experts if "experts" in kind else {}))
        hf.save(tmp_path, whole)
        lazy = hf.lazy(tmp_path)
    assert all(p.is_meta for p in lazy.parameters())
    for _ in range(2):
        given = {name: give() for name, give in lazy.source.items()}
        assert [*given] == [name for name, _ in whole.named_parameters()]
        assert all(torch.equal(p, given[name]) for name, p in whole.named_parameters())
    if not drawn:  # which must be asked for in their order
        assert fingerprint(lazy, lazy.source) == fingerprint(whole)
    assert all(p.dtype == torch.float32 for p in fill(lazy, Ranks()).parameters())
    assert fingerprint(lazy) == fingerprint(whole)
