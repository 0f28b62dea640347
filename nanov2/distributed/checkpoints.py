"""The state of a phase under way, on disk: written whole or not at all, checked before it is read.

PHASE/snapshots/step-00000060/state.safetensors, …      weights and optimiser, whole (replicated ranks)
                              shard-00001-….safetensors   or each rank's shards (sharded ranks)
                              state.json               step, cursor, curve, random generators, judges' hashes
                              checksums.json           BLAKE2b of each of the above, written last

A snapshot is written to a temporary name, fsynced, and renamed. At the start the newest one whose checksums
hold is read; a torn one is passed over with a warning. Tensors are read by torch.distributed.checkpoint
from safetensors alone, so that any number of ranks, sharded or not, reads what any other has written, and
nothing that is read can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from nanov2.distributed.ranks import Ranks
from nanov2.distributed.safety import on_main
from nanov2.errors import InputError
from nanov2.records import read_json, write_atomically

PART = 1 << 26  # bytes of a file of whole tensors
HASHING = min(8, os.cpu_count() or 1)  # threads


class Snapshots:
    """The snapshots of one phase. Every rank calls every method; `keep` is how many are kept.

    Shards are written while training goes on: `save` copies them and returns, and the snapshot is complete
    after the `poll` that finds all ranks done, or after `finish`, which waits for them.
    """

    def __init__(self, folder: Path, ranks: Ranks, keep: int = 2):
        self.folder, self.ranks, self.keep = folder / "snapshots", ranks, keep
        self._writing: tuple[Future, Path, Path] | None = None  # shards under way, and the two names

    def save(self, name: str, model: nn.Module, optimizer: torch.optim.Optimizer, extra: dict) -> None:
        """Write weights, optimiser, random generators and `extra` (JSON, with "step") as NAME-STEP.

        InputError, on every rank, where the disk does not take it; older snapshots are kept then.
        """
        self.finish()
        final = self.folder / f"{name}-{extra['step']:08d}"
        part = self.folder / f".{final.name}.part"
        tensors = state_tensors(model, optimizer)
        state = extra | {"random": self.ranks.gather([_random_state()]), "ranks": self.ranks.size}
        self._on_main(lambda: _fresh(part, sum(t.numel() * t.element_size() for t in tensors.values())))
        self._on_main(lambda: write_atomically(part / "state.json", json.dumps(state)))
        self._writing = self._write(part, tensors), part, final
        self.poll()

    def poll(self) -> None:
        """Complete a snapshot whose shards have all been written."""
        if self._writing:
            done = self.ranks.sum({"done": float(self._writing[0].done())})["done"]
            if done == self.ranks.size:
                self.finish()

    def finish(self) -> None:
        """Wait for the shards that are being written, if any, and complete their snapshot."""
        if not self._writing:
            return
        future, part, final = self._writing
        self._writing = None
        failed = [e for e in self.ranks.gather([_failure(future)]) if e]
        if failed:
            raise InputError(f"cannot write {self.folder}: {failed[0]}; earlier checkpoints are kept")
        sums = self._checksums(part)
        self._on_main(lambda: self._complete(part, final, sums))

    def newest(self, name: str) -> Path | None:
        """The newest snapshot NAME-… whose checksums hold, or None."""
        self.finish()
        for path in self.ranks.from_main(self._found(name)):
            if self._holds(path):
                return path
            if self.ranks.main:
                print(f"warning: {path} is torn or changed, and passed over", file=sys.stderr)
        return None

    def load(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
        """Restore what `save` wrote, bitwise, in whatever shards; returns `extra`."""
        tensors = state_tensors(model, optimizer)
        _read_tensors(path, tensors)
        extra = read_json(path / "state.json")
        random = extra.pop("random")
        if extra.pop("ranks") == self.ranks.size:
            _set_random_state(random[self.ranks.rank])
        return extra

    def _found(self, name: str) -> list[Path]:
        paths = [p for p in self.folder.glob(f"{name}-*") if re.fullmatch(r"\d{8,}", p.name[len(name) + 1 :])]
        return sorted(paths, key=lambda p: int(p.name[len(name) + 1 :]), reverse=True)

    def _on_main(self, do) -> None:
        on_main(self.ranks, self.folder, do)

    def _write(self, part: Path, tensors: dict[str, Tensor]) -> Future:
        """Begin to write the tensors; whole ones are written when this returns."""
        if not any(isinstance(t, DTensor) for t in tensors.values()):
            self._on_main(lambda: _write_whole(part, tensors))
            done: Future = Future()
            done.set_result(None)
            return done
        import torch.distributed.checkpoint as dcp

        writer = dcp.HuggingFaceStorageWriter(str(part), save_distributed=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its own deprecations
            return dcp.async_save(tensors, storage_writer=writer, process_group=self.ranks.writers)

    def _checksums(self, folder: Path) -> dict[str, str]:
        """BLAKE2b of every file, each rank reading its share; the same on all ranks."""
        names = self.ranks.from_main(sorted(p.name for p in folder.iterdir() if p.name != "checksums.json"))
        mine = self.ranks.mine(names)
        with ThreadPoolExecutor(HASHING) as pool:
            sums = list(pool.map(lambda name: _digest(folder / name), mine))
        return dict(self.ranks.gather([list(pair) for pair in zip(mine, sums, strict=True)]))

    def _holds(self, path: Path) -> bool:
        try:
            expected = read_json(path / "checksums.json")
        except InputError:
            expected = None
        if not self.ranks.from_main(expected is not None):
            return False
        return self.ranks.from_main(self._checksums(path) == expected)

    def _complete(self, part: Path, final: Path, sums: dict[str, str]) -> None:
        write_atomically(part / "checksums.json", json.dumps(sums, indent=1))
        for file in part.iterdir():
            _sync(file)
        _sync(part)
        shutil.rmtree(final, ignore_errors=True)  # of a step that is done again: the same, bit for bit
        os.replace(part, final)
        _sync(self.folder)
        name = final.name.rpartition("-")[0]
        for old in self._found(name)[self.keep if name == "step" else 1 :]:
            shutil.rmtree(old, ignore_errors=True)


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and the optimiser's state by the parameters' names, whole or sharded; shares their memory."""
    tensors = {}
    _make_moments(optimizer)
    for name, p in model.named_parameters():
        tensors[f"model.{name}"] = p.detach()
        for key, value in optimizer.state.get(p, {}).items():
            # a view of its memory; of a scalar with one dimension, since no slice of a scalar can be read
            tensors[f"optimizer.{name}.{key}"] = value.reshape(1) if value.ndim == 0 else value
    return tensors


def _make_moments(optimizer: torch.optim.Optimizer) -> None:
    """AdamW's state before its first step, which it makes itself only then."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if not optimizer.state.get(p):
                zeros = {key: torch.zeros_like(p.detach()) for key in ("exp_avg", "exp_avg_sq")}
                device = p.device if group["fused"] else "cpu"
                optimizer.state[p] = {"step": torch.zeros((), device=device)} | zeros


def _read_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    import torch.distributed.checkpoint as dcp

    alone = not any(isinstance(t, DTensor) for t in tensors.values())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(path)), no_dist=alone)
    except (dcp.CheckpointException, RuntimeError, ValueError, KeyError) as e:
        raise InputError(f"{path} is of another model: move it away, and the phase starts again") from e


def _write_whole(part: Path, tensors: dict[str, Tensor]) -> None:
    """In files of at most PART bytes, or of one tensor: what a file holds is in memory twice meanwhile."""
    files: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        size += tensor.nbytes
        if files[-1] and size > PART:
            files.append({})
            size = tensor.nbytes
        files[-1][name] = tensor
    for i, file in enumerate(files):
        path = part / ("state.safetensors" if i == 0 else f"state-{i}.safetensors")
        write_atomically(path, save({name: t.cpu().contiguous() for name, t in file.items()}))


def fingerprint(model: nn.Module, source: dict[str, Callable[[], Tensor]] | None = None) -> str:
    """A hash of all weights: the same weights, and no others, give the same. Of those that `source` gives,
    where the model is a rounded copy. Tensors are hashed on several threads, so many are copied at a time."""
    digest, waiting = hashlib.blake2b(digest_size=20), deque[Future[bytes]]()
    weights = source or {name: p.detach for name, p in model.state_dict().items()}
    with ThreadPoolExecutor(HASHING) as pool:
        for name, give in sorted(weights.items()):
            if len(waiting) == HASHING:
                digest.update(waiting.popleft().result())
            p = give()
            data = p.to("cpu", copy=True).contiguous()  # numpy bars what it is given from FSDP's resizing
            waiting.append(pool.submit(_tensor_digest, f"{name} {tuple(p.shape)} {p.dtype}", data))
        for part in waiting:
            digest.update(part.result())
    return digest.hexdigest()


def _tensor_digest(name: str, data: Tensor) -> bytes:
    digest = hashlib.blake2b(name.encode(), digest_size=16)
    digest.update(data.view(-1).view(torch.uint8).numpy())
    return digest.digest()


def _fresh(part: Path, need: int) -> None:
    """An empty folder, on a disk with room for `need` bytes."""
    part.parent.mkdir(parents=True, exist_ok=True)
    for left in part.parent.glob(".*.part"):  # of a write that a kill cut short
        shutil.rmtree(left)
    free = shutil.disk_usage(part.parent).free
    if free < need + (16 << 20):
        raise OSError(f"{free >> 20} MiB free on the disk, {(need >> 20) + 16} MiB wanted")
    part.mkdir()


def _failure(future: Future) -> str:
    """Why the writing failed, once it has ended; empty where it did not."""
    error = future.exception()
    return " ".join(f"{type(error).__name__}: {error}".split())[:300] if error else ""


def _digest(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _random_state() -> str:
    """Torch's generator of this rank. Nothing of nanov2 draws from it; what is built on it may."""
    return bytes(torch.get_rng_state().tolist()).hex()


def _set_random_state(text: str) -> None:
    torch.set_rng_state(torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8))
