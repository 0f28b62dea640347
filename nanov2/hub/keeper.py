"""Runs a command for as long as its own standard input is open, then ends it and all that it started.

    python keeper.py COMMAND …

Whoever started it holds the other end: a server does not outlive a run, however the run ended.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress


def main() -> None:
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

    def end(number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)

    def watch() -> None:
        sys.stdin.read()  # until nobody holds the other end
        end(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(10)
        end(signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    status = child.wait()
    end(signal.SIGKILL)  # what it leaves behind
    sys.exit(status)


if __name__ == "__main__":
    main()
