"""What vLLM and SGLang call the same things: a turn to sample, its tokens, and new weights.

vLLM (from 0.32 on; `VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --tokens-only --logprobs-mode
processed_logprobs`): POST /inference/v1/generate, weights by /collective_rpc reload_weights.
SGLang (from 0.5.4 on; `python -m sglang.launch_server --model-path FOLDER --skip-tokenizer-init`):
POST /generate, weights by /update_weights_from_disk.

Both are asked to sample from the whole vocabulary at the temperature alone, and tell log-probs of that
distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nanov2.hub.wire import Broken

Calls = list[tuple[str, dict | None]]  # (path, body) of requests, one after the other
SLACK = 1e-3  # by which rounding may lift a log-prob above 0


class Odd(Exception):
    """A reply that is whole, and not of the form that was agreed on."""


@dataclass(frozen=True)
class Reply:
    """One sampled turn: its ids, with the end where there is one, their log-probs, the weights' versions."""

    ids: list[int]
    logprobs: list[float]
    versions: set[str]  # more than one where the weights changed on the way

    def check(self, most: int, ends: tuple[int, ...]) -> None:
        """Odd, where it cannot be a turn of at most so many tokens."""
        if not self.ids or len(self.ids) > most:
            raise Odd(f"a turn of {len(self.ids)} tokens, at most {most} were asked for")
        if self.ids[-1] not in ends and len(self.ids) < most:
            raise Broken(f"a turn that was broken off after {len(self.ids)} of {most} tokens")
        if any(i in ends for i in self.ids[:-1]):
            raise Odd("a turn that goes on after its end")
        if len(self.logprobs) != len(self.ids) or not all(-math.inf < p <= SLACK for p in self.logprobs):
            raise Odd("log-probs that are not one finite number ≤ 0 for each token")


class Dialect(Protocol):
    share: tuple[str, float]  # the option for how much of a GPU's memory it takes, and what without it
    generate: str  # the path that samples
    health: str  # and the one that answers once the server can

    def question(
        self, ids: list[int], n: int, most: int, temperature: float, ends: tuple[int, ...], seed: int | None
    ) -> dict: ...

    def read(self, answer: Any, n: int) -> list[Reply]: ...

    def loading(self, folder: Path, version: str) -> Calls: ...

    def check_done(self, answer: Any) -> None: ...

    def command(self, folder: Path, port: int, dtype: str) -> tuple[list[str], list[str], dict[str, str]]: ...


DTYPES = {"bf16": "bfloat16", "fp32": "float32"}  # as both servers name them


class VLLM:
    share = "--gpu-memory-utilization", 0.9
    generate, health = "/inference/v1/generate", "/health"

    def question(self, ids, n, most, temperature, ends, seed) -> dict:
        sampling = _plain(n, temperature, ends) | {
            "max_tokens": most,
            "ignore_eos": True,  # of the ends that the server knows; those of stop_token_ids are heeded
            "logprobs": 0,
            "detokenize": False,
        }
        sampling |= {} if seed is None else {"seed": seed}
        return {"token_ids": ids, "sampling_params": sampling}

    def read(self, answer: Any, n: int) -> list[Reply]:
        with _reading():
            choices = sorted(answer["choices"], key=lambda c: c["index"])
            if [c["index"] for c in choices] != list(range(n)):
                raise Odd(f"{len(choices)} of {n} samples")
            return [
                Reply(
                    _ids(c["token_ids"]),
                    [float(t["logprob"]) for t in c["logprobs"]["content"]],
                    _versions(c.get("weight_versions") or answer.get("weight_versions")),
                )
                for c in choices
            ]

    def loading(self, folder: Path, version: str) -> Calls:
        return [
            ("/pause?mode=keep", None),
            ("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}),
            ("/reset_prefix_cache", None),
            ("/update_weight_version", {"new_version": version}),
            ("/resume", None),
        ]

    def check_done(self, answer: Any) -> None:
        if isinstance(answer, dict) and answer.get("error"):
            raise Odd(f"new weights were not taken: {answer['error']}")

    def command(self, folder, port, dtype):
        options = [
            *("--host", "127.0.0.1", "--port", str(port), "--tokens-only"),
            *("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"),
            *("--dtype", DTYPES[dtype]),
        ]
        return ["vllm", "serve"], [str(folder), *options], {"VLLM_SERVER_DEV_MODE": "1"}


class SGLang:
    share = "--mem-fraction-static", 0.88
    generate, health = "/generate", "/health"

    def question(self, ids, n, most, temperature, ends, seed) -> dict:
        sampling = _plain(n, temperature, ends) | {"max_new_tokens": most, "no_stop_trim": True}
        sampling |= {} if seed is None else {"sampling_seed": seed}
        return {"input_ids": ids, "sampling_params": sampling, "return_logprob": True}

    def read(self, answer: Any, n: int) -> list[Reply]:
        with _reading():
            answers = answer if isinstance(answer, list) else [answer]
            if len(answers) != n:
                raise Odd(f"{len(answers)} of {n} samples")
            found = []
            for meta in (a["meta_info"] for a in answers):
                tokens = meta["output_token_logprobs"]
                versions = _versions(meta.get("weight_versions") or meta.get("weight_version"))
                found.append(Reply(_ids([t[1] for t in tokens]), [float(t[0]) for t in tokens], versions))
            return found

    def loading(self, folder: Path, version: str) -> Calls:
        body = {"model_path": str(folder), "weight_version": version, "flush_cache": True}
        return [("/update_weights_from_disk", body)]

    def check_done(self, answer: Any) -> None:
        if not isinstance(answer, dict) or answer.get("success") is not True:
            raise Odd(f"new weights were not taken: {str(answer)[:200]}")

    def command(self, folder, port, dtype):
        options = [
            *("--model-path", str(folder), "--host", "127.0.0.1", "--port", str(port)),
            *("--skip-tokenizer-init", "--dtype", DTYPES[dtype]),
        ]
        return ["python", "-m", "sglang.launch_server"], options, {}


DIALECTS: dict[str, Dialect] = {"vllm": VLLM(), "sglang": SGLang()}


def _plain(n: int, temperature: float, ends: tuple[int, ...]) -> dict:
    """What both servers call alike. Only the temperature shapes the distribution: so does the trainer."""
    return {
        "n": n,
        "temperature": temperature,
        "stop_token_ids": list(ends),
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }


class _reading:
    """Inside, what a reply lacks, or holds of a wrong type, makes it Odd."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, (LookupError, TypeError, ValueError, AttributeError)):
            raise Odd(f"a reply without what was asked for ({type(error).__name__}: {error})") from error


def _ids(found: Any) -> list[int]:
    if not isinstance(found, list) or not all(type(i) is int and i >= 0 for i in found):
        raise Odd("token ids that are no whole numbers")
    return found


def _versions(found: Any) -> set[str]:
    """One version, several, or stretches of tokens that have one each."""
    if found is None:
        return set()
    parts = found if isinstance(found, list) else [found]
    return {str(p.get("weight_version", p.get("version"))) if isinstance(p, dict) else str(p) for p in parts}
