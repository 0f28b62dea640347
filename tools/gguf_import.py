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

import numpy as np
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


def _reader() -> type:
    """The library's reader, made to stop where the file ends: by itself it goes on to any count."""
    from gguf import GGUFReader

    class Reader(GGUFReader):
        def _get(self, offset, dtype, count=1, *rest, **named):
            if int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
                raise ValueError("it ends before what its header promises")
            return super()._get(offset, dtype, count, *rest, **named)

    return Reader


class Gguf:
    """Fields and tensors of a file; InputError names the field that is missing."""

    def __init__(self, path: Path):
        try:
            reader = _reader()
        except ImportError as e:
            raise InputError("reading GGUF needs the gguf library: pip install gguf") from e
        if not path.is_file():
            raise InputError(f"{path} is missing")
        try:
            self.reader = reader(str(path))
        except (ValueError, OSError, IndexError, KeyError, OverflowError) as e:
            raise InputError(f"{path}: not a GGUF file: {e}") from e
        self.path = path

    def __call__(self, name: str, default=...):
        field = self.reader.fields.get(name)
        if field is None and default is ...:
            raise InputError(f"{self.path}: field {name} is missing")
        return default if field is None else field.contents()

    def number(self, name: str, most: int, default=...) -> int:
        """A field that is a whole number from 1 to `most`."""
        value = self(name, default)
        if value is default:
            return value
        if type(value) is not int or not 1 <= value <= most:
            raise InputError(
                f"{self.path}: {name} must be a whole number from 1 to {most}, found {value!r:.40}"
            )
        return value

    def shapes(self) -> dict[str, list[int]]:
        """Shapes of all tensors by name, without ".weight"; reads no weights."""
        return {t.name.removesuffix(".weight"): t.shape.tolist()[::-1] for t in self.reader.tensors}

    def tensors(self):
        """(name without ".weight", float32 tensor)."""
        from gguf.quants import dequantize

        for t in self.reader.tensors:
            yield (
                t.name.removesuffix(".weight"),
                torch.from_numpy(dequantize(t.data, t.tensor_type).copy()).float(),
            )


def read_config(file: Gguf, shapes: dict[str, list[int]]) -> ModelConfig:
    """The model's shape, which must be that of its tensors."""
    heads = file.number("llama.attention.head_count", 1 << 16)
    dim, layers = file.number("llama.embedding_length", 1 << 20), file.number("llama.block_count", 1000)
    ffn_dim = file.number("llama.feed_forward_length", 1 << 20)
    wanted = {f"blk.{i}.ffn_gate": [ffn_dim, dim] for i in range(layers)}
    wanted["token_embd"] = [shapes.get("token_embd", [0])[0], dim]
    for name, shape in wanted.items():
        if shapes.get(name) != shape:
            found = f"has shape {shapes[name]}" if name in shapes else "is missing"
            raise InputError(f"{file.path}: tensor {name} {found}; by the fields it has {shape}")
    try:
        return ModelConfig(
            vocab_size=shapes["token_embd"][0],
            dim=dim,
            n_layers=layers,
            n_heads=heads,
            n_kv_heads=file.number("llama.attention.head_count_kv", 1 << 16, heads),
            ffn_dim=ffn_dim,
            rope_theta=float(file("llama.rope.freq_base", 10_000.0)),
            norm_eps=float(f"{file('llama.attention.layer_norm_rms_epsilon'):.6g}"),  # stored as float32
            tie_embeddings="output" not in shapes,
            embed_conv=0,
            context=file.number("llama.context_length", 1 << 30, 0),
        )
    except (TypeError, ValueError, ArithmeticError) as e:
        raise InputError(f"{file.path}: {e}") from e


def read_model(file: Gguf) -> Model:
    architecture = file("general.architecture")
    if architecture != "llama":
        raise InputError(f"{file.path}: general.architecture {architecture!r} is not supported (llama is)")
    if file("llama.rope.scaling.type", None) not in (None, "none"):
        raise InputError(f"{file.path}: llama.rope.scaling.type is not supported")
    shapes = file.shapes()
    config = read_config(file, shapes)
    state = {}
    for name, tensor in file.tensors():
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
    ids = {f"{k}_token_id": file(f"tokenizer.ggml.{k}_token_id", None) for k in ("bos", "eos")}
    ids = {k: v for k, v in ids.items() if v is not None}
    hf.save(folder, model)
    config = hf.read_json(folder / "config.json") | ids
    write_atomically(folder / "config.json", json.dumps(config, indent=2))
    write_atomically(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_atomically(folder / "tokenizer_config.json", json.dumps(settings, indent=1, ensure_ascii=False))
    write_atomically(folder / "generation_config.json", json.dumps(ids))
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
