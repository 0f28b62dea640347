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
from typing import Annotated

from tqdm import tqdm

from nanov2.errors import InputError
from nanov2.hub.author import Answer, Messages
from nanov2.records import parse_json
from nanov2.settings import Few, TemperatureOrGreedy, Tokens, Within, setting


@dataclass(frozen=True)
class EndpointConfig:
    """How models of natural language are asked, behind an endpoint or in this process."""

    url: str = setting("", "base URL, up to /v1")
    model: str = setting("", "the model's name there; without url: a local model folder")
    temperature: TemperatureOrGreedy = setting(1.0, "at which answers are drawn")
    max_tokens: Tokens = setting(8192, "limit of an answer; a longer one is cut off, and counted as such")
    concurrency: Few = setting(16, "requests at a time; in this process: rows decoded together")
    retries: Annotated[int, Within(0, 1000)] = setting(6, "of a request that failed in a way that can pass")
    timeout: Annotated[float, Within(0.001, 1e6)] = setting(600.0, "seconds for one answer")
    seed: Annotated[int, Within(0, 2**63 - 1)] = setting(0, "draws the samples, where the server heeds it")
    cache: str = setting("runs/answers.jsonl", 'file of the answers so far; "" = none is kept')


class Endpoint:
    """Asks `config.model` at `config.url`, at most `concurrency` requests at a time."""

    def __init__(self, config: EndpointConfig):
        try:
            import openai
        except ImportError as e:
            raise InputError('endpoints need the openai library: pip install "nanov2[endpoint]"') from e
        if not config.url.startswith(("http://", "https://")):
            raise InputError(f"endpoint: {config.url!r} is not a URL such as http://127.0.0.1:8080/v1")
        if not config.model:
            raise InputError("endpoint: which model? Give --model=NAME, as the server calls it")
        self.openai, self.config = openai, config
        self.key = os.environ.get("OPENAI_API_KEY", "none")
        self.cache = Cache(config.cache)

    def ask(self, questions: list[Messages], n: int = 1, first: int | list[int] = 0) -> list[list[Answer]]:
        """Answers number first … first + n − 1 to each question, of the endless row that each has.

        InputError, with what was done kept, where the endpoint gives up.
        """
        keys = question_keys(self.config, questions, n, first)
        new = {k: q for q, row in zip(questions, keys, strict=True) for k in row if k not in self.cache}
        if new:
            asyncio.run(self._ask(new))
        return [[self.cache[k] for k in row] for row in keys]

    async def _ask(self, new: dict[str, Messages]) -> None:
        c, gate = self.config, asyncio.Semaphore(self.config.concurrency)
        options = {"base_url": c.url, "api_key": self.key, "max_retries": c.retries, "timeout": c.timeout}
        async with self.openai.AsyncOpenAI(**options) as client:
            tasks = [asyncio.create_task(self._one(client, gate, key, q)) for key, q in new.items()]
            try:
                with tqdm(total=len(tasks), desc=c.model, unit="answer", disable=None) as bar:
                    for task in asyncio.as_completed(tasks):
                        await task
                        bar.update()
            except self.openai.OpenAIError as e:
                raise InputError(f"{c.url}: {self._reason(e)}; answers so far are kept, start again") from e
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, client, gate: asyncio.Semaphore, key: str, messages: Messages) -> None:
        c = self.config
        async with gate:
            try:
                reply = await client.chat.completions.create(
                    model=c.model,
                    messages=messages,
                    temperature=c.temperature,
                    max_tokens=c.max_tokens,
                    seed=int(key[:7], 16),  # the samples of one question differ, and are the same again
                )
                self.cache[key] = self._read(reply)
            except self.openai.BadRequestError as e:
                if "context" not in str(e.message).lower():
                    raise
                self.cache[key] = Answer(None, 0, "too long")  # one long proof does not end the run
            except json.JSONDecodeError as e:
                raise self._odd(e) from e

    def _read(self, reply) -> Answer:
        try:
            choice, usage = reply.choices[0], reply.usage
            text, cut = choice.message.content, choice.finish_reason == "length"
        except (AttributeError, IndexError, TypeError) as e:
            raise self._odd(reply) from e
        missing = "cut off" if cut else "" if text else "empty"
        text = (text or "").encode(errors="replace").decode()  # half a surrogate pair cannot be sent on
        return Answer(None if missing else text, usage.completion_tokens if usage else 0, missing)

    def _odd(self, reply: object) -> InputError:
        return InputError(
            f"{self.config.url}: a reply that is not a chat completion ({str(reply)[:60]!r}); "
            "does the URL end where the API begins, mostly in /v1?"
        )

    def _reason(self, error: Exception) -> str:
        c = self.config
        if isinstance(error, self.openai.APITimeoutError):
            return f"no answer within {c.timeout:g} s, {c.retries} times again"
        if isinstance(error, self.openai.APIConnectionError):
            return f"cannot connect ({error.__cause__ or error}); is the server running?"
        text = " ".join(str(getattr(error, "message", error)).replace(self.key, "(key)").split())[:300]
        status = getattr(error, "status_code", None)
        return f"status {status}: {text}" if status else text


def question_keys(
    config: EndpointConfig, questions: list[Messages], n: int, first: int | list[int]
) -> list[list[str]]:
    """The keys of answers first … first + n − 1 to each question; `first` may be one for each."""
    firsts = first if isinstance(first, list) else [first] * len(questions)
    return [
        [question_key(config, q, i) for i in range(f, f + n)] for q, f in zip(questions, firsts, strict=True)
    ]


def question_key(config: EndpointConfig, messages: Messages, index: int) -> str:
    """What an answer hangs on, as a hash: model, messages, sampling, and which of the samples it is."""
    parts = [config.model, messages, config.temperature, config.max_tokens, config.seed, index]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Cache:
    """Answers by key: in memory, and a line each in a file that is only appended to."""

    def __init__(self, path: str | Path = ""):
        self.path, self.known = Path(path) if path else None, {}
        if self.path is None or not self.path.exists():
            return
        try:
            data = self.path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:  # the last line was cut off in writing
                with open(self.path, "r+b") as f:
                    f.truncate(len(whole))
        except OSError as e:
            raise InputError(f"cannot read {self.path}: {e.strerror}") from e
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            row = parse_json(line, f"{self.path}, line {number}")
            try:
                key, answer = row.pop("key"), Answer(**row)
                if not isinstance(key, str) or not isinstance(answer.text, str | None):
                    raise TypeError
                self.known[key] = answer
            except (TypeError, KeyError, AttributeError) as e:
                raise InputError(f"{self.path}, line {number}: not a kept answer; delete the line") from e

    def __contains__(self, key: str) -> bool:
        return key in self.known

    def __getitem__(self, key: str) -> Answer:
        return self.known[key]

    def __setitem__(self, key: str, answer: Answer) -> None:
        self.known[key] = answer
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as f:
                f.write(json.dumps({"key": key, **asdict(answer)}) + "\n")
        except OSError as e:
            raise InputError(f"cannot write {self.path}: {e.strerror}; start again once there is room") from e
