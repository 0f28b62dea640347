"""The arithmetic of --dry-run beside a step of GRPO that is really done, every answer at its limit."""

import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanov2.distributed.ranks import Ranks
from nanov2.model.decoder import Model
from nanov2.model.layers import Linear
from nanov2.model.lora import add_adapters
from nanov2.model.rollout import Sampling
from nanov2.model.sampler import sample
from nanov2.rl.grpo import train_on_groups
from nanov2.rl.optimizer import make_optimizer
from nanov2.rl.task import Group
from nanov2.run.config import load_config
from nanov2.run.costs import HARDWARE, Costs
from nanov2.run.plan import plan_phase, work_of

STEP = [
    *("--model.dim=128", "--model.n_layers=3", "--model.n_heads=4", "--model.n_kv_heads=2"),
    *("--model.ffn_dim=320", "--model.embed_conv=0", "--grpo.prompts=4", "--grpo.samples=8"),
    *("--grpo.max_tokens=128", "--grpo.micro_tokens=2400", "--grpo.pack_tokens=1200", "--eval.proofs=4"),
]


class Alive(TorchDispatchMode):
    """`most`: the largest total of bytes of the tensors alive at a time that were made inside."""

    def __init__(self):
        super().__init__()
        self.alive, self.most = {}, 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        before = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        out = f(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            storage = t.untyped_storage() if torch.is_tensor(t) else None
            if storage is not None and storage.data_ptr() not in before:
                self.alive[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {k: (ref, size) for k, (ref, size) in self.alive.items() if not ref.expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return out


@pytest.mark.parametrize(
    "overrides",
    [[], ["--parallel.precision=bf16"], ["--parallel.precision=bf16", "--lora.rank=4"]],
    ids=["fp32", "bf16", "lora"],
)
def test_bytes_and_tokens_of_a_step_are_those_of_the_plan(overrides):
    config = load_config(None, [*STEP, *overrides])
    x, work = Costs(config, 1, 1, HARDWARE["cpu-core"]), work_of(config, 1, "verifier", 1)
    plan, call, ranks = plan_phase(config, x, "verifier"), work.rollouts, Ranks()
    ranks.precision = config.parallel.precision
    model = Model(x.c).init_weights(torch.Generator().manual_seed(0))
    if config.lora.rank:
        add_adapters(model, config.lora, 0, x.unit == 2)
    model.set_precision(ranks.precision)
    optimizer, prompts = make_optimizer(model, 1e-3, 0.0), [[1 + i] * work.prompt for i in range(work.groups)]
    read = []
    model.register_forward_pre_hook(lambda _, given: read.append(given[0].ids.numel()))

    def step(sampling, training):
        read.clear()
        with sampling:
            rollouts = sample(model, SimpleNamespace(end=-1), prompts, call.n, Sampling(1.0, call.own), 0)
        rows = [rollouts[i : i + call.n] for i in range(0, len(rollouts), call.n)]
        advantages = [1.0, -1.0] * (call.n // 2)
        groups = [Group(p, of_one, advantages) for p, of_one in zip(prompts, rows)]
        with training:
            train_on_groups(model, optimizer, groups, work.settings, ranks, 0)
        return sum(len(r.ids) for r in rollouts)

    step(nullcontext(), nullcontext())  # makes moments, and copies in bf16
    began = time.process_time()
    step(nullcontext(), nullcontext())
    took = time.process_time() - began
    # Told, not judged: threads that wait beside other work count as CPU time too.
    print(f"CPU seconds: planned {plan.seconds:.2f}, {took:.2f} really: {plan.seconds / took:.2f}")
    moments = [v for s in optimizer.state.values() for k, v in s.items() if k != "step"]
    copies = [m._copy[1] for m in model.modules() if isinstance(m, Linear) and m._copy]
    tensors = [*model.parameters(), *moments, *copies]
    held = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
    sampling, training = Alive(), Alive()
    sampled = step(sampling, training)
    assert (sampled, sum(read)) == (plan.sampled, plan.trained)
    for name, planned, real in (
        ("sampling", plan.held - 4 * x.trained + plan.sampling, held + sampling.most),
        ("training", plan.held + plan.training, held + training.most),
        ("peak", plan.peak, held + max(sampling.most, training.most)),
    ):
        print(f"{name}: planned {planned / 1e6:.1f} MB, {real / 1e6:.1f} really: {planned / real:.2f}")
        assert 1 / 1.3 < planned / real < 1.3
