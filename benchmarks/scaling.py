"""Memory and communication per rank of a sharded training step, without the ranks.

    python benchmarks/scaling.py                 # 1B … 671B on 8 … 1,024 ranks, simulated
    python benchmarks/scaling.py --measure       # the simulation beside two real ranks (gloo, CPU)

The simulation is the code that trains (sharding.py) on the meta device, in a process group that only claims
to have so many ranks: nothing is allocated and nothing is sent, but each shard has the size that it would
have. What is sent follows from the shards: a block is gathered in the forward and again in the backward
pass, what is left of the model once, and each gradient is reduced and scattered once, for every micro-batch.
671B is a dense model of DeepSeek-V3's number of parameters, which this decoder would have to be.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

sys.path.insert(0, str(Path(__file__).parent.parent))

from nanov2.distributed import sharding
from nanov2.distributed.ranks import Ranks, leave
from nanov2.model.decoder import Model, ModelConfig
from nanov2.model.packing import Completion, Pack
from nanov2.rl.optimizer import make_optimizer
from nanov2.rl.trainer import supervised_loss

LLAMA = dict(rope_theta=500_000.0, embed_conv=0, vocab_size=128_256, n_kv_heads=8)
SHAPES = {  # of the Llama 3 family up to 70B
    "1B": ModelConfig(dim=2048, n_layers=16, n_heads=32, ffn_dim=8192, tie_embeddings=True, **LLAMA),
    "8B": ModelConfig(dim=4096, n_layers=32, n_heads=32, ffn_dim=14_336, **LLAMA),
    "70B": ModelConfig(dim=8192, n_layers=80, n_heads=64, ffn_dim=28_672, **LLAMA),
    "671B": ModelConfig(dim=18_432, n_layers=153, n_heads=144, ffn_dim=65_792, **LLAMA),
}
TINY = ModelConfig(vocab_size=64, dim=64, n_layers=4, n_heads=4, n_kv_heads=2, ffn_dim=128)
BYTES = {"fp32": 4, "bf16": 2}


@dataclass
class Costs:
    """Bytes of one rank. Sent means received by it too; a ring sends (n−1)/n of a whole tensor."""

    state: int  # shards of fp32 weights, gradients and AdamW's two moments: held all the time
    gathered: int  # two blocks (one computes, one is fetched) and the rest of the model, at the peak
    rollout: int  # the whole model, while it samples; the gathered blocks are not held then
    gather: int  # sent per micro-batch to gather weights
    reduce: int  # sent per micro-batch to sum gradients, within the ranks that share the shards
    copies: int  # sent per step to sum gradients over the copies on other nodes (hybrid)

    @property
    def peak(self) -> int:
        return self.state + max(self.gathered, self.rollout)


def simulate(config: ModelConfig, size: int, shard: str, precision: str, per_node: int = 8) -> Costs:
    """Costs of one of `size` ranks. No process group may be initialised."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        ranks = Ranks()
        ranks.size, ranks.per_node, ranks.shard, ranks.precision = size, min(per_node, size), shard, precision
        with torch.device("meta"):
            model = Model(config)
        sharding.apply(model, sharding.mesh(ranks), sharding.DTYPES[precision])
        over = size if shard == "full" else ranks.per_node  # ranks that share the shards
        parts = {m: own_parameters(m) for m in model.modules() if isinstance(m, FSDPModule)}
        shards = [sum(p.to_local().numel() for p in part) for part in parts.values()]
        # what a collective moves is padded to equal shards: the size on rank 0, which has the largest
        whole = [over * n for n in shards]
    finally:
        dist.destroy_process_group()
    blocks, root = whole[1:], whole[0]
    unit = BYTES[precision]
    ring = (over - 1) / over
    return Costs(
        state=16 * sum(shards),
        gathered=unit * (2 * max(blocks) + root),
        rollout=unit * sum(p.numel() for p in model.parameters()),
        gather=int(ring * unit * (2 * sum(blocks) + root)),
        reduce=int(ring * 4 * sum(whole)),
        copies=int(2 * 4 * sum(shards) * (1 - over / size)) if shard == "hybrid" else 0,
    )


def own_parameters(part: FSDPModule) -> list:
    """The parameters that an FSDP module gathers: its own and its children's, less those of inner ones."""
    inner = {
        id(p) for m in part.modules() if m is not part and isinstance(m, FSDPModule) for p in m.parameters()
    }
    return [p for p in part.parameters() if id(p) not in inner]


# --- beside the truth: two ranks ------------------------------------------------------------------


def _measured(rank: int, port: int, path: str) -> None:
    """One step of one micro-batch; writes what this rank held and what its collectives moved."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    ranks = Ranks()
    ranks.shard = "full"
    model = Model(TINY).init_weights(torch.Generator().manual_seed(0))
    placed = sharding.Sharded(model, ranks)
    optimizer = make_optimizer(placed.model, 1e-3, 0.0)
    sent = {"gather": 0, "reduce": 0}
    count_bytes("gather", ("all_gather_single", "all_gather_into_tensor"), sent)
    count_bytes("reduce", ("reduce_scatter_single", "reduce_scatter_tensor"), sent)
    pack = Pack([1, 2, 3], [Completion([4, 5, 6], [True] * 3)])
    supervised_loss(placed.model, [pack], 3.0, backward=True)
    gradients = [p.grad for p in placed.model.parameters()]
    optimizer.step()
    moments = [v for s in optimizer.state.values() for k, v in s.items() if k != "step"]
    state = sharding.local_bytes([*placed.model.parameters(), *gradients, *moments])
    with placed.whole():
        rollout = sharding.local_bytes(model.parameters())
    Path(f"{path}/{rank}.json").write_text(json.dumps({"state": state, "rollout": rollout} | sent))
    ranks.close()
    leave()


def count_bytes(kind: str, names: tuple[str, ...], sent: dict[str, int]) -> None:
    """Add to `sent` half of each whole tensor of a collective (by its name of this torch): what two ranks
    exchange of it."""
    name = next(n for n in names if hasattr(dist, n))
    real = getattr(dist, name)

    def counted(*args, **kwargs):
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        sent[kind] += max(x.numel() * x.element_size() for x in tensors) // 2
        return real(*args, **kwargs)

    setattr(dist, name, counted)


def measure() -> list[tuple[str, int, int]]:
    """(quantity, simulated, measured) of the rank that has most, for two ranks."""
    simulated = simulate(TINY, 2, "full", "fp32", per_node=2)
    with tempfile.TemporaryDirectory() as path:
        port = 20000 + os.getpid() % 20000
        torch.multiprocessing.spawn(_measured, (port, path), nprocs=2)
        found = [json.loads(Path(f"{path}/{rank}.json").read_text()) for rank in range(2)]
    most = {key: max(f[key] for f in found) for key in found[0]}
    return [
        ("state", simulated.state, most["state"]),
        ("rollout", simulated.rollout, most["rollout"]),
        # after its step the model was gathered once more, for a rollout
        ("gather", simulated.gather + simulated.rollout // 2, most["gather"]),
        ("reduce", simulated.reduce, most["reduce"]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--json", help="write the figures here too")
    args = parser.parse_args()
    if args.measure:
        for name, simulated, real in measure():
            print(f"{name:8} simulated {simulated:10,}  measured {real:10,} bytes  ({real / simulated:.3f})")
        return
    rows = []
    print("GB per rank (10⁹ bytes)         held   peak   peak while     per micro-batch    per step")
    print("model   ranks  shards          always  in step  sampling    gather   reduce    copies")
    for name, config in SHAPES.items():
        for size in (8, 64, 256, 1024):
            for shard in ("full", "hybrid") if size > 8 else ("full",):
                c = simulate(config, size, shard, args.precision)
                rows.append({"model": name, "ranks": size, "shard": shard} | asdict(c))
                figures = (c.state, c.state + c.gathered, c.state + c.rollout, c.gather, c.reduce, c.copies)
                print(
                    f"{name:6} {size:6}  {shard:10}" + "".join(f"{x / 1e9:10.2f}" for x in figures),
                    flush=True,
                )
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
