"""Judges and provers outside the process: any OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp's server).

The official client does the talking, with its retries (429, 5xx, dropped connections; Retry-After is
honoured) and time-outs. Answers go to a cache on disk as they arrive, so a run that is stopped asks
nothing twice. The key is read from OPENAI_API_KEY and written nowhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from nanov2.errors import InputError
from nanov2.natural import Messages
from nanov2.records import parse_json, read_lines


@dataclass(frozen=True)
class Answer:
    """One completion. `text` is None where it was cut off by the limit: no answer, not a wrong one."""

    text: str | None
    tokens: int = 0


class Endpoint:
    """Asks `model` at `url`, at most `concurrency` requests at a time."""

    def __init__(
        self,
        url: str,
        model: str,
        cache: Path | None = None,
        concurrency: int = 16,
        retries: int = 6,
        timeout: float = 600.0,
        max_tokens: int = 8192,
        temperature: float = 1.0,
    ):
        try:
            import openai
        except ImportError as e:
            raise InputError("endpoints need the openai library: pip install openai") from e
        self.openai, self.url, self.model = openai, url, model
        self.concurrency, self.max_tokens, self.temperature = concurrency, max_tokens, temperature
        self.options = {
            "base_url": url,
            "api_key": os.environ.get("OPENAI_API_KEY", "none"),
            "max_retries": retries,
            "timeout": timeout,
        }
        self.cache = Cache(cache)

    def ask(self, questions: list[Messages], n: int = 1) -> list[list[Answer]]:
        """n answers to each question. InputError, with what was done kept, where the endpoint gives up."""
        return asyncio.run(self._ask(questions, n))

    async def _ask(self, questions: list[Messages], n: int) -> list[list[Answer]]:
        gate = asyncio.Semaphore(self.concurrency)
        async with self.openai.AsyncOpenAI(**self.options) as client:
            tasks = [asyncio.create_task(self._one(client, gate, q, i)) for q in questions for i in range(n)]
            try:
                flat = await asyncio.gather(*tasks)
            except self.openai.OpenAIError as e:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise InputError(
                    f"{self.url}: {self._reason(e)}; answers so far are kept, start again"
                ) from e
        return [list(flat[i * n : (i + 1) * n]) for i in range(len(questions))]

    async def _one(self, client, gate: asyncio.Semaphore, messages: Messages, index: int) -> Answer:
        key = self.key(messages, index)
        if (known := self.cache.get(key)) is not None:
            return known
        async with gate:
            reply = await client.chat.completions.create(
                model=self.model,
                messages=messages,
                temperature=self.temperature,
                max_tokens=self.max_tokens,
                seed=int(key[:7], 16),  # the samples of one question differ, and are the same again
            )
        choice = reply.choices[0] if reply.choices else None
        whole = choice is not None and choice.finish_reason != "length" and choice.message.content is not None
        tokens = reply.usage.completion_tokens if reply.usage else 0
        answer = Answer(choice.message.content if whole else None, tokens)
        self.cache.put(key, answer)
        return answer

    def key(self, messages: Messages, index: int) -> str:
        parts = [self.model, messages, self.temperature, self.max_tokens, index]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()

    def _reason(self, error: Exception) -> str:
        if isinstance(error, self.openai.APITimeoutError):
            return (
                f"no answer within {self.options['timeout']:g} s, {self.options['max_retries']} times again"
            )
        if isinstance(error, self.openai.APIConnectionError):
            return f"cannot connect ({error.__cause__ or error}); is the server running?"
        if isinstance(error, self.openai.APIStatusError):
            return f"status {error.status_code}: {str(error.message)[:300]}"
        return str(error)[:300]


class Cache:
    """Answers by key: in memory, and a line each in a file that is only appended to."""

    def __init__(self, path: Path | None):
        self.path, self.known = path, {}
        if path is None or not path.is_file():
            return
        lines = read_lines(path)
        if lines and not lines[-1].endswith("\n"):  # the last was cut off in writing
            lines.pop()
            path.write_text("".join(lines), encoding="utf-8")
        for number, line in enumerate(lines, 1):
            row = parse_json(line, f"{path}, line {number}")
            try:
                key = row.pop("key")
                self.known[key] = Answer(**row)
            except (TypeError, KeyError, AttributeError) as e:
                raise InputError(f"{path}, line {number}: not a cached answer; delete the line") from e

    def get(self, key: str) -> Answer | None:
        return self.known.get(key)

    def put(self, key: str, answer: Answer) -> None:
        self.known[key] = answer
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as f:
                f.write(json.dumps({"key": key, **asdict(answer)}) + "\n")
