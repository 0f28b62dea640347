"""Finished models on disk: model.safetensors, config.json, tokenizer.json, each written whole or not at all.

Nothing here can run code when it is read. The state of a phase under way is in snapshots.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from nanov2.domains.order.tokenizer import Tokenizer
from nanov2.errors import InputError
from nanov2.model.decoder import Model, ModelConfig
from nanov2.records import write_atomically


def save_model(folder: Path, model: Model, tokenizer: Tokenizer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.json", json.dumps(model.config.to_dict(), indent=1))
    write_atomically(folder / "tokenizer.json", tokenizer.backend.to_str(pretty=True))
    weights = {name: p.detach().cpu().contiguous() for name, p in model.state_dict().items()}
    write_atomically(folder / "model.safetensors", save(weights))


def load_model(folder: Path, device: torch.device | str = "cpu") -> tuple[Model, Tokenizer]:
    """Model and tokenizer of a folder that `save_model` wrote; InputError names what is missing or torn."""
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"no model in {folder}: {name} is missing")
    path = folder / "config.json"
    try:
        config = ModelConfig(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError, RecursionError, ArithmeticError) as e:
        raise InputError(f"{path}: not a model configuration: {e}") from e
    weights = _read(folder / "model.safetensors")
    try:
        if config.n_layers > len(weights):
            raise ValueError(f"{config.n_layers} layers, but {len(weights)} tensors")
        with torch.device("meta"):  # so that an absurd shape costs nothing
            model = Model(config)
        model.load_state_dict(weights, assign=True)
    except (RuntimeError, TypeError, ValueError, ArithmeticError) as e:
        first = str(e).strip().splitlines()
        raise InputError(f"{folder / 'model.safetensors'} does not fit config.json: {' '.join(first)}") from e
    return model.to(device), _tokenizer(folder / "tokenizer.json", config)


def _tokenizer(path: Path, config: ModelConfig) -> Tokenizer:
    try:
        tokenizer = Tokenizer.load(path)
    except Exception as e:  # the library raises nothing narrower
        raise InputError(f"{path}: not a tokenizer of nanov2: {e}") from e
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(f"{path}: {tokenizer.vocab_size} tokens, but the model has {config.vocab_size}")
    return tokenizer


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(str(path), framework="pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise InputError(f"cannot read {path}: {e}; it is damaged or no safetensors file") from e
