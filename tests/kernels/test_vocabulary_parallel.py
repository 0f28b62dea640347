"""Two processes that each hold a part of the vocabulary, of different sizes, give what one process gives."""

import itertools
import os
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from kernel_helpers import generator, relative_error

from nanov2.distributed.ranks import leave
from nanov2.kernels import logprob_cpu
from nanov2.kernels.linear_policy_loss import linear_policy_loss
from nanov2.kernels.logprob import linear_logprob

PARTS = (5, 8)


def problem():
    g = generator(2)
    target = torch.randint(0, sum(PARTS), (9,), generator=g)
    target[:4] = torch.tensor([0, 4, 5, 12])  # the first and last entries of both ranks
    target[4] = -100
    hidden, weight = torch.randn(9, 6, generator=g), torch.randn(sum(PARTS), 6, generator=g)
    hidden[4] = torch.nan  # an ignored row
    weight[:5] -= 40  # the first rank holds almost no probability
    return hidden, weight, target, torch.randn(sum(PARTS), generator=g)


def gradients(hidden, weight, bias, target, group, **options):
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    logp, entropy = linear_logprob(
        *leaves[:2], target, bias=leaves[2], return_entropy=True, process_group=group, **options
    )
    rows = torch.linspace(0.5, 1.5, len(logp))
    (rows * (logp + 0.3 * entropy)).sum().backward()
    return [logp.detach(), entropy.detach(), *(x.grad for x in leaves)]


def policy_gradients(hidden, weight, target, ref_logp, group, **options):
    leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
    loss, out = linear_policy_loss(
        *leaves,
        target,
        torch.tensor([1.0, -0.5]),
        torch.tensor([0, 5, 9]),
        mask=target >= 0,
        ref_logp=ref_logp,
        kl_coef=0.1,
        entropy_coef=0.1,
        process_group=group,
        **options,
    )
    loss.backward()
    return [loss.detach(), out.logp, out.entropy, *(x.grad for x in leaves)]


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    logprob_cpu.TILE = 16
    store = dist.FileStore(os.path.join(folder, "store"), len(PARTS))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(PARTS))
    hidden, weight, target, bias = problem()
    start = sum(PARTS[:rank])
    mine = slice(start, start + PARTS[rank])
    for temperature, softcap in itertools.product((1.0, 0.7), (None, 30.0)):
        options = {"temperature": temperature, "softcap": softcap}
        found = gradients(hidden, weight[mine], bias[mine], target, dist.group.WORLD, **options)
        wanted = gradients(hidden, weight, bias, target, None, impl="reference", **options)
        wanted = [*wanted[:3], wanted[3][mine], wanted[4][mine]]
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)
        assert bool((found[0] <= 0).all())
    ref_logp = linear_logprob(hidden, weight, target, impl="reference") + 0.3
    found = policy_gradients(hidden, weight[mine], target, ref_logp, dist.group.WORLD, chunk=4)
    wanted = policy_gradients(hidden, weight, target, ref_logp, None, impl="reference")
    # logits of −100 are rounded by 1e-5 in float32, in both: errors are relative to the largest value
    for a, b in zip(found, [*wanted[:4], wanted[4][mine]], strict=True):
        assert relative_error(a, b) < 1e-5
    dist.destroy_process_group()
    leave()


def test_two_ranks_give_the_logprobs_losses_and_gradients_of_one():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_main, (folder,), nprocs=len(PARTS))
