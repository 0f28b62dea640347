"""Authors outside the process: any OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp's server).

The official client does the talking, with its retries (429, 5xx, dropped connections; Retry-After is
honoured). Each answer has a deadline as a whole, and a largest size. Answers go to a cache on disk as they
arrive, so a run that is stopped asks nothing twice. The key is read from OPENAI_API_KEY and written nowhere.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from dataclasses import dataclass
from typing import Annotated, Any

from tqdm import tqdm

from nanov2.errors import InputError
from nanov2.hub.author import Answer, Messages
from nanov2.hub.cache import Cache, question_keys
from nanov2.hub.wire import key_from_environment
from nanov2.settings import Few, TemperatureOrGreedy, Tokens, Within, setting

LARGEST = 1 << 25  # bytes of a reply: 32 MiB, far beyond any answer


@dataclass(frozen=True)
class EndpointConfig:
    """How models of natural language are asked, behind an endpoint or in this process."""

    url: str = setting("", "base URL, up to /v1")
    model: str = setting("", "the model's name there; without url: a local model folder")
    temperature: TemperatureOrGreedy = setting(1.0, "at which answers are drawn")
    max_tokens: Tokens = setting(8192, "limit of an answer; a longer one is cut off, and counted as such")
    concurrency: Few = setting(16, "requests at a time; in this process: rows decoded together")
    retries: Annotated[int, Within(0, 1000)] = setting(6, "of a request that failed in a way that can pass")
    timeout: Annotated[float, Within(0.001, 1e6)] = setting(
        600.0, "seconds for one answer, its last byte included"
    )
    seed: Annotated[int, Within(0, 2**63 - 1)] = setting(0, "draws the samples, where the server heeds it")
    cache: str = setting("", "file of the answers so far (default: in the run folder, or beside --output)")

    @property
    def sampling(self) -> dict:
        """What of the settings an answer hangs on, beside who gives it."""
        return {"temperature": self.temperature, "max_tokens": self.max_tokens, "seed": self.seed}


class Endpoint:
    """Asks `config.model` at `config.url`, at most `concurrency` requests at a time."""

    def __init__(self, config: EndpointConfig):
        try:
            import openai
        except ImportError as e:
            raise InputError('endpoints need the openai library: pip install -e ".[endpoint]"') from e
        if not config.url.startswith(("http://", "https://")):
            raise InputError(f"endpoint: {config.url!r} is not a URL such as http://127.0.0.1:8080/v1")
        if not config.model:
            raise InputError("endpoint: which model? Give --model=NAME, as the server calls it")
        self.openai, self.config = openai, config
        self.key = key_from_environment() or "none"
        self.identity = {"url": config.url.rstrip("/"), "model": config.model} | config.sampling
        self.cache = Cache(config.cache)

    def answers(
        self, questions: list[Messages], n: int = 1, first: int | list[int] = 0
    ) -> list[list[Answer]]:
        """Answers number first … first + n − 1 to each question, of the endless row that each has.

        InputError, with what was done kept, where the endpoint gives up.
        """
        keys = question_keys(self.identity, questions, n, first)
        new = {k: q for q, row in zip(questions, keys, strict=True) for k in row if k not in self.cache}
        if new:
            asyncio.run(self._ask(new))
        return [[self.cache[k] for k in row] for row in keys]

    async def _ask(self, new: dict[str, Messages]) -> None:
        c, gate = self.config, asyncio.Semaphore(self.config.concurrency)
        async with self.openai.AsyncOpenAI(
            base_url=c.url,
            api_key=self.key,
            max_retries=c.retries,
            timeout=c.timeout,
            http_client=_client(c.timeout),
        ) as client:
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
                    messages=[{"role": m["role"], "content": m["content"]} for m in messages],
                    temperature=c.temperature,
                    max_tokens=c.max_tokens,
                    seed=int(key[:7], 16),  # the samples of one question differ, and are the same again
                )
                self.cache[key] = self._read(reply)
            except self.openai.BadRequestError as e:
                if "context" not in str(e.message).lower():
                    raise
                self.cache[key] = Answer(None, 0, "too long")  # one long proof does not end the run
            except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
                raise self._odd(e) from e

    def _read(self, reply) -> Answer:
        try:
            choice = reply.choices[0]
            text, cut = choice.message.content, choice.finish_reason == "length"
        except (AttributeError, LookupError, TypeError) as e:
            raise self._odd(reply) from e
        if not isinstance(text, str | None):
            raise self._odd(text)
        tokens = getattr(getattr(reply, "usage", None), "completion_tokens", None)
        tokens = tokens if type(tokens) is int and 0 <= tokens < 1 << 53 else 0
        missing = "cut off" if cut else "" if text else "empty"
        text = (text or "").encode(errors="replace").decode()  # half a surrogate pair cannot be sent on
        return Answer(None if missing else text, tokens, missing)

    def _odd(self, reply: object) -> InputError:
        try:
            shown = str(reply).replace(self.key, "(key)")[:60]
        except RecursionError:
            shown = "nested too deeply"
        return InputError(
            f"{self.config.url}: a reply that is not a chat completion ({shown!r}); "
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


def _client(seconds: float):
    """An HTTP client whose replies are whole within a time and a size, and never packed."""
    # whichever the openai library uses
    httpx: Any = sys.modules.get("httpx2") or importlib.import_module("httpx")
    transport: Any = httpx.AsyncHTTPTransport

    class Bounded(transport):
        async def handle_async_request(self, request):
            try:
                async with asyncio.timeout(seconds):
                    reply = await super().handle_async_request(request)
                    try:
                        body = await _body(reply)
                    finally:
                        await reply.aclose()
            except TimeoutError as e:
                raise httpx.ReadTimeout("deadline", request=request) from e
            return httpx.Response(reply.status_code, headers=reply.headers, content=body, request=request)

    async def _body(reply) -> bytes:
        if reply.headers.get("content-encoding", "identity") != "identity":
            raise httpx.DecodingError("a packed reply, which was not asked for")
        parts, size = [], 0
        async for part in reply.stream:
            parts.append(part)
            size += len(part)
            if size > LARGEST:
                raise httpx.DecodingError(f"a reply of more than {LARGEST >> 20} MiB")
        return b"".join(parts)

    return httpx.AsyncClient(
        transport=Bounded(limits=httpx.Limits(max_connections=None)),
        headers={"Accept-Encoding": "identity"},
        timeout=seconds,
        follow_redirects=True,
    )
