"""A model folder of the ecosystem in this process: its chat template, and answers from it.

`LocalChat` is asked like an `Endpoint`.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import jinja2
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as HFTokenizer
from tqdm import tqdm

from nanov2.distributed.ranks import derive_seed
from nanov2.errors import InputError
from nanov2.hub import hf
from nanov2.hub.author import Answer, Messages
from nanov2.hub.endpoint import Cache, EndpointConfig, question_keys
from nanov2.model.decoder import Model
from nanov2.model.rollout import Rollout, Sampling
from nanov2.model.sampler import sample


class ChatTokenizer:
    """tokenizer.json and the chat template of a folder. `end` is the id that ends an answer."""

    def __init__(self, folder: str | Path):
        self.folder = folder = Path(folder)
        path, settings = folder / "tokenizer.json", hf.read_json(folder / "tokenizer_config.json")
        try:
            self.backend = HFTokenizer.from_file(str(path))
        except Exception as e:  # the library raises a bare Exception
            raise InputError(f"{path}: not a tokenizer: {e}") from e
        self.special = {t.content for t in self.backend.get_added_tokens_decoder().values() if t.special}
        self.names = {k: _content(settings.get(k)) for k in ("bos_token", "eos_token", "pad_token")}
        self.end = self.backend.token_to_id(self.names["eos_token"] or "")
        if self.end is None:
            raise InputError(f"{folder / 'tokenizer_config.json'}: field eos_token is missing or no token")
        self.template = _template(folder, settings)

    @cached_property
    def context(self) -> int:
        """Tokens that the model can attend to."""
        return hf.read_json(self.folder / "config.json").get("max_position_embeddings", 1 << 20)

    def chat(self, messages: Messages) -> list[int]:
        """Ids of a chat up to where the assistant answers. A control token's name in a message is only
        text: a hostile proof cannot open a turn of its own."""
        return self.backend.encode(self._render(messages), add_special_tokens=False).ids

    def turn(self, text: str) -> list[int]:
        """Ids of a further message of the user, from after the end of an answer to where the next begins."""
        mark = "AN ANSWER"
        chat = [
            {"role": "user", "content": "A question"},
            {"role": "assistant", "content": mark},
            {"role": "user", "content": text},
        ]
        _, _, after = self._render(chat).rpartition(mark)
        before, end, rest = after.partition(self.names["eos_token"])
        if before.strip() or not end or not rest:
            raise InputError(f"{self.folder}: the chat template does not end an answer with its eos_token")
        return self.backend.encode(rest, add_special_tokens=False).ids

    def _render(self, messages: Messages) -> str:
        told = [m | {"content": self._defuse(m["content"])} for m in messages]
        try:
            return self.template.render(messages=told, add_generation_prompt=True, **self.names)
        except jinja2.TemplateError as e:
            raise InputError(f"the chat template cannot show these messages: {e}") from e

    def encode(self, text: str) -> list[int]:
        """Ids of a text alone."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.backend.decode(ids, skip_special_tokens=False)

    def _defuse(self, text: str) -> str:
        for name in self.special:
            text = text.replace(name, f"{name[0]} {name[1:]}")
        return text


def _content(token: object) -> str:
    """tokenizer_config.json states a token as text or as an object."""
    return str(token.get("content", "") if isinstance(token, dict) else token or "")


def _template(folder: Path, settings: dict) -> jinja2.Template:
    path, found = folder / "chat_template.jinja", settings.get("chat_template")
    if isinstance(found, list):  # several by name
        found = {t.get("name"): t.get("template") for t in found}.get("default")
    if path.is_file():
        found = path.read_text(encoding="utf-8")
    if not isinstance(found, str):
        raise InputError(f"{folder}: no chat template in tokenizer_config.json or chat_template.jinja")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    try:
        return environment.from_string(found)
    except jinja2.TemplateError as e:
        raise InputError(f"{folder}: the chat template is not valid: {e}") from e


def _refuse(reason: str) -> None:
    raise jinja2.TemplateError(reason)


def load_model(folder: Path, device: torch.device | str = "cpu") -> tuple[Model, ChatTokenizer]:
    """A folder's weights in fp32, as they are trained, and its tokenizer."""
    return hf.load(folder).to(device), ChatTokenizer(folder)


def save_model(folder: Path, model: Model, tokenizer: ChatTokenizer) -> None:
    """A folder that transformers, vLLM, SGLang and llama.cpp's converter read."""
    hf.save(folder, model, tokenizer.folder)


class LocalChat:
    """Asks the model of the folder `config.model`. Answers are kept as an endpoint's are."""

    def __init__(self, config: EndpointConfig):
        folder = Path(config.model)
        cuda = torch.cuda.is_available()
        self.config, self.tokenizer = config, ChatTokenizer(folder)
        self.model = hf.load(folder, torch.bfloat16 if cuda else torch.float32).eval().requires_grad_(False)
        self.model.to("cuda" if cuda else "cpu")
        self.cache = Cache(config.cache)

    def ask(self, questions: list[Messages], n: int = 1, first: int | list[int] = 0) -> list[list[Answer]]:
        """Answers number first … first + n − 1 to each question."""
        keys = question_keys(self.config, questions, n, first)
        new = [(q, row) for q, row in zip(questions, keys, strict=True) if row[-1] not in self.cache]
        at_once = max(1, self.config.concurrency // n)  # more would fill memory with prompts
        with tqdm(total=len(new) * n, desc=self.config.model, unit="answer", disable=None) as bar:
            for i in range(0, len(new), at_once):
                self._answer(new[i : i + at_once], n)
                bar.update(len(new[i : i + at_once]) * n)
        return [[self.cache[k] for k in row] for row in keys]

    def _answer(self, batch: list[tuple[Messages, list[str]]], n: int) -> None:
        c = self.config
        asked = [(self.tokenizer.chat(q), row) for q, row in batch]
        fits = [(ids, row) for ids, row in asked if len(ids) < self.tokenizer.context]
        how = Sampling(c.temperature, c.max_tokens, c.concurrency)
        seeds = [derive_seed(c.seed, row[0]) for _, row in fits]
        rollouts = sample(self.model, self.tokenizer, [ids for ids, _ in fits], n, how, seeds)
        found = {row[j]: rollouts[i * n + j] for i, (_, row) in enumerate(fits) for j in range(n)}
        for _, row in asked:
            for key in row:
                self.cache[key] = self._read(found[key]) if key in found else Answer(None, 0, "too long")

    def _read(self, rollout: Rollout) -> Answer:
        text = self.tokenizer.decode(rollout.turns[-1])
        missing = "cut off" if rollout.truncated else "" if text else "empty"
        return Answer(None if missing else text, len(rollout.ids), missing)
