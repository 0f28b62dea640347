"""Authors in this process: a model that is in memory, and a model folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from tqdm import tqdm

from nanov2.distributed.checkpoints import HASHING
from nanov2.distributed.ranks import derive_seed
from nanov2.errors import InputError
from nanov2.hub import hf
from nanov2.hub.author import Answer, Messages
from nanov2.hub.cache import Cache, question_keys
from nanov2.hub.chat import ChatTokenizer
from nanov2.hub.endpoint import EndpointConfig
from nanov2.model.decoder import Model
from nanov2.model.rollout import Rollout, Sampling, Served
from nanov2.model.sampler import sample


class Speech(Protocol):
    """What an author must know of a language (domains/language.py): questions to ids, rollouts to texts."""

    tokenizer: ChatTokenizer

    def ids(self, messages: Messages) -> list[int]: ...
    def answer(self, rollout: Rollout) -> str | None: ...


S = TypeVar("S", bound=Speech)


class TokenAuthor(Generic[S]):
    """Whatever `sample` samples: a model in memory, or one that an engine serves. `language` is bound to its
    tokenizer."""

    def __init__(
        self,
        sampled: Model | Served,
        language: S,
        how: Sampling,
        seed: int = 0,
        identity: dict | None = None,
    ):
        self.sampled, self.language, self.how, self.seed = sampled, language, how, seed
        told = {"temperature": how.temperature, "max_tokens": how.max_tokens, "seed": seed}
        self.identity = (identity or {}) | told

    def answers(
        self, questions: list[Messages], n: int = 1, first: int | list[int] = 0
    ) -> list[list[Answer]]:
        """Answers number first … first + n − 1 to each question."""
        firsts = first if isinstance(first, list) else [first] * len(questions)
        asked = [self.language.ids(q) for q in questions]
        seeds = [
            [derive_seed(self.seed, ids, i) for i in range(f, f + n)]
            for ids, f in zip(asked, firsts, strict=True)
        ]
        rollouts = sample(self.sampled, self.language.tokenizer, asked, n, self.how, seeds)
        found = [self._answer(r) for r in rollouts]
        return [found[i * n : (i + 1) * n] for i in range(len(questions))]

    def _answer(self, rollout: Rollout) -> Answer:
        text, tokens = self.language.answer(rollout) or None, len(rollout.ids)
        if rollout.truncated:
            return Answer(None, tokens, "cut off" if tokens else "too long")
        missing = "" if text else "empty" if not rollout.turns[-1] else "cut off"
        return Answer(text, tokens, missing)


class OwnAuthor(TokenAuthor[S]):
    """A model in memory, for good: `model`."""

    def __init__(self, model: Model, language: S, how: Sampling, seed: int = 0, identity: dict | None = None):
        self.model = model.eval().requires_grad_(False)
        super().__init__(model, language, how, seed, identity)


class FolderAuthor(OwnAuthor[S]):
    """The model of the folder `config.model`. Answers are kept as an endpoint's are.

    `language` makes the language from the folder's tokenizer.
    """

    def __init__(self, config: EndpointConfig, language: Callable[[ChatTokenizer], S]):
        folder, cuda = Path(config.model), torch.cuda.is_available()
        if not (folder / "config.json").is_file():
            raise InputError(
                f"{config.model!r} is no model folder (no config.json); a name needs --endpoint=URL"
            )
        model = hf.load(folder, torch.bfloat16 if cuda else torch.float32).to("cuda" if cuda else "cpu")
        how = Sampling(config.temperature, config.max_tokens, config.concurrency)
        told = {"weights": fingerprint(folder)}
        super().__init__(model, language(ChatTokenizer.load(folder)), how, config.seed, told)
        self.config, self.cache = config, Cache(config.cache)

    def answers(
        self, questions: list[Messages], n: int = 1, first: int | list[int] = 0
    ) -> list[list[Answer]]:
        """Answers number first … first + n − 1 to each question."""
        firsts = first if isinstance(first, list) else [first] * len(questions)
        keys = question_keys(self.identity, questions, n, firsts)
        new = [i for i, row in enumerate(keys) if any(key not in self.cache for key in row)]
        at_once = max(1, self.config.concurrency // max(1, n))  # more would fill memory with prompts
        with tqdm(total=len(new) * n, desc=self.config.model, unit="answer", disable=None) as bar:
            for begin in range(0, len(new), at_once):
                batch = new[begin : begin + at_once]
                rows = super().answers([questions[i] for i in batch], n, [firsts[i] for i in batch])
                for i, row in zip(batch, rows, strict=True):
                    for key, answer in zip(keys[i], row, strict=True):
                        if key not in self.cache:
                            self.cache[key] = answer
                bar.update(len(batch) * n)
        return [[self.cache[k] for k in row] for row in keys]


def fingerprint(folder: Path) -> str:
    """A hash of all that a folder's answers hang on: weights, shape, tokenizer and template."""
    kinds = (".safetensors", ".json", ".jinja")
    paths = sorted(p for p in Path(folder).iterdir() if p.is_file() and p.suffix in kinds)
    digest = hashlib.sha256()
    with ThreadPoolExecutor(HASHING) as pool:
        for path, own in zip(paths, pool.map(_file_digest, paths), strict=True):
            digest.update(path.name.encode() + own)
    return digest.hexdigest()


def _file_digest(path: Path) -> bytes:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").digest()
