"""Hugging Face folders against transformers: same logits in, same logits out, and clear errors."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanov2.errors import InputError
from nanov2.hub import hf
from nanov2.model.cache import Cache
from nanov2.model.decoder import Model, ModelConfig
from nanov2.model.packing import Completion, collate, make_packs

transformers = pytest.importorskip("transformers", reason="needs transformers to compare with")

SHAPE = dict(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=256,
)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "beta_fast": 8.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 64,
}
DEEPSEEK = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "q_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
}
QWEN3_MOE = {
    "head_dim": 16,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
}
FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama3": ("LlamaConfig", "LlamaForCausalLM", {"rope_parameters": LLAMA3}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 16}),
    "qwen3-yarn": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 16, "rope_parameters": YARN}),
    "qwen3-moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", QWEN3_MOE),
    "qwen3-moe-one-dense": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        QWEN3_MOE | {"mlp_only_layers": [0], "norm_topk_prob": False},
    ),
    "deepseek": ("DeepseekV3Config", "DeepseekV3ForCausalLM", DEEPSEEK),
    "deepseek-plain-queries": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        DEEPSEEK | {"q_lora_rank": None, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1},
    ),
    "deepseek-yarn": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        DEEPSEEK
        | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}, "norm_topk_prob": False},
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    """A tiny model of each family with random weights, as transformers saves it."""
    config, model, extra = FAMILIES[request.param]
    torch.manual_seed(0)
    theirs = getattr(transformers, model)(getattr(transformers, config)(**SHAPE | extra)).float()
    for name, p in theirs.named_parameters():  # zeros and ones would hide mistakes
        torch.nn.init.normal_(p, std=0.3, mean=1.0 if "norm" in name else 0.0)
    for name, b in theirs.named_buffers():
        if name.endswith("correction_bias"):
            torch.nn.init.normal_(b, std=0.1)
    path = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(path)
    return path


def their_logits(path, ids):
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def our_logits(model, ids):
    layout = collate(make_packs(ids[:3], [Completion(ids[3:], [True] * (len(ids) - 3))], 1000)).layout
    with torch.no_grad():
        return model(layout) @ model.output_weight.T


IDS = torch.randint(0, 60, (90,), generator=torch.Generator().manual_seed(3)).tolist()


def test_logits_are_those_of_transformers(folder):
    ours, theirs = our_logits(hf.load(folder), IDS), their_logits(folder, IDS)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_an_exported_model_gives_transformers_the_same_logits(folder, tmp_path):
    model = hf.load(folder)
    hf.save(tmp_path / "out", model)
    theirs = their_logits(tmp_path / "out", IDS)
    assert (our_logits(model, IDS) - theirs).abs().max() < 1e-4 * theirs.abs().max()


@torch.no_grad()
def test_C7_cached_decoding_equals_the_full_forward(folder):
    model = hf.load(folder)
    full = model(collate(make_packs(IDS[:5], [Completion(IDS[5:12], [True] * 7)], 100)).layout)
    cache = Cache(model.config, 1, 1, 5, model.output_weight)
    hidden, recent = model.prefill([IDS[:5]], cache, torch.tensor([0]))
    cache.seat(torch.tensor([0]), torch.tensor([0]), recent)
    cache.arrange()
    assert torch.allclose(hidden[0], full[4], atol=1e-4)
    for t in range(5, 12):
        hidden = model.step(torch.tensor([IDS[t]]), cache, torch.tensor([0]))
        assert torch.allclose(hidden[0], full[t], atol=1e-4)


@pytest.fixture
def llama(tmp_path):
    config = ModelConfig(vocab_size=20, dim=8, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=8, embed_conv=0)
    hf.save(tmp_path, Model(config).init_weights(torch.Generator().manual_seed(0)))
    return tmp_path


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_shards_are_read_and_a_missing_or_outside_one_is_named(llama):
    weights = load_file(llama / "model.safetensors")
    names = sorted(weights)
    for i, part in enumerate((names[:4], names[4:])):
        save_file({n: weights[n] for n in part}, llama / f"part{i}.safetensors")
    (llama / "model.safetensors").unlink()
    index = llama / "model.safetensors.index.json"
    places = {n: f"part{int(n in names[4:])}.safetensors" for n in names}
    index.write_text(json.dumps({"weight_map": places}))
    hf.load(llama)
    index.write_text(json.dumps({"weight_map": places | {names[0]: "../part0.safetensors"}}))
    with pytest.raises(InputError, match="not in the folder"):
        hf.load(llama)
    index.write_text(json.dumps({"weight_map": places}))
    (llama / "part1.safetensors").unlink()
    with pytest.raises(InputError, match="part1.safetensors is missing"):
        hf.load(llama)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model_type": "gpt_oss"}, "config.json: model_type 'gpt_oss' is not one of llama"),
        ({"intermediate_size": 9}, r"tensor model.layers.0.mlp.*has shape .*by config.json"),
        ({"num_hidden_layers": 2}, "tensor model.layers.1.*is missing"),
        ({"rope_parameters": None, "rope_scaling": {"rope_type": "dynamic"}}, "rope_type 'dynamic'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope scaling of type yarn has no field 'factor'"),
        ({"model_type": "deepseek_v3"}, "config.json: field kv_lora_rank is missing"),
        ({"model_type": "deepseek_v3", "scoring_func": "softmax"}, "scoring_func 'softmax' is not 'sigmoid'"),
        ({"num_attention_heads": 3, "head_dim": None}, "config.json: model: dim 8"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_a_malformed_folder_is_one_line_that_names_file_and_field(llama, fields, message):
    change(llama / "config.json", **fields)
    with pytest.raises(InputError, match=message):
        hf.load(llama)


def test_a_tokenizer_that_does_not_fit_is_refused(llama):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "b": 25}, unk_token="a")).save(str(llama / "tokenizer.json"))
    with pytest.raises(InputError, match="token id 25 is beyond vocab_size 20"):
        hf.load(llama)


def test_torn_files_are_named(llama):
    whole = (llama / "model.safetensors").read_bytes()
    (llama / "model.safetensors").write_bytes(whole[:50])
    with pytest.raises(InputError, match="model.safetensors"):
        hf.load(llama)
    (llama / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json: not valid JSON"):
        hf.load(llama)


def test_the_worlds_own_model_is_a_folder_like_all_others(tmp_path):
    config = ModelConfig(vocab_size=20, dim=8, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=8)
    model = Model(config).init_weights(torch.Generator().manual_seed(0))
    hf.save(tmp_path, model)
    again = hf.load(tmp_path)
    assert again.config == config
    for name, p in model.state_dict().items():
        assert torch.equal(p, again.state_dict()[name])


@pytest.mark.parametrize("name", [n for n, (low, _) in hf.BOUNDS.items() if type(low) is int])
@pytest.mark.parametrize("value", [10**9 + 10**30, -1, 1.5, True, "8", [], float("nan")])
def test_an_absurd_number_is_one_line_that_names_the_field(llama, name, value):
    change(llama / "config.json", **{name: value})
    with pytest.raises(InputError, match=f"config.json: {name} must be") as e:
        hf.load(llama)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 1000},
        {"vocab_size": 1 << 24, "hidden_size": 1 << 20},
        {"model_type": "deepseek_v3"} | DEEPSEEK | {"num_hidden_layers": 1000, "n_routed_experts": 1 << 20},
        {"model_type": "deepseek_v3"} | DEEPSEEK | {"n_routed_experts": 1 << 16, "first_k_dense_replace": 0},
        {"model_type": "nanov2", "n_layers": 10**9},
        {"model_type": ["llama"]},
        {"rope_parameters": 3},
    ],
)
def test_sizes_beyond_the_tensors_cost_neither_time_nor_memory(llama, fields):
    change(llama / "config.json", **fields)
    begin = time.monotonic()
    with pytest.raises(InputError):
        hf.load(llama)
    assert time.monotonic() - begin < 2


def test_a_nested_bomb_is_not_valid_json(llama):
    (llama / "config.json").write_text("[" * 10**6)
    with pytest.raises(InputError, match="config.json: not valid JSON"):
        hf.load(llama)


@pytest.mark.parametrize("stale", ["dtype", "torch_dtype"])
def test_an_export_names_one_dtype_that_of_its_weights(llama, tmp_path, stale):
    change(llama / "config.json", **{stale: "bfloat16"})
    hf.save(tmp_path / "out", hf.load(llama), llama)
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [told[k] for k in ("dtype", "torch_dtype") if k in told] == ["float32"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.float32
