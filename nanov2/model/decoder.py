"""A Llama-style decoder, written to be read.

RMSNorm → grouped-query attention with rotary positions → RMSNorm → SwiGLU, residual around each. With
`latent` it has DeepSeek-V3's attention (deepseek.py), with `experts` a mixture of them (experts.py).
`forward` returns hidden states, not logits: log-probs come from `kernels.linear_logprob`, which never
needs the full [tokens, vocabulary] matrix.

Two ways in, one set of weights:
- `model(layout)` for training: packs in which many completions share one prompt (see `Layout`);
- `model.prefill(prompts, cache, slots)` and `model.step(ids, cache)` for sampling: prompts, then one new
  token of each row, keys and values kept in a `Cache`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanov2.model.attention import Layout
from nanov2.model.cache import Attend, Cache
from nanov2.model.compiled import CompiledCache
from nanov2.model.deepseek import LatentAttention, LatentConfig
from nanov2.model.experts import Experts, ExpertsConfig
from nanov2.model.layers import MLP, Linear, RMSNorm, RopeScaling, Yarn, for_attention, rotary, rotate
from nanov2.model.rollout import Engine
from nanov2.settings import Few, Width, Within, setting


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model; `vocab_size` is set from the tokenizer."""

    vocab_size: Annotated[int, Within(0, 1 << 24)] = setting(0, "set from the tokenizer")
    dim: Width = setting(128, "width of the residual stream")
    n_layers: Few = setting(4, "blocks")
    n_heads: Few = setting(4, "query heads")
    n_kv_heads: Few = setting(4, "key-value heads; must divide n_heads")
    ffn_dim: Width = setting(352, "hidden width of SwiGLU")
    rope_theta: Annotated[float, Within(1, 1e12)] = setting(10_000.0, "base of the rotary frequencies")
    norm_eps: Annotated[float, Within(1e-12, 1)] = setting(1e-5, "epsilon of RMSNorm")
    tie_embeddings: bool = setting(False, "output weights are the input embeddings")
    embed_conv: Annotated[int, Within(0, 64)] = setting(
        3, "how many preceding tokens are mixed into each embedding; 0 = plain Llama"
    )
    embed_spread: Annotated[float, Within(0, 100)] = setting(
        0.6,
        "standard deviation of their weights at the start; low: it takes long to tell `a < b` from `c < b`",
    )
    mimetic: bool = setting(
        False, "the first head of the first block starts as a look-up: a token attends to those like it"
    )
    head_size: Annotated[int, Within(0, 1 << 16)] = setting(
        0, "width of a head; 0 = dim / n_heads (Qwen3 has others)"
    )
    qkv_bias: bool = setting(False, "biases in the query, key and value projections (Qwen2)")
    qk_norm: bool = setting(False, "RMSNorm of each head's queries and keys (Qwen3)")
    rope_scaling: RopeScaling | Yarn | None = setting(None, "long-context frequencies")
    latent: LatentConfig | None = setting(None, "multi-head latent attention (DeepSeek-V3)")
    experts: ExpertsConfig | None = setting(None, "mixture of experts (DeepSeek-V3, Qwen3)")
    context: Annotated[int, Within(0, 1 << 30)] = setting(
        0, "tokens that it can attend to, prompt and answer together; 0 = any number"
    )

    def __post_init__(self):
        own_width = self.head_size or self.latent
        if (not own_width and self.dim % self.n_heads) or self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"model: dim {self.dim} must be a multiple of n_heads {self.n_heads}, "
                f"and n_heads of n_kv_heads {self.n_kv_heads}"
            )
        if self.mimetic and self.latent:
            raise ValueError("model: mimetic is for plain attention: leave it out, or latent")
        if self.head_dim % 2 and not self.latent:
            raise ValueError(f"model: a head is {self.head_dim} wide; rotary positions need an even width")
        kinds: dict[str, type] = {
            "rope_scaling": RopeScaling,
            "latent": LatentConfig,
            "experts": ExpertsConfig,
        }
        for name, kind in kinds.items():
            if isinstance(found := getattr(self, name), dict):  # read back from JSON
                kind = Yarn if "beta_fast" in found else kind
                object.__setattr__(self, name, kind(**found))

    @property
    def head_dim(self) -> int:
        return self.head_size or self.dim // self.n_heads

    @property
    def rope_dim(self) -> int:
        """Width that rotary positions turn."""
        return self.latent.qk_rope_head_dim if self.latent else self.head_dim

    @property
    def cache_heads(self) -> int:
        return 1 if self.latent else self.n_kv_heads

    @property
    def cache_dim(self) -> int:
        return self.latent.width if self.latent else self.head_dim

    @property
    def cache_kinds(self) -> int:
        """2, keys and values; 1 where the key is the value too."""
        return 1 if self.latent else 2

    def fits(self, prompt: list[int]) -> bool:
        """Whether the context has room for a token after the prompt."""
        return not self.context or len(prompt) < self.context

    def to_dict(self) -> dict:
        return asdict(self)


class Attention(nn.Module):
    in_bf16 = False

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q_proj = Linear(config.dim, q_dim, bias=config.qkv_bias)
        self.k_proj = Linear(config.dim, kv_dim, bias=config.qkv_bias)
        self.v_proj = Linear(config.dim, kv_dim, bias=config.qkv_bias)
        self.o_proj = Linear(q_dim, config.dim, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        B, L, _ = x.shape
        q, k, v = (
            proj(x).view(B, L, -1, self.config.head_dim).transpose(1, 2)  # [B, heads, L, head_dim]
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (for_attention(x, self.in_bf16) for x in (q, k, v))
        out = attend(rotate(q, *rope), rotate(k, *rope), v)
        return self.o_proj(out.transpose(1, 2).reshape(B, L, -1))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, number: int):
        super().__init__()
        c, latent, experts = config, config.latent, config.experts
        self.input_layernorm = RMSNorm(c.dim, c.norm_eps)
        scale = c.rope_scaling.temperature if c.rope_scaling else 1.0
        self.self_attn = LatentAttention(c.dim, c.n_heads, latent, scale) if latent else Attention(c)
        self.post_attention_layernorm = RMSNorm(c.dim, c.norm_eps)
        dense = experts is None or number < experts.first_k_dense_replace
        self.mlp = MLP(c.dim, c.ffn_dim) if dense else Experts(c.dim, experts)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


LOOK_UP = ("layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight")  # of a mimetic model


class Model(nn.Module):
    """The decoder. `output_weight` [V, D] is what `kernels.linear_logprob` multiplies hidden states with.

    With `in_bf16` products are in bf16, those of the output layer on GPUs alone. `engine` samples it, where
    this process does not. `source` gives each weight in fp32 where this model is a rounded copy, or empty:
    one that ranks share in shards (distributed/sharding.py).
    """

    in_bf16 = False
    engine: Engine | None = None
    source: dict[str, Callable[[], Tensor]] | None = None

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, self.checkpointing = config, False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        if config.embed_conv:
            self.embed_conv = nn.Parameter(torch.empty(config.embed_conv, config.dim))
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)

    @property
    def output_weight(self) -> Tensor:
        return self._at_the_end(
            self.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight
        )

    def _at_the_end(self, x: Tensor) -> Tensor:
        return x.bfloat16() if self.in_bf16 and x.is_cuda else x

    def _output(self, x: Tensor) -> Tensor:
        """Hidden states as the output layer takes them."""
        return self._at_the_end(self.norm(x))

    def set_precision(self, precision: str) -> None:
        """Products in bf16 ("bf16") or fp32 ("fp32"), in training and sampling alike. Weights and their
        gradients, the residual stream, norms, softmax, sums and log-probs are in fp32 with both."""
        for module in self.modules():
            if hasattr(module, "in_bf16"):
                module.in_bf16 = precision == "bf16"
        self.norm.in_bf16 = False  # hidden states go to the output layer as they are

    def init_weights(self, generator: torch.Generator) -> Model:
        """Normal at 1/√width; projections back into the residual stream scaled down by √(2·layers)."""
        for name, p in self.named_parameters():
            self._draw(name, p, generator)
        return self

    def draw_lazily(self, seed: int) -> Model:
        """Of a model on the meta device: the weights of `init_weights` as its `source`, which must be asked
        for all of them in their order."""
        generator = torch.Generator()

        def draw(name: str, shape: torch.Size, first: bool) -> Tensor:
            if first:
                generator.manual_seed(seed)
            return self._draw(name, torch.empty(shape), generator)

        shapes = {name: p.shape for name, p in self.named_parameters()}
        self.source = {name: partial(draw, name, s, i == 0) for i, (name, s) in enumerate(shapes.items())}
        return self

    def _draw(self, name: str, p: Tensor, generator: torch.Generator) -> Tensor:
        if name.endswith("bias"):
            return nn.init.zeros_(p)
        if p.ndim == 1:
            return nn.init.ones_(p)
        if name == "embed_conv":  # strong from the start: looking a fact up rests on it
            return nn.init.normal_(p, std=self.config.embed_spread, generator=generator)
        std = p.shape[-1] ** -0.5 if name != "embed_tokens.weight" else self.config.dim**-0.5
        if name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj")):
            std /= math.sqrt(2 * self.config.n_layers)
        nn.init.normal_(p, std=std, generator=generator)
        if self.config.mimetic and name in LOOK_UP:
            # The same for both, so that q·k of two tokens is largest where their states are alike: part of
            # the mimetic initialization of Trockman and Kolter (2023, arXiv 2305.09828).
            alike = torch.Generator(p.device).manual_seed(generator.initial_seed() + 1)
            nn.init.normal_(p.detach()[: self.config.head_dim], std=std, generator=alike)
        return p

    def embed(self, ids: Tensor, history) -> Tensor:
        """Embeddings [B, L, D]; with `embed_conv`, plus per-channel multiples of those of preceding tokens.

        `history[i]` [B, L] holds each token's (i+1)-th predecessor, −1 where there is none.

        This short causal convolution lets one token stand for `a < b` as a whole. Without it a small
        decoder needs thousands of steps to find that out, and learns nothing else until then.
        """
        x = self.embed_tokens(ids)
        x = x.float() if self.in_bf16 else x  # the residual stream, where embeddings are frozen in bf16
        for i in range(self.config.embed_conv):
            before = self.embed_tokens(history[i].clamp(min=0)) * (history[i] >= 0)[..., None]
            x = x + before * self.embed_conv[i]
        return x

    def forward(self, layout: Layout) -> Tensor:
        """Hidden states [T, D] of packs; prompts are computed once and shared by their completions."""
        history = layout.history(self.config.embed_conv) if self.config.embed_conv else None
        x = self.embed(layout.ids[None], history)
        rope, attend = rotary(layout.positions[None], self.config), layout.attention()
        for layer in self.layers:
            if self.checkpointing and torch.is_grad_enabled():  # keep only each block's input
                x = checkpoint(layer, x, rope, attend, use_reentrant=False)
            else:
                x = layer(x, rope, attend)
        return self._output(x[0])

    def prefill(self, prompts: list[list[int]], cache: Cache, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Compute prompts into their cache slots, from the token `cache.common` on. Returns the hidden
        state [A, D] of the last token of each, and the tokens [A, embed_conv] that a continuation's
        embeddings mix in.
        """
        if isinstance(cache, CompiledCache):
            return cache.prefill(prompts, slots)
        device, n, common = slots.device, self.config.embed_conv, cache.common
        lengths = torch.tensor([len(p) - common for p in prompts], device=device)
        L = int(lengths.max())
        # Padded on the right: under a causal mask nothing sees the padding.
        line = [([-1] * n + p)[common:] + [0] * (L + common - len(p)) for p in prompts]
        line = torch.tensor(line, device=device)  # line[:, n + t] is token common + t
        ids = line[:, n:]
        x = self.embed(ids, [line[:, n - i : n - i + L] for i in range(1, n + 1)])
        rope = rotary(torch.arange(common, common + L, device=device).expand(len(prompts), L), self.config)
        attend = cache.filling(slots, L)
        for i, layer in enumerate(self.layers):
            x = layer(x, rope, attend(i))
        cache.prompt_lengths[slots] = common + lengths
        last = lengths[:, None] + torch.arange(n, device=device)  # the n tokens before the end, in `line`
        return self._output(x[torch.arange(len(prompts), device=device), lengths - 1]), line.gather(1, last)

    def prefill_common(self, prefix: list[int], cache: Cache) -> None:
        """Compute what all prompts begin with into every slot; each must go on after it."""
        self.prefill([prefix], cache, torch.arange(len(cache.prompt_lengths), device=cache.lengths.device))
        cache.common = len(prefix)

    def step(self, ids: Tensor, cache: Cache, alive: Tensor) -> Tensor:
        """Hidden states [R, D] after one new token [R] of each row; it counts in the rows `alive`."""
        if isinstance(cache, CompiledCache):
            return cache.decode(ids, alive)
        positions, n = cache.begin(), self.config.embed_conv
        history = cache.recent.flip(1).T[:, :, None]  # [n, R, 1], latest first
        x = self.embed(ids[:, None], history)
        rope = cache.rotary(positions)
        for i, layer in enumerate(self.layers):
            x = layer(x, rope, partial(cache.attend, i))
        if n:
            cache.recent[alive] = torch.cat([cache.recent, ids[:, None]], dim=1)[alive, 1:]
        cache.end(alive)
        return self._output(x[:, 0])

    @property
    def n_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @property
    def n_active(self) -> int:
        """Parameters that a token meets: of a mixture, only those of as many experts as it goes to."""
        c, experts = self.config, [m for m in self.modules() if isinstance(m, Experts)]
        idle = sum(
            sum(p.numel() for p in m.experts.parameters())
            * (c.experts.n_routed_experts - c.experts.num_experts_per_tok)
            // c.experts.n_routed_experts
            for m in experts
        )
        return self.n_params - idle
