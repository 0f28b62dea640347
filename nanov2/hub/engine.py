"""Rollouts by a server: vLLM or SGLang over HTTP, token ids in, token ids and their log-probs out.

    [rollout]
    engine = "vllm"
    urls = ["http://127.0.0.1:8000"]

The contract is that of model/sampler.py. A group's first turn is one request, each later turn one request of
its own, sent as soon as the turn before has ended. After each optimiser step the weights are written in
bf16 to a folder of a memory file system, each rank a share of the tensors, and the servers replace theirs by
them. `load` gives them a version, every answer states the version that it was sampled with, and an answer
of any other is refused. Nothing of vLLM or SGLang is imported.

A server that goes away is waited for, and one that comes back with other weights is given the present ones
again, before a request is sent anew: nothing is drawn twice, and nothing is lost.
"""

from __future__ import annotations

import queue
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from nanov2.distributed.ranks import Ranks, derive_seed
from nanov2.errors import InputError
from nanov2.hub import hf
from nanov2.hub.dialects import DIALECTS, Odd, Reply
from nanov2.hub.server import Server, free_port
from nanov2.hub.wire import Broken, Wire
from nanov2.model.decoder import Model
from nanov2.model.rollout import NextTurn, Rollout, Sampling, Turns
from nanov2.settings import Within, setting

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Seconds = Annotated[float, Within(0.001, 1e6)]


@dataclass(frozen=True)
class RolloutConfig:
    """Who samples while models train: this process, or a server (vLLM, SGLang)."""

    engine: Literal["own", "vllm", "sglang"] = setting("own", "own: in this process")
    urls: tuple[str, ...] = setting((), "of servers that sample the trained model, such as http://host:8000")
    judge_urls: tuple[str, ...] = setting((), 'of servers for the frozen judge, where judge = "engine"')
    start: bool = setting(False, "start a server on this machine for what has no URL, and stop it at the end")
    command: str = setting("", "what starts it, the model folder comes after; default: the engine's own")
    options: str = setting("", 'further options of it, such as "--gpu-memory-utilization 0.4"')
    dtype: Literal["bf16", "fp32"] = setting("bf16", "of the weights that are served")
    folder: str = setting("/dev/shm", "through which weights go: servers must see it under the same name")
    concurrency: Annotated[int, Within(1, 4096)] = setting(256, "requests at a time of one rank")
    seeded: bool = setting(
        False,
        "whether each request has a seed: samples that come again, slower (vLLM's CPU build dies of it)",
    )
    timeout: Seconds = setting(3600.0, "seconds for one answer, its last byte included")
    patience: Seconds = setting(900.0, "seconds that a server may be away or fail before the run ends")

    def __post_init__(self):
        for name in ("urls", "judge_urls"):
            for url in getattr(self, name):
                if not url.startswith(("http://", "https://")):
                    raise ValueError(f"rollout.{name}: {url!r} is not a URL such as http://127.0.0.1:8000")
        if self.engine == "own" and (self.urls or self.judge_urls or self.start):
            raise ValueError('rollout: urls, judge_urls and start are for engine = "vllm" or "sglang"')


@dataclass(frozen=True)
class Request:
    """What is asked about some rollouts that have the same tokens so far."""

    rollouts: list[Rollout]
    seed: int
    most: int  # tokens of the turn

    @property
    def ids(self) -> list[int]:
        return self.rollouts[0].prompt + self.rollouts[0].ids


class Engine:
    """Servers that sample one model. Every rank makes one, and asks about its own prompts.

    `server` is the one that this run started, on the main rank.
    """

    def __init__(
        self, config: RolloutConfig, urls: tuple[str, ...], ranks: Ranks, server: Server | None = None
    ):
        self.config, self.urls, self.ranks, self.server = config, urls, ranks, server
        self.dialect, self.wire = DIALECTS[config.engine], Wire(config.timeout)
        name = ranks.from_main(f"nanov2-{time.time_ns():x}")
        self.folder = Path(config.folder) / name
        self.version, self.source, self.fresh, self.loads = "", self.folder, False, 0
        self._reviving = threading.Lock()

    # Weights

    def load(self, model: Model) -> None:
        """Serve the model's weights from here on, under a version of their own. Every rank calls it.

        InputError on every rank where the weights cannot be written, or a server does not take them.
        """
        self.loads += 1
        self.version, self.source = f"{self.folder.name}-{self.loads}", self.folder
        self._everywhere(lambda: self._fresh_folder(model), on=self.ranks.main)
        self._everywhere(lambda: self._write_share(model))
        self._everywhere(self._tell_all, on=self.ranks.main)
        self.fresh = True

    def load_folder(self, folder: Path, version: str) -> None:
        """Serve the weights of a model folder, for good: `version` is their hash, which every answer states.
        Every rank calls it."""
        self.loads += 1
        self.version, self.source = version, folder.resolve()
        self._everywhere(self._tell_all, on=self.ranks.main)
        self.fresh = True

    def changed(self) -> None:
        """The model's weights are no longer those that are served: nothing is sampled before `load`."""
        self.fresh = False

    def _fresh_folder(self, model: Model) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        hf.save_config(self.folder, model, self.config.dtype)

    def _write_share(self, model: Model) -> None:
        """This rank's share of the weights, in files of about a gigabyte: nobody holds more than one of them.

        All ranks go through all tensors, also where one cannot write: shards are gathered by all together.
        """
        dtype, files, failed = DTYPES[self.config.dtype], 0, None
        part: dict[str, torch.Tensor] = {}

        def flush() -> None:
            nonlocal files, failed
            name = f"model-{self.ranks.rank:05d}-{files:05d}.safetensors"
            try:
                if part and not failed:
                    save_file(part, str(self.folder / name), metadata={"format": "pt"})
            except (OSError, SafetensorError) as e:
                failed = e
            files += 1
            part.clear()

        for i, (name, tensor) in enumerate(hf.weights(model)):
            if i % self.ranks.size == self.ranks.rank:
                part[name] = tensor.to("cpu", dtype).contiguous()
                if sum(t.nbytes for t in part.values()) >= hf.FILE:
                    flush()
        flush()
        if failed:
            raise InputError(f"cannot write {self.folder}: {failed}; is there room? Else set rollout.folder")

    def _tell_all(self) -> None:
        with ThreadPoolExecutor(len(self.urls)) as pool:
            list(pool.map(self._patiently, [self._tell] * len(self.urls), self.urls))

    def _tell(self, url: str) -> None:
        """A server reads the present weights, and states their version from there on."""
        for path, body in self.dialect.loading(self.source, self.version):
            self.dialect.check_done(self.wire.post(url, path, body))

    def _everywhere(self, do: Callable[[], None], on: bool = True) -> None:
        """`do()` on the ranks where `on`; where it fails on one, an InputError on all."""
        error = ""
        try:
            if on:
                do()
        except (InputError, OSError) as e:
            room = (
                f"; is there room in rollout.folder {self.config.folder}?" if isinstance(e, OSError) else ""
            )
            error = f"{e}{room}"
        if failed := [e for e in self.ranks.gather([error]) if e]:
            raise InputError(failed[0])

    # Sampling

    def groups(
        self,
        model: Model,
        tokenizer,
        prompts: list[list[int]],
        n: int,
        sampling: Sampling,
        seed: int | list[int] | list[list[int]],
        next_turn: NextTurn | None = None,
        max_turns: int = 1,
    ) -> Iterator[list[list[Rollout]]]:
        """The n completions of each prompt, as many prompts at a time as have ended; see sampler.sample.

        Others are sampled on while the caller works on these.
        """
        if not self.fresh:
            raise RuntimeError("the weights have changed since they were loaded into the engine")
        turns = Turns(sampling, next_turn, max_turns, model.config.context)
        ends = tuple(getattr(tokenizer, "ends", None) or [tokenizer.end])
        seeds = seed if isinstance(seed, list) else [hash((seed, i)) for i in range(len(prompts))]
        groups = [
            [Rollout(list(p), i, version=self.version) for _ in range(n)] for i, p in enumerate(prompts)
        ]
        work = _Work(self, turns, ends, groups)
        for i, (group, drawn) in enumerate(zip(groups, seeds, strict=True)):
            if not model.config.fits(prompts[i]) or not n:
                for rollout in group:
                    rollout.turns, rollout.truncated = [[]], True
                work.done.put(i)
            elif isinstance(drawn, list) and self.config.seeded:
                for rollout, one in zip(group, drawn, strict=True):
                    work.submit([rollout], one)
            else:
                work.submit(group, drawn if isinstance(drawn, int) else derive_seed(drawn))
        return work.finished()

    def ask(
        self, request: Request, temperature: float, ends: tuple[int, ...], stop: threading.Event
    ) -> list[Reply]:
        """One reply to each rollout of the request. InputError where the engine gives up, or after `stop`."""
        first = request.rollouts[0].group * self.ranks.size + self.ranks.rank
        seed = request.seed % 2**31 if self.config.seeded else None
        body = self.dialect.question(
            request.ids, len(request.rollouts), request.most, temperature, ends, seed
        )

        def once(url: str) -> list[Reply]:
            answer = self.wire.post(url, self.dialect.generate, body)
            replies = self.dialect.read(answer, len(request.rollouts))
            for reply in replies:
                reply.check(request.most, ends)
            if any(reply.versions != {self.version} for reply in replies):
                self._revive(url, replies)
            return replies

        return self._patiently(once, self.urls[first % len(self.urls)], stop)

    def _revive(self, url: str, replies: list[Reply]) -> None:
        """A server answered with other weights than the present ones: give it these, and ask again.

        InputError where it does not tell, and where others were loaded into it on purpose.
        """
        found = set().union(*(reply.versions for reply in replies))
        if not found:
            raise InputError(
                f"{url}: its answers do not tell the version of their weights, so old ones could not be told "
                f"from new ones: a newer {self.config.engine} is needed"
            )
        with self._reviving:
            self._tell(url)
        raise Broken(f"answers of weights {', '.join(sorted(found))} were refused, wanted {self.version}")

    def _patiently(self, do: Callable[[str], Any], url: str, stop: threading.Event | None = None) -> Any:
        """`do(url)`; where it fails in a way that can pass, again for up to `rollout.patience` seconds."""
        stop, since, wait = stop or threading.Event(), None, 0.2
        while True:
            try:
                self._restart(url)
                return do(url)
            except Odd as e:
                raise InputError(
                    f"{url}: {e}; is rollout.engine {self.config.engine!r} what runs there?"
                ) from e
            except Broken as e:
                since = since or time.monotonic()
                if stop.wait(wait) or time.monotonic() - since > self.config.patience:
                    log = self.server.tail() if self.server else ""
                    raise InputError(
                        f"{url}: {e}; tried again for {self.config.patience:g} s. What was finished or "
                        f"checkpointed is kept: the same command goes on from there{log}"
                    ) from e
            wait = min(2 * wait, 10.0)

    def _restart(self, url: str) -> None:
        """The server that this run started, where it has died."""
        if self.server is None:
            return
        with self._reviving:
            if not self.server.alive():
                self.server.restart()
                if self.loads:
                    self._tell(url)

    def close(self) -> None:
        """End requests under way, the server that was started, and the files of the weights."""
        self.wire.hang_up()
        if self.server:
            self.server.stop()
        if self.ranks.main:
            shutil.rmtree(self.folder, ignore_errors=True)


def open_engine(
    config: RolloutConfig, urls: tuple[str, ...], ranks: Ranks, folder: Path, log: Path
) -> Engine:
    """An engine at `urls`; without, and with rollout.start, at a server of the model folder that is started
    here, with its output in `log`. Every rank calls it, and `close` at the end."""
    if urls:
        return Engine(config, urls, ranks)
    if not config.start:
        raise InputError(
            f"rollout.engine {config.engine!r} needs the URL of a server (rollout.urls, and judge_urls for "
            "the frozen judge), or --rollout.start=true"
        )
    server, error = None, ""
    if ranks.main:
        port, dialect = free_port(), DIALECTS[config.engine]
        start, options, environment = dialect.command(folder.resolve(), port, config.dtype)
        command = [*(shlex.split(config.command) or start), *options, *shlex.split(config.options)]
        try:
            server = Server(command, environment, port, dialect.health, log, config.patience)
        except InputError as e:
            error = str(e)
    error, url = ranks.from_main((error, server.url if server else ""))
    if error:
        raise InputError(error)
    return Engine(config, (url,), ranks, server)


class _Work:
    """The turns of one call that are being sampled, on a thread each."""

    def __init__(self, engine: Engine, turns: Turns, ends: tuple[int, ...], groups: list[list[Rollout]]):
        self.engine, self.turns, self.ends, self.groups = engine, turns, ends, groups
        self.done: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
        self.left = [len(group) for group in groups]
        self.pool = ThreadPoolExecutor(engine.config.concurrency)
        self.lock, self.stop = threading.Lock(), threading.Event()

    def submit(self, rollouts: list[Rollout], seed: int) -> None:
        """A turn of rollouts that have the same tokens so far."""
        self.pool.submit(self._turn, rollouts, seed)

    def finished(self) -> Iterator[list[list[Rollout]]]:
        """Groups whose rollouts have all ended; what failed on a thread is raised here."""
        waiting = len(self.groups)
        try:
            while waiting:
                ended = self._ended_by_now()
                waiting -= len(ended)
                yield [self.groups[i] for i in ended]
        finally:
            self.stop.set()
            if waiting:  # an error, or nobody wants the rest
                self.engine.wire.hang_up()
            self.pool.shutdown(wait=True, cancel_futures=True)

    def _ended_by_now(self) -> list[int]:
        """The next groups that ended, at least one."""
        found = []
        while not found or not self.done.empty():
            one = self.done.get()
            if isinstance(one, BaseException):
                raise one
            found.append(one)
        return found

    def _turn(self, rollouts: list[Rollout], seed: int) -> None:
        try:
            sampling = self.turns.sampling
            most = min(sampling.max_tokens, self.turns.room(rollouts[0]))
            request = Request(rollouts, seed, most)
            replies = self.engine.ask(request, sampling.temperature, self.ends, self.stop)
            for i, (rollout, reply) in enumerate(zip(rollouts, replies, strict=True)):
                if self._goes_on(rollout, reply):
                    self.submit([rollout], derive_seed(seed, i, len(rollout.turns)))
                else:
                    self._ended(rollout)
        except BaseException as e:
            self.done.put(e)

    def _goes_on(self, rollout: Rollout, reply: Reply) -> bool:
        """Take a turn's tokens, and the driver's that open the next; whether there is a next."""
        for token, logprob in zip(reply.ids, reply.logprobs, strict=True):
            rollout.add(token, True, logprob)
        rollout.truncated = reply.ids[-1] not in self.ends
        rollout.turns.append(reply.ids if rollout.truncated else reply.ids[:-1])
        opening = [] if rollout.truncated else self.turns.opening(rollout)
        for token in opening:
            rollout.add(token, False, 0.0)
        return bool(opening)

    def _ended(self, rollout: Rollout) -> None:
        with self.lock:
            self.left[rollout.group] -= 1
            if not self.left[rollout.group]:
                self.done.put(rollout.group)
