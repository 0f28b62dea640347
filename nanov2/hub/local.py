"""Answers from a model in this process."""

from __future__ import annotations

from pathlib import Path

import torch
from tqdm import tqdm

from nanov2.distributed.ranks import derive_seed
from nanov2.hub import hf
from nanov2.hub.author import Answer, Messages
from nanov2.hub.chat import ChatTokenizer
from nanov2.hub.endpoint import Cache, EndpointConfig, question_keys
from nanov2.model.rollout import Rollout, Sampling
from nanov2.model.sampler import sample


class LocalChat:
    """Asks the model of the folder `config.model`. Answers are kept as an endpoint's are."""

    def __init__(self, config: EndpointConfig):
        folder = Path(config.model)
        cuda = torch.cuda.is_available()
        self.config, self.tokenizer = config, ChatTokenizer.load(folder)
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
        text = self.tokenizer.answer(rollout.turns[-1])
        missing = "cut off" if rollout.truncated else "" if text else "empty"
        return Answer(None if missing else text, len(rollout.ids), missing)
