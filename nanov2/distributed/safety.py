"""What keeps a long run safe: a clean stop, one writer a folder, room on the disk, no bad gradients."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from nanov2.distributed.ranks import Ranks
from nanov2.errors import InputError
from nanov2.records import write_atomically


class Stopped(Exception):
    """The run was asked to stop, and has saved all it did."""


class CleanStop:
    """In `until`, SIGTERM and SIGINT ask the training loop to stop after its step.

    A second signal, two seconds after the first or later, ends the process at once (torchrun passes one
    Ctrl-C on twice). Elsewhere a signal ends the script at once: phases write their results whole, so
    nothing is lost but the time since the last checkpoint.
    """

    def __init__(self, ranks: Ranks):
        self.ranks, self.asked, self.agreed = ranks, 0.0, False

    def until(self, start: int, end: int) -> Iterator[int]:
        """The steps start … end − 1, or up to the one in which `now` became true."""
        try:
            old = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not in the main thread: someone else handles signals
            old = {}
        try:
            for step in range(start, end):
                yield step
                if self.agreed:
                    break
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame) -> None:
        if self.asked and time.monotonic() - self.asked > 2:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.asked = self.asked or time.monotonic()

    def now(self) -> bool:
        """Whether any rank was asked; the same on all."""
        self.agreed = self.ranks.sum({"stop": float(bool(self.asked))})["stop"] > 0
        return self.agreed

    def finish(self, name: str) -> None:
        """After the loop, on every rank: raises Stopped where a signal came in it, even in its last step."""
        if self.agreed or self.now():
            raise Stopped(
                f"stopped in {name}, everything done so far is saved; the same command goes on from here"
            )


class Lock:
    """One process (and its ranks) may write a run folder. The system frees the lock when the process ends.

    Makes the folder where it is missing, and nothing else before the lock is held.
    """

    def __init__(self, folder: Path):
        path = folder / "lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(path, blocking=False)
            self.lock.acquire()
        except Timeout as e:
            owner = _first_line(folder / "owner") or "another process"
            raise InputError(
                f"{folder} is being written by {owner}: wait for it, or use another --dir"
            ) from e
        except (FileExistsError, NotADirectoryError) as e:
            raise InputError(f"{folder} cannot be a run folder: a file is in its place") from e
        except OSError as e:
            raise InputError(f"cannot write {folder}: {e.strerror}; use another --dir") from e
        self.folder = folder

    def sign(self) -> None:
        """Write down who holds the lock, for those who are refused."""
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        who = f"process {os.getpid()} on {socket.gethostname()}, started {started}\n"
        write_atomically(self.folder / "owner", who)

    def release(self) -> None:
        self.lock.release()


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def on_disk(path: Path, do: Callable[[], None]) -> None:
    """`do()`, which writes; InputError, in one line, where the disk is full or may not be written."""
    try:
        do()
    except OSError as e:
        raise InputError(
            f"cannot write {path}: {e.strerror or e}; checkpoints are kept: make room (or the folder "
            "writable), and the same command goes on from the last one"
        ) from e


def on_main(ranks: Ranks, path: Path, do: Callable[[], None]) -> None:
    """`do()`, which writes to `path`, on the main rank while the others wait; its error is raised on all."""
    error = None
    if ranks.main:
        try:
            on_disk(path, do)
        except InputError as e:
            error = str(e)
    if error := ranks.from_main(error):
        raise InputError(error)


def check_space(folder: Path, n_params: int) -> None:
    """InputError where the disk has no room for two training states (weights and AdamW's two moments)."""
    need = 2 * 3 * 4 * n_params + (64 << 20)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise InputError(
            f"{folder}: {free >> 20} MiB free on the disk, {need >> 20} MiB wanted; make room first"
        )


class Guard:
    """Counts skipped optimiser steps; after `most` in a row it saves the batch and ends the phase."""

    def __init__(self, folder: Path, most: int, ranks: Ranks):
        self.folder, self.most, self.ranks, self.in_a_row = folder, most, ranks, 0

    def step(self, step: int, skipped: bool, batch) -> None:
        """`batch()` gives what the step was trained on, as JSON values."""
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if self.in_a_row >= self.most:
            path = self.folder / f"bad_batch_rank{self.ranks.rank}.json"
            text = json.dumps({"step": step, "batch": batch()}, indent=1, ensure_ascii=False)
            on_disk(path, lambda: write_atomically(path, text))
            raise InputError(
                f"{self.most} steps in a row, up to {step + 1}, had gradients that are not finite or too "
                f"large: lower lr or raise skip_norm; the last batch is in {path}, beside the last checkpoint"
            )


def usable(norm: float, limit: float) -> bool:
    return math.isfinite(norm) and norm <= limit
