"""A rollout server that a run starts on its own machine: healthy before it is used, stopped at the end."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from nanov2.errors import InputError
from nanov2.hub.wire import Broken, Wire

MOST_RESTARTS = 3


class Server:
    """A process that serves a model on loopback, for as long as this one lives; its output goes to `log`.

    InputError, with the end of its log, where it dies or is not healthy within `patience` seconds.
    """

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        port: int,
        health: str,
        log: Path,
        patience: float,
    ):
        self.command, self.environment, self.health = command, environment, health
        self.name = shlex.join(command[:3])
        self.url, self.log, self.patience = f"http://127.0.0.1:{port}", log, patience
        self.process: subprocess.Popen | None = None
        self.restarts = 0
        if shutil.which(command[0]) is None:
            raise InputError(f"cannot start {self.name}: not found; install it, or set rollout.command")
        self._start()

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def restart(self) -> None:
        """After its death, at most a few times."""
        if self.restarts == MOST_RESTARTS:
            raise InputError(f"{self.name} died {MOST_RESTARTS + 1} times{self.tail()}")
        self.restarts += 1
        print(f"{self.name} died and is started again{self.tail()}", file=sys.stderr)
        self._start()

    def stop(self) -> None:
        """End the process and all that it started."""
        process, self.process = self.process, None
        if process is not None:
            process.stdin.close()  # keeper.py ends the command
            process.wait()

    def tail(self) -> str:
        """The last errors of the log, or its last lines, to end a message with."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        errors = [line for line in lines[-2000:] if re.search(r"(Error|error|Exception)\b", line)]
        last = " | ".join(line.strip()[-300:] for line in (errors or lines)[-4:] if line.strip())
        return f"; its log, {self.log}: {last or '(empty)'}"

    def _start(self) -> None:
        self.stop()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(self.log, "ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, str(Path(__file__).with_name("keeper.py")), *self.command],
                    env=os.environ | self.environment,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a Ctrl-C is for the run, which ends the server in its time
                )
        except OSError as e:
            raise InputError(f"cannot write {self.log}: {e.strerror}") from e
        self._wait()

    def _wait(self) -> None:
        end, wire = time.monotonic() + self.patience, Wire(5.0)
        print(f"waiting for {self.name} at {self.url}; its log: {self.log}", file=sys.stderr)
        while time.monotonic() < end:
            if not self.alive():
                raise InputError(f"{self.name} ended with status {self.process.returncode}{self.tail()}")
            with suppress(Broken, InputError):
                wire.get(self.url, self.health)
                return
            time.sleep(0.2)
        self.stop()
        raise InputError(f"{self.name} is not healthy after {self.patience:g} s{self.tail()}")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
