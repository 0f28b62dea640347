"""Decoding of small Llama-style models on CPUs by one compiled call a step (kernels/decode_step.cpp).

The same sums as `Model.step` on a `Cache`, to rounding, in fp32 and with products in bf16. A row's steps do
not depend on its neighbours, to the bit.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nanov2.kernels import decode_step
from nanov2.model.cache import BLOCK, Cache
from nanov2.model.layers import Linear, version

if TYPE_CHECKING:
    from nanov2.model.decoder import Model

LARGEST = 20_000_000  # parameters: larger models spend their time in products, where torch's are faster
VECTOR = 16  # numbers in a vector


def cache_for(model: Model, rows: int, prompts: int, prompt_len: int) -> Cache:
    """The cache that decodes this model: compiled, where that can be."""
    like = model.output_weight
    if can_compile(model):
        return CompiledCache(model, rows, prompts, prompt_len, like)
    return Cache(model.config, rows, prompts, prompt_len, like)


def can_compile(model: Model) -> bool:
    """Whether the compiled step knows all that this model has, and can read its weights."""
    c = model.config
    if c.latent or c.experts or c.qkv_bias or c.qk_norm or model.n_params > LARGEST:
        return False
    if any(n % VECTOR for n in (c.dim, c.ffn_dim, c.head_dim)):
        return False
    if any(isinstance(m, Linear) and m.adapter is not None for m in model.modules()):
        return False
    for p in model.parameters():  # no shards, no halves
        if type(p) is not nn.Parameter or p.dtype != torch.float32 or p.device.type != "cpu":
            return False
    return decode_step.library() is not None


class CompiledCache(Cache):
    """A cache that decodes for one model, whose weights stay as they are as long as it lives.

    Keys lie in blocks of 16 positions: `own_kv[:, 0]` is [layers, R, K, room / 16, d, 16] in the memory of
    [room, d], and `prompt_kv[:, 0]` is the same of P.
    """

    def __init__(self, model: Model, rows: int, prompts: int, prompt_len: int, like: Tensor):
        super().__init__(model.config, rows, prompts, -(-prompt_len // BLOCK) * BLOCK, like)
        self.model, self.weights = model, _weights(model)

    def arrange(self) -> None:
        self.longest = int(self.lengths.max())

    def prefill(self, prompts: list[list[int]], slots: Tensor) -> tuple[Tensor, Tensor]:
        """`Model.prefill`: prompts into slots [A]; hidden states [A, D], and the last tokens [A, conv]."""
        n = self.config.embed_conv
        lines = [[-1] * n + p for p in prompts]
        starts = torch.tensor([0, *map(len, lines)]).cumsum(0)
        tokens = torch.tensor([i for line in lines for i in line])
        hidden = self.like.new_empty(len(prompts), self.config.dim)
        self.prompt_lengths[slots] = torch.tensor([len(p) for p in prompts])
        call = self._decoder(tokens=tokens, starts=starts, slots=slots, out=hidden)
        decode_step.prefill(call, torch.arange(len(prompts)), torch.get_num_threads())
        recent = torch.tensor([line[len(line) - n :] for line in lines], dtype=torch.long)
        return hidden, recent.view(len(prompts), n)

    def decode(self, ids: Tensor, alive: Tensor) -> Tensor:
        """`Model.step`: hidden states [R, D]; 0 in rows that are not alive."""
        self.make_room()
        hidden = self.like.new_zeros(len(ids), self.config.dim)
        decode_step.step(self._decoder(tokens=ids, out=hidden), alive.contiguous(), torch.get_num_threads())
        self.longest += 1
        return hidden

    def _decoder(self, **of_call: Tensor) -> decode_step.Decoder:
        """What a call reads and writes; the tensors must outlive it."""
        c, m, (cosines, sines) = self.config, self.model, self.turns
        tensors = of_call | {
            "embeddings": m.embed_tokens.weight, "norm": m.norm.weight,
            "convolved": m.embed_conv if c.embed_conv else m.norm.weight,  # which is not read
            "prompt_kv": self.prompt_kv, "own_kv": self.own_kv, "prompt_lengths": self.prompt_lengths,
            "group": self.group, "lengths": self.lengths, "recent": self.recent,
            "cosines": cosines, "sines": sines,
        }  # fmt: skip
        return decode_step.Decoder(
            **{name: tensor.data_ptr() for name, tensor in tensors.items()},
            layers=c.n_layers, dim=c.dim, heads=c.n_heads, kv_heads=c.n_kv_heads, head_dim=c.head_dim,
            hidden=c.ffn_dim, convolution=c.embed_conv, half=m.in_bf16, epsilon=c.norm_eps,
            layer=ctypes.addressof(self.weights.layers),
            prompts=len(self.prompt_lengths), prompt_room=self.prompt_kv.shape[4],
            rows=len(self.lengths), own_room=self.own_kv.shape[4],
        )  # fmt: skip

    def draw(
        self, hidden: Tensor, uniforms: Tensor, rows: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Tokens and log-probs [R] of these rows, as `sampler.draw` draws them at `uniforms` [R, limit]."""
        tokens, logprobs = torch.zeros_like(self.lengths), hidden.new_zeros(len(hidden))
        pointers = {
            "hidden": hidden, "panels": self.weights.output, "uniforms": uniforms, "which": rows,
            "lengths": self.lengths, "tokens": tokens, "logprobs": logprobs,
        }  # fmt: skip
        decode_step.draw(
            decode_step.Draw(
                **{name: tensor.data_ptr() for name, tensor in pointers.items()},
                dim=self.config.dim,
                vocabulary=self.config.vocab_size,
                count=len(rows),
                limit=uniforms.shape[1],
                temperature=temperature,
            )
        )
        return tokens, logprobs


@dataclass(frozen=True)
class _Weights:
    """A model's matrices in panels; `layers` point into `kept`."""

    version: tuple  # of what they were made of
    output: Tensor
    layers: ctypes.Array
    kept: list[dict[str, Tensor]]


# Not an attribute of the model, as copies in bf16 are: pointers cannot be copied with it.
_of: WeakKeyDictionary[Model, _Weights] = WeakKeyDictionary()


def _weights(model: Model) -> _Weights:
    """Made anew where the weights have changed: once an optimiser step, not once a call."""
    now = (model.in_bf16, *map(version, model.parameters()))
    before = _of.get(model)
    if before is None or before.version != now:
        _of[model] = _pack(model, now)
    return _of[model]


@torch.no_grad()
def _pack(model: Model, now: tuple) -> _Weights:
    half, kept, layers = model.in_bf16, [], (decode_step.Layer * len(model.layers))()
    for block, layer in zip(model.layers, layers, strict=True):
        a, mlp = block.self_attn, block.mlp
        matrices = {
            "qkv": (a.q_proj, a.k_proj, a.v_proj),
            "output": (a.o_proj,),
            "gate_up": (mlp.gate_proj, mlp.up_proj),
            "down": (mlp.down_proj,),
        }
        parts = {n: decode_step.panels(torch.cat([m.weight for m in ms]), half) for n, ms in matrices.items()}
        parts |= {"norm1": block.input_layernorm.weight, "norm2": block.post_attention_layernorm.weight}
        for name, tensor in parts.items():
            setattr(layer, name, tensor.data_ptr())
        kept.append(parts)
    return _Weights(now, decode_step.panels(model.output_weight, False), layers, kept)
