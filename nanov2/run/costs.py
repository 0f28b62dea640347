"""Bytes and seconds of the pieces that a run consists of, for plan.py.

Bytes follow from what the code keeps (sharding.py, cache.py, attention.py); tests compare them with what it
really keeps.
"""

from __future__ import annotations

import contextlib
import math
import shlex
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from nanov2.domains.domain import open_domain
from nanov2.errors import InputError
from nanov2.hub import hf
from nanov2.hub.dialects import DIALECTS
from nanov2.hub.engine import RolloutConfig
from nanov2.model.attention_flash import no_kernels
from nanov2.model.cache import BLOCK
from nanov2.model.decoder import Model, ModelConfig
from nanov2.model.lora import adapter_size
from nanov2.run.config import Config, ParallelConfig

BYTES = {"fp32": 4, "bf16": 2}
TAKES = 2e9  # bytes/s at which a rollout engine takes new weights through a memory file system: assumed


@dataclass(frozen=True)
class Hardware:
    """One rank's device. Peaks are the vendor's, dense; shares are assumptions."""

    flops: float  # FLOP/s of matrix products in bf16
    fp32: float  # and in fp32, without TF32, which torch leaves off
    bandwidth: float  # bytes/s of memory
    memory: float  # bytes
    compute_share: float = 0.35  # of the peak reached in training and in computing prompts
    bandwidth_share: float = 0.5  # of `bandwidth` reached in decoding
    launch: float = 5e-6  # seconds to launch an operator: beside the device's work, on CPUs before it
    product: float = 0.0  # and more for a product in bf16, which oneDNN prepares each time
    gpu: bool = True


HARDWARE = {
    # One core of an AMD EPYC, as measured: 40 GFLOP/s in fp32, 72 in bf16; 17 µs an operator in decoding, and
    # 37 a product in bf16.
    "cpu-core": Hardware(9e10, 5e10, 1e10, 12e9, 0.8, 0.8, 1.7e-5, 2e-5, gpu=False),
    "a10-24gb": Hardware(125e12, 31.2e12, 0.6e12, 24e9),  # NVIDIA's data sheets
    "rtx4090-24gb": Hardware(165e12, 82.6e12, 1.008e12, 24e9),
    "a100-80gb": Hardware(312e12, 19.5e12, 2.0e12, 80e9),  # SXM, as those below
    "h100-80gb": Hardware(989e12, 67e12, 3.35e12, 80e9),
    "h200-141gb": Hardware(989e12, 67e12, 4.8e12, 141e9),
}


def shape_of(config: Config) -> ModelConfig:
    """The model's shape: of the pretrained folder, of the file that stands for it, or of [model]."""
    if not config.pretrained.folder:
        empty = replace(config, parallel=replace(config.parallel, shard="full"))  # draws no weights
        return open_domain(empty).start()[0].config
    paths = [Path(config.pretrained.folder) / "config.json", Path(config.pretrained.shape or "-")]
    for path in paths:
        if path.is_file():
            return hf.to_config(path)
    raise InputError(f"neither {paths[0]} nor pretrained.shape ({paths[1]}) is there: name one of them")


@lru_cache
def count(shape: ModelConfig) -> tuple[int, int, int, int]:
    """Parameters: all, those that a token meets, of the largest block, and outside of blocks.

    One block of each kind is made: thousands of experts take long, even without weights.
    """
    first = min(shape.experts.first_k_dense_replace if shape.experts else 0, shape.n_layers - 1)
    with torch.device("meta"):
        model = Model(replace(shape, n_layers=first + 1))
    blocks = [sum(p.numel() for p in layer.parameters()) for layer in model.layers]
    more, root = shape.n_layers - len(blocks), model.n_params - sum(blocks)
    idle = model.n_params - model.n_active  # experts of the last block that a token does not go to
    total = model.n_params + more * blocks[-1]
    return total, total - (more + 1) * idle, max(blocks), root


@lru_cache
def adapters(shape: ModelConfig, rank: int) -> int:
    """Parameters of LoRA's updates of a rank, over all blocks."""
    with torch.device("meta"):
        one, two = (adapter_size(Model(replace(shape, n_layers=n)), rank) for n in _last_block(shape))
    return one + (shape.n_layers - _last_block(shape)[0]) * (two - one)


def _last_block(shape: ModelConfig) -> tuple[int, int]:
    """Layers of a model without, and with, one block of the last kind."""
    first = min(shape.experts.first_k_dense_replace if shape.experts else 0, shape.n_layers - 1)
    return max(first, 1), max(first, 1) + 1


def launches(c: ModelConfig, half: bool, lora: bool) -> int:
    """About how many operators the own sampler launches for one token of all rows, views not counted."""
    block = 49 + 14 * c.qk_norm + half * (7 + 4 * c.qk_norm)
    return 54 + c.n_layers * (block + lora * (28 + 14 * half))


def products(c: ModelConfig, lora: bool) -> int:
    """Of these, products with weights of the blocks; an adapter has two beside each."""
    return c.n_layers * 7 * (3 if lora else 1)


def activation_bytes(c: ModelConfig, unit: int, stream: int = 0, attention: int = 0) -> float:
    """Bytes a token that one block keeps for the backward pass: products in `unit` bytes a number, the
    residual stream in `stream`, what attention multiplies in `attention` (both `unit` where not given)."""
    stream, attention = stream or unit, attention or unit
    q, kv, ffn = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.ffn_dim
    if c.experts:
        ffn = c.experts.moe_intermediate_size * (c.experts.num_experts_per_tok + c.experts.n_shared_experts)
    if c.latent:  # each head's query is as wide as the cache
        q, kv = c.n_heads * c.latent.width, c.latent.width
    # Residual, norms; gate, up, their products; queries and the output before and after rotation; k, v.
    own = 2 * (stream + unit) * c.dim + 4 * unit * ffn + 4 * attention * (q + kv)
    return own + stream * (q + kv) * c.qk_norm


def cache_bytes(c: ModelConfig, unit: int) -> int:
    """Bytes of keys and values of a token."""
    return unit * c.n_layers * c.cache_kinds * c.cache_heads * c.cache_dim


def precision_of(parallel: ParallelConfig) -> str:
    """ "auto" is bf16 on all hardware that plans are made for."""
    return "fp32" if parallel.precision == "fp32" else "bf16"


class Costs:
    """What the phases share: the model, and bytes and seconds of one sampler call on one rank."""

    def __init__(self, config: Config, ranks: int, per_node: int, hardware: Hardware):
        self.ranks, self.hardware, self.c, parallel = ranks, hardware, shape_of(config), config.parallel
        self.params, self.active, self.block, self.root = count(self.c)
        self.lora = adapters(self.c, config.lora.rank) if config.lora.rank else 0
        self.sides = self.lora / max(1, config.lora.rank)  # widths in and out of all layers with adapters
        self.trained = self.lora or self.params
        self.sharded = parallel.shard != "none" and ranks > 1
        self.reduces_once = self.sharded and parallel.reduce == "step"
        self.over = {"none": 1, "full": ranks, "hybrid": min(per_node, ranks)}[parallel.shard]
        self.unit = BYTES[precision_of(parallel)]  # of products
        self.stream = self.unit if self.sharded else 4  # of the residual stream
        self.kv_unit = self.unit if self.sharded or hardware.gpu else 4  # of what attention multiplies
        # Whether models that are not trained have their matrices in bf16 (folder.py)
        self.halves = self.unit == 2 and not self.sharded and bool(config.pretrained.folder or self.lora)
        self.rollout = config.rollout

    def whole(self) -> float:
        """Bytes of a model that is not trained, on this rank."""
        if self.halves:  # but on CPUs not what embeds, and what the log-prob reads
            return 2 * self.params + (0 if self.hardware.gpu else 2 * self.root)
        if self.sharded:
            return self.unit * self.params / self.over
        return 4 * self.params + self.copies()

    def copies(self) -> float:
        """Of a whole model's matrices in bf16, beside those in fp32."""
        return 2 * (self.params - self.root) if self.unit == 2 and not self.sharded else 0

    def weights(self) -> float:
        """Of the model in training."""
        if self.lora:
            return self.whole() + 4 * self.lora
        return 4 * self.params / self.over + self.copies()

    def state(self, optimizer: str = "adamw") -> float:
        """Of the model in training with gradients and the optimiser's moments, in fp32: AdamW's two, of which
        Muon, which trains whole models alone, keeps one for the blocks' matrices."""
        spared = 4 * (self.params - self.root) if optimizer == "muon" else 0
        return self.weights() + 12 * self.trained / self.over - spared

    def servers(self, judge: bool) -> int:
        """Rollout engines that a run starts on its own machine: for what is trained, and for a `judge`."""
        r = self.rollout
        started = r.engine != "own" and r.start
        return started * (not r.urls) + (started and judge and not r.judge_urls)

    def server(self) -> float:
        """Bytes of this rank's memory that a rollout engine takes which is started here."""
        if self.rollout.engine == "own":
            return 0.0
        if not self.hardware.gpu:
            return self.served()
        return share_of(self.rollout) * self.hardware.memory

    def served(self) -> float:
        """Bytes of the weights in an engine."""
        return BYTES[self.rollout.dtype] * self.params

    def masked(self, unit: int) -> str:
        """Why attention in training goes by a mask of all pairs of tokens; "" where kernels spare it."""
        dtype = torch.float32 if unit == 4 else torch.bfloat16
        return no_kernels(dtype, self.c.cache_dim) if self.hardware.gpu else ""

    def dense(self, unit: int) -> bool:
        """Whether attention holds all its scores, as CUDA's kernels do for such heads where query heads share
        key-value heads."""
        return bool(self.masked(unit)) and self.c.n_heads != self.c.cache_heads

    def sampler(self, unit: int, rows: int, prompts: int, n: int, prompt: int, own: int) -> float:
        """Bytes of sampling n completions of each prompt, at most `rows` at once. One long row gives every
        row its room; a batch that shrinks to 80% is beside its copy."""
        c, groups = self.c, min(prompts, max(1, rows // n))
        slots = min(prompts, groups if n == 1 else groups + (groups + 1) // 2)
        own = BLOCK * 2 ** math.ceil(math.log2(max(1, own / BLOCK)))  # its room doubles
        held = cache_bytes(c, unit) * slots * prompt
        full = cache_bytes(c, unit) * 1.8 * groups * n * own + 20 * groups * n * c.vocab_size  # and logits
        first = unit * groups * prompt * (3 * c.ffn_dim + 4 * c.dim)  # a block of all prompts, at once
        if self.dense(unit):
            first += 8 * groups * c.n_heads * prompt**2  # scores in fp32, and their softmax
        return held + max(full, first)

    def attention_flops(self, tokens: float, context: float) -> float:
        """Of the forward pass: two products over all heads."""
        return 4 * tokens * context * self.c.n_layers * self.c.n_heads * self.c.cache_dim

    def rate(self) -> float:
        return (self.hardware.flops if self.unit == 2 else self.hardware.fp32) * self.hardware.compute_share

    def decode(self, rows: int, prompts: int, n: int, prompt: int, own: int, served: bool = False) -> float:
        """Seconds to decode: each token reads the weights (of experts, those chosen) and the rows' caches;
        or what the host takes to launch the operators, which the graphs of an engine (`served`) do not. CPUs
        do one after the other."""
        c, together = self.c, min(prompts, max(1, rows // n)) * n
        touched = min(1.0, self.active / self.params * together) if c.experts else 1.0
        unit, kv = (BYTES[self.rollout.dtype],) * 2 if served else (self.unit, self.kv_unit)
        cached = cache_bytes(c, kv) * (together / n * prompt + together * own / 2)
        adapters = 0 if served else self.lora  # those of an engine are merged
        read = unit * self.params * touched + 4 * adapters + cached
        flops = 2 * (self.active + adapters) * together + self.attention_flops(together, prompt + own / 2)
        step = max(read / (self.hardware.bandwidth * self.hardware.bandwidth_share), flops / self.rate())
        if not served:
            half, lora = self.unit == 2, self.lora > 0
            launched = self.hardware.launch * launches(c, half, lora)
            launched += self.hardware.product * products(c, lora) * half
            step = max(step, launched) if self.hardware.gpu else step + launched
        return own * math.ceil(prompts * n / together) * step


def share_of(rollout: RolloutConfig) -> float:
    """Of a GPU's memory, what an engine takes: by rollout.options, else by its own default."""
    name, share = DIALECTS[rollout.engine].share
    words = shlex.split(rollout.options.replace("=", " "))
    for option, value in zip(words, words[1:], strict=False):
        if option == name:
            with contextlib.suppress(ValueError):
                share = float(value)
    return share
