"""GGUF files (llama.cpp's form) to Hugging Face folders, for models of the Llama architecture.

    python tools/gguf_import.py MODEL.gguf FOLDER

The `gguf` library reads and dequantises; weights are written as float32. Two things need care: llama.cpp
stores the rows of query and key projections interleaved for its rotary form, and the tokenizer has to be
built anew from its vocabulary and merges, with the pre-tokenizer that its name stands for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from nanov2.errors import InputError
from nanov2.hub import hf
from nanov2.model.decoder import Model, ModelConfig
from nanov2.records import write_atomically

BLOCK = {  # GGUF → parameter of a block
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
# Pre-tokenizers by the name that GGUF gives them. SmolLM2 splits numbers into digits first; without
# that, more than one in a hundred ordinary lines get other ids.
SPLITS = {
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
}


class Gguf:
    """Fields and tensors of a file; InputError names the field that is missing."""

    def __init__(self, path: Path):
        try:
            from gguf import GGUFReader
        except ImportError as e:
            raise InputError("reading GGUF needs the gguf library: pip install gguf") from e
        if not path.is_file():
            raise InputError(f"{path} is missing")
        try:
            self.reader = GGUFReader(str(path))
        except (ValueError, OSError, IndexError) as e:
            raise InputError(f"{path}: not a GGUF file: {e}") from e
        self.path = path

    def __call__(self, name: str, default=...):
        field = self.reader.fields.get(name)
        if field is None and default is ...:
            raise InputError(f"{self.path}: field {name} is missing")
        return default if field is None else field.contents()

    def tensors(self):
        """(name without ".weight", float32 tensor)."""
        from gguf.quants import dequantize

        for t in self.reader.tensors:
            yield (
                t.name.removesuffix(".weight"),
                torch.from_numpy(dequantize(t.data, t.tensor_type).copy()).float(),
            )


def read_model(file: Gguf) -> Model:
    architecture = file("general.architecture")
    if architecture != "llama":
        raise InputError(f"{file.path}: general.architecture {architecture!r} is not supported (llama is)")
    if file("llama.rope.scaling.type", None) not in (None, "none"):
        raise InputError(f"{file.path}: llama.rope.scaling.type is not supported")
    weights = dict(file.tensors())
    heads = file("llama.attention.head_count")
    config = ModelConfig(
        vocab_size=len(weights["token_embd"]),
        dim=file("llama.embedding_length"),
        n_layers=file("llama.block_count"),
        n_heads=heads,
        n_kv_heads=file("llama.attention.head_count_kv", heads),
        ffn_dim=file("llama.feed_forward_length"),
        rope_theta=file("llama.rope.freq_base", 10_000.0),
        norm_eps=float(f"{file('llama.attention.layer_norm_rms_epsilon'):.6g}"),  # stored as float32
        tie_embeddings="output" not in weights,
        embed_conv=0,
    )
    state = {}
    for name, tensor in weights.items():
        _, *block = name.split(".")
        if name in TOP:
            state[f"{TOP[name]}.weight"] = tensor
        elif name.startswith("blk.") and len(block) == 2 and block[1] in BLOCK:
            if block[1] in ("attn_q", "attn_k"):
                n = config.n_heads if block[1] == "attn_q" else config.n_kv_heads
                tensor = tensor.unflatten(0, (n, -1, 2)).transpose(1, 2).flatten(0, 2)
            state[f"layers.{block[0]}.{BLOCK[block[1]]}.weight"] = tensor
        elif name != "rope_freqs":
            raise InputError(f"{file.path}: tensor {name} does not belong to the llama architecture")
    model = Model(config)
    try:
        model.load_state_dict(state)
    except RuntimeError as e:
        raise InputError(f"{file.path}: {e}") from e
    return model


def read_tokenizer(file: Gguf) -> tuple[Tokenizer, dict]:
    """The tokenizer, and what tokenizer_config.json says of it."""
    kind, split = file("tokenizer.ggml.model"), file("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or split not in SPLITS:
        raise InputError(
            f"{file.path}: tokenizer.ggml.model {kind!r} with pre-tokenizer {split!r} is not supported"
        )
    words = file("tokenizer.ggml.tokens")
    merges = [tuple(m.split(" ")) for m in file("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(SPLITS[split])
    tokenizer.decoder = decoders.ByteLevel()
    control = [w for w, t in zip(words, file("tokenizer.ggml.token_type"), strict=True) if t == 3]
    tokenizer.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in control])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name in ("bos", "eos", "unknown", "padding"):
        index = file(f"tokenizer.ggml.{name}_token_id", None)
        if index is not None:
            settings[{"unknown": "unk", "padding": "pad"}.get(name, name) + "_token"] = words[index]
    if template := file("tokenizer.chat_template", ""):
        settings["chat_template"] = template
    return tokenizer, settings


def convert(source: Path, folder: Path) -> Model:
    """Write the folder; returns the model."""
    file = Gguf(source)
    model = read_model(file)
    tokenizer, settings = read_tokenizer(file)
    hf.save(folder, model)
    write_atomically(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_atomically(folder / "tokenizer_config.json", json.dumps(settings, indent=1, ensure_ascii=False))
    ids = {f"{k}_token_id": file(f"tokenizer.ggml.{k}_token_id", None) for k in ("bos", "eos")}
    write_atomically(
        folder / "generation_config.json", json.dumps({k: v for k, v in ids.items() if v is not None})
    )
    return model


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        model = convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except InputError as e:
        sys.exit(f"error: {e}")
    print(f"{sys.argv[2]}: {model.n_params / 1e6:,.1f} M parameters")


if __name__ == "__main__":
    main()
