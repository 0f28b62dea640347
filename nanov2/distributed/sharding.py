"""Weights, gradients and optimiser in shards over the ranks: FSDP2 around a model that knows nothing of it.

While a phase trains, the caller's model is an empty shell; what is trained is a twin, made on the meta
device, whose blocks each hold 1/ranks of their tensors and gather them for as long as they compute. The
shell is filled once for a whole rollout or measurement (`whole`), not once per token, and ranks then
sample at their own pace, without waiting for one another.

No rank holds all weights in fp32, unless products are in fp32. Before and after training a model is whole in
the precision of products; its `source` gives the weights in fp32, one at a time: of the folder that it was
read from, and, once it is trained, of the shards. Shards are filled, and models saved, from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from nanov2.distributed.ranks import Ranks
from nanov2.errors import InputError
from nanov2.model.decoder import Model
from nanov2.model.packing import Completion, Pack

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
IDLE = Pack([0], [Completion([0], [False], row=-1)])  # what a rank computes when it has run out of packs


class Placed:
    """A model whole on every rank, computing in `precision`. Also the interface of `Sharded`."""

    def __init__(self, model: Model, precision: str):
        self.model = model  # what is trained, and what its optimiser and checkpoints hold
        self.before = "bf16" if model.in_bf16 else "fp32"
        model.set_precision(precision)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, the model that this was made from holds all weights. Every rank enters and leaves it."""
        yield

    def give_back(self) -> None:
        """The model that this was made from holds all weights again, for good, and computes as before."""
        self.model.set_precision(self.before)


class Sharded(Placed):
    """A model in shards, made from one that is whole on every rank; `shell` is that one, emptied.

    Shards are in fp32, those of a frozen model in the precision of products.
    """

    def __init__(self, shell: Model, ranks: Ranks):
        self.shell, self.dtype = shell, DTYPES[ranks.precision]
        given = dict(shell.named_parameters())
        learns = any(p.requires_grad for p in given.values())
        with torch.device("meta"):
            self.model = type(shell)(shell.config).to(torch.float32 if learns else self.dtype)
        apply(self.model, mesh(ranks), self.dtype)
        self.model.reduce = ranks.reduce
        self.model.to_empty(device=ranks.device)
        for name, part in self.model.named_parameters():
            # every rank has the whole tensor and takes its own part: nothing is sent
            tensor = shell.source[name]() if learns and shell.source else given[name].detach()
            own = distribute_tensor(
                tensor.to(ranks.device), part.device_mesh, part.placements, src_data_rank=None
            )
            part.to_local().detach().copy_(own.to_local())
            part.requires_grad_(given[name].requires_grad)
        shell.to("meta")
        if learns:
            shell.source = {name: _gathered(p) for name, p in self.model.named_parameters()}

    @contextmanager
    def whole(self) -> Iterator[None]:
        parts = [m for m in self.model.modules() if isinstance(m, FSDPModule)]
        for part in parts:
            part.unshard()
        self._fill({name: p.detach() for name, p in self.model.named_parameters()})
        try:
            yield
        finally:
            self.shell.to("meta")
            for part in parts:
                part.reshard()

    def give_back(self) -> None:
        self.model.reshard()
        named = self.model.named_parameters()
        self._fill({name: p.detach().to(self.dtype).full_tensor() for name, p in named})

    def _fill(self, weights: dict[str, torch.Tensor]) -> None:
        self.shell.load_state_dict(weights, assign=True)


def _gathered(part: Tensor) -> Callable[[], Tensor]:
    """What gives a tensor in shards whole; every rank calls it."""
    return lambda: part.detach().full_tensor()


def fill(model: Model, ranks: Ranks) -> Model:
    """An empty model with its weights from its `source`, rounded to the precision of products one by one."""
    dtype = DTYPES[ranks.precision]
    weights = {name: give().to(ranks.device, dtype) for name, give in (model.source or {}).items()}
    model.load_state_dict(weights, assign=True)
    return model


def place(model: Model, ranks: Ranks) -> Placed:
    """The model as `ranks.shard` wants it: "none" whole on every rank, "full" or "hybrid" in shards."""
    if not ranks.sharded:
        check_ranks(ranks)
        return Placed(model, ranks.precision)
    return Sharded(model, ranks)


def check_ranks(ranks: Ranks) -> None:
    """InputError where shards are wanted of one rank."""
    if ranks.shard != "none" and ranks.size == 1:
        raise InputError(
            f"parallel.shard={ranks.shard} wants several ranks, this is one: start with torchrun "
            "--nproc-per-node=N, or set --parallel.shard=none"
        )


@contextmanager
def whole(placed: Iterable[Placed]) -> Iterator[None]:
    """All of these models whole, for a rollout or a measurement."""
    with ExitStack() as stack:
        for p in placed:
            stack.enter_context(p.whole())
        yield


def mesh(ranks: Ranks) -> DeviceMesh:
    """All ranks in a line; for "hybrid" nodes × ranks of a node: shards within a node, copies across."""
    if ranks.shard == "hybrid":
        shape = (ranks.size // ranks.per_node, ranks.per_node)
        return init_device_mesh(ranks.device.type, shape, mesh_dim_names=("copy", "shard"))
    return init_device_mesh(ranks.device.type, (ranks.size,), mesh_dim_names=("shard",))


def apply(model: Model, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """FSDP2 on each block, and on what is left (embeddings, last norm, output weights).

    Compute and gathers are in `dtype`; the shards, their gradients and the optimiser stay in fp32.
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    # The log-prob reads the output weights after the forward pass, so the root stays gathered until backward.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)  # losses carry global denominators: a sum, not a mean
            part.set_force_sum_reduction_for_comms(True)  # the one form that gloo knows too


def in_step(model: nn.Module, parts: list[list[Pack]]) -> Iterator[list[Pack]]:
    """The micro-batches of one optimiser step, equally many on every rank where the model is sharded.

    Sharded blocks are gathered by all ranks together, so a rank that runs out of packs goes on with idle
    ones, which count nowhere. Copies of a shard on other nodes exchange gradients once, in the last; with
    parallel.reduce = "step" all ranks do, and until then each holds its own, whole.
    """
    if not isinstance(model, FSDPModule):
        yield from parts
        return
    count = torch.tensor(len(parts), device=model.output_weight.device)
    dist.all_reduce(count, dist.ReduceOp.MAX)
    for i in range(int(count)):
        last = i + 1 == int(count)
        if model.reduce == "step":
            model.set_requires_gradient_sync(last)
        else:
            model.set_requires_all_reduce(last)
        yield parts[i] if i < len(parts) else [IDLE]


def local_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that this rank holds of the tensors."""
    own = (t.to_local() if isinstance(t, DTensor) else t for t in tensors)
    return sum(t.numel() * t.element_size() for t in own)
