"""Model folders of the Hugging Face ecosystem: Llama (SmolLM2 too), Qwen2 and 2.5, Qwen3 (experts too),
DeepSeek-V3.

    python -m nanov2 hf show FOLDER              # family, shape, parameters; reads no weights
    python -m nanov2 hf check FOLDER             # loads it, and says what is wrong where it does not fit

A folder holds config.json, model.safetensors (or shards with model.safetensors.index.json), tokenizer.json,
tokenizer_config.json and generation_config.json. `load` reads the weights into nanov2's own decoder, whose
parameters have the same names (experts, there a tensor each, are stacked); `save` writes them so that
transformers, vLLM, SGLang and llama.cpp's converter read them. What does not fit is an InputError of one line
that names file and field; sizes are compared with bounds and with the tensors' names before anything is made.
A decoder with `embed_conv`, which no family of the ecosystem has, is written as an architecture of its own,
"nanov2".
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nanov2 import records, settings
from nanov2.errors import InputError
from nanov2.model.decoder import Model, ModelConfig
from nanov2.model.deepseek import LatentConfig
from nanov2.model.experts import ExpertsConfig
from nanov2.model.layers import RopeScaling, Yarn
from nanov2.records import write_atomically

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}
BESIDE = (  # what is not weights: copied as it is
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
OWN = "nanov2"  # model_type of a decoder with embed_conv: config.json holds the fields of ModelConfig
EXPERT_COUNTS = ("n_routed_experts", "num_experts", "num_local_experts")
CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # of safetensors
FILE = 1 << 30  # bytes after which the next file of weights begins
MOST_EXPERTS = 1 << 17  # of all layers together
BOUNDS = {  # of config.json's numbers, where they are there
    "vocab_size": (1, 1 << 24),
    "num_hidden_layers": (1, 1000),
    "max_position_embeddings": (1, 1 << 30),
    "rms_norm_eps": (1e-12, 1.0),
    "rope_theta": (1.0, 1e12),
    "routed_scaling_factor": (0.0, 1e6),
    "q_lora_rank": (0, 1 << 20),
    "n_shared_experts": (0, 1000),
    "first_k_dense_replace": (0, 1000),
} | dict.fromkeys(
    (
        *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_routed_experts"),
        *(
            "num_experts",
            "num_local_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "n_group",
            "topk_group",
        ),
    ),
    (1, 1 << 20),
)
SHAPE = {  # config.json → ModelConfig
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "ffn_dim",
    "rms_norm_eps": "norm_eps",
}
FIELDS = {f.name for f in fields(ModelConfig)}
read_json = partial(records.read_json, most=128)  # MiB: a folder may be from anywhere


def to_config(path: Path) -> ModelConfig:
    """The shape that a config.json states; both the older `rope_theta` and transformers 5's
    `rope_parameters` are read. InputError for what this decoder does not have."""
    c = read_json(path)
    family = c.get("model_type")
    if family == OWN:
        return settings.build(ModelConfig, {k: v for k, v in c.items() if k in FIELDS}, "", str(path))
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(f"{path}: model_type {family!r} is not one of {', '.join(FAMILIES)}")
    missing = [name for name in SHAPE if name not in c]
    if missing:
        raise InputError(f"{path}: field {missing[0]} is missing")
    _check_numbers(path, c)
    if c.get("hidden_act", "silu") != "silu":
        raise InputError(f"{path}: hidden_act {c['hidden_act']!r} is not silu")
    if c.get("use_sliding_window") or c.get("mlp_bias") or (family != "qwen2" and c.get("attention_bias")):
        raise InputError(f"{path}: use_sliding_window, mlp_bias and attention_bias are not supported")
    for name, known in (("scoring_func", "sigmoid"), ("topk_method", "noaux_tc"), ("moe_layer_freq", 1)):
        if c.get(name, known) != known:
            raise InputError(f"{path}: {name} {c[name]!r} is not {known!r}")
    if c.get("quantization_config"):
        raise InputError(
            f"{path}: quantization_config: quantised weights are not supported, dequantise first"
        )
    rope = c.get("rope_parameters") or {}
    if not isinstance(rope, dict) or not isinstance(c.get("rope_scaling") or {}, dict):
        raise InputError(f"{path}: rope_parameters and rope_scaling must be objects")
    heads = c["num_attention_heads"]
    try:
        return ModelConfig(
            **{ours: c[theirs] for theirs, ours in SHAPE.items()},
            **{"n_kv_heads": c.get("num_key_value_heads") or heads, "head_size": c.get("head_dim") or 0}
            | {"deepseek_v3": _deepseek, "qwen3_moe": _qwen3_moe}.get(family, lambda *_: {})(path, c),
            rope_theta=float(rope.get("rope_theta", c.get("rope_theta", 10_000.0))),
            rope_scaling=_scaling(path, c.get("rope_scaling") or rope),
            tie_embeddings=bool(c.get("tie_word_embeddings", False)),
            qkv_bias=family == "qwen2",
            qk_norm=family in ("qwen3", "qwen3_moe"),
            embed_conv=0,
            context=int(c.get("max_position_embeddings") or 0),
        )
    except (TypeError, ValueError, ArithmeticError) as e:
        raise InputError(f"{path}: {e}") from e


def _check_numbers(path: Path, c: dict) -> None:
    """Numbers of a wrong type or beyond all bounds, before anything is made of them."""
    for name, (low, high) in BOUNDS.items():
        value = c.get(name)
        if value is None and name not in SHAPE:
            continue
        right = type(value) is int or (isinstance(low, float) and type(value) is float)
        if not right or not low <= value <= high:
            kind = "a number" if isinstance(low, float) else "a whole number"
            raise InputError(f"{path}: {name} must be {kind} from {low:g} to {high:g}, found {_shown(value)}")
    if c["num_hidden_layers"] * (max(c.get(name) or 0 for name in EXPERT_COUNTS)) > MOST_EXPERTS:
        raise InputError(f"{path}: more than {MOST_EXPERTS:,} experts in all layers")


def _shown(value: object) -> str:
    return f"{value!r:.40}" if not isinstance(value, int) or abs(value) < 1 << 99 else "a very large number"


def _deepseek(path: Path, c: dict) -> dict:
    """Latent attention and experts of DeepSeek-V3, by the fields of the same names."""
    found = {}
    for ours, kind in (("latent", LatentConfig), ("experts", ExpertsConfig)):
        given = {f.name: c[f.name] for f in fields(kind) if c.get(f.name) is not None}
        required = [f.name for f in fields(kind) if f.default is MISSING]
        if missing := [name for name in required if name not in given]:
            raise InputError(f"{path}: field {missing[0]} is missing")
        found[ours] = given
    found["latent"]["interleaved"] = bool(c.get("rope_interleave", True))
    latent, experts = LatentConfig(**found["latent"]), ExpertsConfig(**found["experts"])
    return {"latent": latent, "experts": experts, "head_size": 0, "n_kv_heads": c["num_attention_heads"]}


QWEN3_MOE = {  # config.json → ExpertsConfig
    "num_experts": "n_routed_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "moe_intermediate_size": "moe_intermediate_size",
}


def _qwen3_moe(path: Path, c: dict) -> dict:
    """Experts of Qwen3, of which none is shared; layers with a plain MLP must be the first ones."""
    c = {"num_experts": c.get("num_local_experts")} | c  # which transformers 5 calls them
    if missing := [name for name in QWEN3_MOE if c.get(name) is None]:
        raise InputError(f"{path}: field {missing[0]} is missing")
    dense = c.get("mlp_only_layers") or []
    if c.get("decoder_sparse_step", 1) != 1 or dense != [*range(len(dense))]:
        raise InputError(
            f"{path}: decoder_sparse_step other than 1, or mlp_only_layers in between, is not supported"
        )
    shape = {ours: c[theirs] for theirs, ours in QWEN3_MOE.items()}
    norm = bool(c.get("norm_topk_prob", False))
    more: dict[str, Any] = {
        "n_shared_experts": 0,
        "norm_topk_prob": norm,
        "first_k_dense_replace": len(dense),
    }
    return {"experts": ExpertsConfig(**shape, **more, scores="softmax")}


ROPE = {  # rope_type: kind, {its field: config.json's}
    "llama3": (
        RopeScaling,
        {n: n for n in ("factor", "low_freq_factor", "high_freq_factor")}
        | {"original_length": "original_max_position_embeddings"},
    ),
    "yarn": (
        Yarn,
        {f.name: f.name for f in fields(Yarn)} | {"original_length": "original_max_position_embeddings"},
    ),
}


def _scaling(path: Path, rope: dict) -> RopeScaling | Yarn | None:
    name = rope.get("rope_type", rope.get("type", "default"))
    if name == "default":
        return None
    if name not in ROPE:
        raise InputError(f"{path}: rope_type {name!r} is not supported (default, {', '.join(ROPE)} are)")
    if not rope.get("truncate", True):
        raise InputError(f"{path}: rope scaling with truncate false is not supported")
    kind, names = ROPE[name]
    given = {ours: float(rope[theirs]) for ours, theirs in names.items() if rope.get(theirs) is not None}
    for f in fields(kind):
        if f.default is MISSING and f.name not in given:
            raise InputError(f"{path}: rope scaling of type {name} has no field {names[f.name]!r}")
    return kind(**given)


def load(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    halved: Callable[[str, Tensor], bool] = lambda name, tensor: False,
) -> Model:
    """The model of a folder, shard by shard: no more memory than the weights and one tensor. Parameters are
    in `dtype`, or in bf16 where `halved`(name, tensor)."""
    model, wanted = _empty(Path(folder))
    for name, tensor in _tensors(Path(folder)):
        if place := wanted.get(name.removeprefix("model.")):
            half = halved(place.parameter, tensor)
            _put(model, place, tensor.to(torch.bfloat16 if half else dtype))
    return model


def lazy(folder: str | Path) -> Model:
    """The model of a folder without weights: its `source` reads them one at a time, in fp32."""
    folder = Path(folder)
    model, wanted = _empty(folder)
    at: dict[str, tuple[Path, str]] = {}  # name in the folder, without "model." → file, name there
    for path in _files(folder):
        with _opened(path) as f:
            at |= {name.removeprefix("model."): (path, name) for name in f.keys()}  # noqa: SIM118

    def read(places: list[Place]) -> Tensor:
        tensors = []
        for place in places:
            path, name = at[place.name]
            with _opened(path) as f:
                tensors.append(f.get_tensor(name).float())
        return tensors[0] if places[0].expert is None else torch.stack(tensors)

    parts: dict[str, list[Place]] = {}
    for place in wanted.values():
        parts.setdefault(place.parameter, []).append(place)
    model.source = {parameter: partial(read, places) for parameter, places in parts.items()}
    return model


def _empty(folder: Path) -> tuple[Model, dict[str, Place]]:
    """The model of a folder on the meta device, and where its tensors belong; all of them are there."""
    config = to_config(folder / "config.json")
    found = {name.removeprefix("model."): shape for name, shape in _shapes(folder)}
    _compare(folder, config, found)
    with torch.device("meta"):
        model = Model(config)
    wanted = {place.name: place for place in _places(model)}
    for name in wanted:
        if name not in found:
            missing = len(wanted.keys() - found.keys())
            raise InputError(f"{folder}: tensor model.{name} is missing ({missing} are)")
    for name, shape in found.items():
        if name in wanted and shape != wanted[name].shape:
            shapes = f"{shape}, by config.json {wanted[name].shape}"
            raise InputError(f"{folder}: tensor model.{name} has shape {shapes}")
        if name not in wanted and not _further(name, config):
            raise InputError(f"{folder}: tensor {name} does not belong to the model of config.json")
    _check_tokenizer(folder, config)
    return model, wanted


class Place(NamedTuple):
    """Where a tensor of a model folder belongs: a parameter, or one slice of a stack of experts."""

    name: str  # in the folder, without "model."
    shape: list[int]
    parameter: str
    expert: int | None = None

    @property
    def full_name(self) -> str:
        return self.name if self.name.startswith("lm_head") else f"model.{self.name}"


def _places(model: Model) -> Iterator[Place]:
    for parameter, p in model.named_parameters():
        parent, _, last = parameter.rpartition(".")
        if parent.endswith(".adapter"):  # part of another tensor (see `weights`)
            continue
        if parent.endswith("mlp.experts"):
            for i in range(len(p)):
                yield Place(f"{parent}.{i}.{last}.weight", list(p.shape[1:]), parameter, i)
        else:
            yield Place(parameter, list(p.shape), parameter)


def _put(model: Model, place: Place, tensor: Tensor) -> None:
    """A tensor in its place of a model that began without any."""
    parent, _, last = place.parameter.rpartition(".")
    module = model.get_submodule(parent)
    p = getattr(module, last)
    if place.expert is None:
        setattr(module, last, torch.nn.Parameter(tensor, p.requires_grad))
        return
    if p.is_meta:
        p = torch.nn.Parameter(torch.empty(p.shape, dtype=tensor.dtype), p.requires_grad)
        setattr(module, last, p)
    p.data[place.expert] = tensor


def _compare(folder: Path, config: ModelConfig, found: dict[str, list[int]]) -> None:
    """Refuse a config.json of other layers, experts or width than the tensors, before a model is made."""
    layers = {int(name.split(".")[1]) for name in found if re.match(r"layers\.[0-9]{1,6}\.", name)}
    if missing := [i for i in range(config.n_layers) if i not in layers]:
        raise InputError(f"{folder}: tensor model.layers.{missing[0]}.input_layernorm.weight is missing")
    sparse = config.n_layers - config.experts.first_k_dense_replace if config.experts else 0
    if config.experts and sparse * config.experts.n_routed_experts > len(found):
        raise InputError(f"{folder}: {len(found)} tensors are too few for the experts of config.json")
    shape, embeddings = [config.vocab_size, config.dim], found.get("embed_tokens.weight")
    if embeddings != shape:
        raise InputError(
            f"{folder}: tensor model.embed_tokens.weight "
            + (f"has shape {embeddings}, by config.json {shape}" if embeddings else "is missing")
        )


def _further(name: str, config: ModelConfig) -> bool:
    """Whether a tensor that the model does not have may be there: of layers for predicting several tokens,
    which follow DeepSeek's last, or one that is made from others."""
    parts = name.split(".")
    if config.experts and parts[0] == "layers" and parts[1].isdecimal():
        return int(parts[1]) >= config.n_layers
    return name == "lm_head.weight" and config.tie_embeddings or name.endswith("rotary_emb.inv_freq")


def _files(folder: Path) -> list[Path]:
    """Those of the weights."""
    index = folder / "model.safetensors.index.json"
    shards = ["model.safetensors"]
    if index.is_file():
        weights = read_json(index).get("weight_map")
        if not isinstance(weights, dict) or not all(isinstance(s, str) for s in weights.values()):
            raise InputError(f"{index}: field weight_map is missing, or not the shard of each tensor")
        shards = sorted(set(weights.values()))
    for shard in shards:
        if (folder / shard).resolve().parent != folder.resolve():
            raise InputError(f"{index}: shard {shard!r} is not in the folder")
    return [folder / shard for shard in shards]


@contextmanager
def _opened(path: Path):
    if not path.is_file():
        raise InputError(f"{path} is missing")
    try:
        with safe_open(str(path), framework="pt") as f:
            yield f
    except (SafetensorError, OSError) as e:
        raise InputError(f"cannot read {path}: {e}") from e


def _shapes(folder: Path):
    """(name, shape) of all tensors; reads no weights."""
    for path in _files(folder):
        with _opened(path) as f:
            for name in f.keys():  # noqa: SIM118
                yield name, f.get_slice(name).get_shape()


def _tensors(folder: Path):
    """(name, tensor) of all files."""
    for path in _files(folder):
        with _opened(path) as f:
            for name in f.keys():  # noqa: SIM118
                yield name, f.get_tensor(name)


def _check_tokenizer(folder: Path, config: ModelConfig) -> None:
    """The tokenizer, where there is one, has no id beyond the embeddings."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises a bare Exception
        raise InputError(f"{path}: not a tokenizer: {e}") from e
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= config.vocab_size:
        raise InputError(
            f"{path}: token id {largest} is beyond vocab_size {config.vocab_size} of config.json"
        )


def save(folder: str | Path, model: Model, source: str | Path | None = None, writes: bool = True) -> None:
    """Write a model so that the ecosystem reads it, in files of about a gigabyte, tensor by tensor: nobody
    holds more than one beside the model. Tokenizer and generation files come from `source`.

    Every rank calls it for a model that has its weights elsewhere, and goes through all of them; only the one
    that `writes` does.
    """
    folder, config = Path(folder), model.config
    if not writes:
        for _ in weights(model) if model.source else ():
            pass
        return
    folder.mkdir(parents=True, exist_ok=True)
    told = read_json(Path(source) / "config.json") if source else {}
    told = {k: v for k, v in told.items() if k not in ("dtype", "torch_dtype")}  # of the weights there
    write_atomically(folder / "config.json", json.dumps(told | from_config(config, model), indent=2))
    for name in BESIDE:
        if source and (Path(source) / name).is_file():
            shutil.copy(Path(source) / name, folder / name)
    dtype = _dtype(model)
    places = list(_places(model))
    sizes = [math.prod(place.shape) * dtype.itemsize for place in places]
    begins = itertools.accumulate(sizes[:-1], initial=0)
    files = [
        [places[i] for i, _ in group]
        for _, group in itertools.groupby(enumerate(begins), lambda x: x[1] // FILE)
    ]
    where: dict[str, str] = {}
    tensors = weights(model)
    for number, file in enumerate(files, 1):
        name = (
            f"model-{number:05d}-of-{len(files):05d}.safetensors" if len(files) > 1 else "model.safetensors"
        )
        _write(folder / name, file, dtype, tensors)
        where |= {place.full_name: name for place in file}
    index = folder / "model.safetensors.index.json"
    index.unlink(missing_ok=True)
    for old in folder.glob("model*.safetensors"):
        if old.name not in where.values():
            old.unlink()
    if len(files) > 1:
        told = {"metadata": {"total_size": sum(sizes)}, "weight_map": where}
        write_atomically(index, json.dumps(told, indent=1))


def _write(
    path: Path, places: list[Place], dtype: torch.dtype, tensors: Iterator[tuple[str, Tensor]]
) -> None:
    """The next tensors as a file of safetensors: the length of its header, the header, the numbers."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for place in places:
        begin, end = end, end + math.prod(place.shape) * dtype.itemsize
        kind = {"dtype": CODES[dtype], "shape": place.shape, "data_offsets": [begin, end]}
        header[place.full_name] = kind
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8 bytes
    part = path.with_name(f"{path.name}.part")
    with open(part, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in itertools.islice(tensors, len(places)):
            f.write(tensor.to("cpu", dtype).contiguous().view(-1).view(torch.uint8).numpy())
    part.replace(path)


def _dtype(model: Model) -> torch.dtype:
    """The one that holds all weights: fp32 for a model of which parts are in bf16."""
    if model.source:
        return torch.float32
    return reduce(torch.promote_types, {p.dtype for p in model.parameters()})


def weights(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of all weights, as a model folder holds them, one whole tensor at a time, with the
    updates of adapters.

    Of a model with a `source` every rank goes through all of it, since each tensor may have to be gathered.
    """
    parameters, last, whole = dict(model.named_parameters()), "", None
    for place in _places(model):
        if place.parameter != last:
            last = place.parameter
            whole = model.source[last]() if model.source else parameters[last].detach()
            layer = model.get_submodule(last.rpartition(".")[0])
            if last.endswith(".weight") and getattr(layer, "adapter", None) is not None:
                whole = whole + layer.adapter.update().detach()
        yield place.full_name, whole if place.expert is None else whole[place.expert]


def save_config(folder: Path, model: Model, dtype: str) -> None:
    """config.json alone, for weights that are in `dtype` ("fp32", "bf16")."""
    told = {"torch_dtype": {"fp32": "float32", "bf16": "bfloat16"}[dtype]}
    write_atomically(folder / "config.json", json.dumps(from_config(model.config, model) | told, indent=2))


def from_config(config: ModelConfig, model: Model) -> dict:
    """The fields of config.json; positions of the rotary embedding in the older and the newer form."""
    dtype = str(_dtype(model)).removeprefix("torch.")
    if config.embed_conv:
        shape = {k: v for k, v in config.to_dict().items() if v is not None}
        return {"model_type": OWN, "architectures": ["Nanov2ForCausalLM"], "torch_dtype": dtype} | shape
    family = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    rope: dict[str, Any] = {"rope_type": "default"}
    own: dict[str, Any] = {}
    if s := config.rope_scaling:
        kind = next(name for name, (kind, _) in ROPE.items() if isinstance(s, kind))
        written = {theirs: getattr(s, ours) for ours, theirs in ROPE[kind][1].items()}
        rope = {"rope_type": kind} | {k: v for k, v in written.items() if v}
        rope["original_max_position_embeddings"] = int(s.original_length)
    if config.latent and config.experts:
        family = "deepseek_v3"
        own = asdict(config.latent) | asdict(config.experts)
        own |= {"q_lora_rank": config.latent.q_lora_rank or None, "num_nextn_predict_layers": 0}
        own |= {
            "rope_interleave": own.pop("interleaved"),
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
        }
        del own["scores"]
        own |= {"head_dim": config.latent.qk_rope_head_dim}
    elif config.experts and config.experts.scores == "softmax" and config.qk_norm:
        family = "qwen3_moe"
        own = {theirs: getattr(config.experts, ours) for theirs, ours in QWEN3_MOE.items()}
        own |= {"norm_topk_prob": config.experts.norm_topk_prob, "decoder_sparse_step": 1}
        own |= {"mlp_only_layers": [*range(config.experts.first_k_dense_replace)]}
    elif config.latent or config.experts:
        raise InputError("a model with such a mixture of attention and experts has no Hugging Face form")
    shape = {theirs: getattr(config, ours) for theirs, ours in SHAPE.items()}
    return (
        shape
        | {
            "model_type": family,
            "architectures": [FAMILIES[family]],
            "num_key_value_heads": config.n_kv_heads,
            "head_dim": config.head_dim,
            "hidden_act": "silu",
            "tie_word_embeddings": config.tie_embeddings,
            "rope_theta": config.rope_theta,
            "rope_scaling": rope if config.rope_scaling else None,
            "rope_parameters": rope | {"rope_theta": config.rope_theta},
            "torch_dtype": dtype,
        }
        | ({"max_position_embeddings": config.context} if config.context else {})
        | own
    )


def describe(folder: Path) -> str:
    config = to_config(folder / "config.json")
    with torch.device("meta"):
        model = Model(config)
    shape = ", ".join(f"{k} {v}" for k, v in config.to_dict().items() if v not in (False, None))
    family = read_json(folder / "config.json")["model_type"]
    active = f", {model.n_active / 1e6:,.1f} M of them active for a token" if config.experts else ""
    return f"{family}, {model.n_params / 1e6:,.1f} M parameters{active}\n{shape}"


def main() -> None:
    if sys.argv[1:] in (["-h"], ["--help"]):
        return print(__doc__)
    if len(sys.argv) != 3 or sys.argv[1] not in ("show", "check"):
        sys.exit("error: write hf show FOLDER, or hf check FOLDER")
    folder = Path(sys.argv[2])
    try:
        print(describe(folder))
        if sys.argv[1] == "check":
            load(folder, torch.bfloat16)
            print("weights and tokenizer fit")
    except InputError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
