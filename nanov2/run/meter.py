"""What a phase takes of its process: the most memory at a time, and the tokens that are sampled."""

from __future__ import annotations

import ctypes
import re
from contextlib import ExitStack, suppress
from pathlib import Path

from nanov2.model.rollout import Rollout, watching

PROC = Path("/proc/self")  # Linux


class Meter:
    """Counts from `start` on. Phases share a process, whose highest memory so far says nothing of the next:
    Linux lets it be counted anew; elsewhere `owns_peak` is false, and the peak that of the process so far."""

    def __init__(self) -> None:
        self.owns_peak, self.tokens, self._stack = False, 0, ExitStack()

    def start(self) -> None:
        self.stop()
        _give_back()
        self.owns_peak, self.tokens = _reset_peak(), 0
        self._stack.enter_context(watching(self._add))

    def stop(self) -> None:
        self._stack.close()

    def _add(self, rollout: Rollout) -> None:
        self.tokens += sum(rollout.sampled)

    def memory(self) -> dict:
        """As phase.json has it."""
        own = _peak() if self.owns_peak else None
        return {"peak_memory_mb": own or _peak_so_far(), "memory_of": "phase" if own else "process"}


def _give_back() -> None:
    """Free memory goes back to the system, once a phase: startup.py has glibc keep what the last one freed,
    which would count as this one's."""
    with suppress(AttributeError, OSError, TypeError):  # another library, another system
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> bool:
    """Have Linux count the highest resident memory anew (5: VmHWM, see proc(5)); whether it does."""
    try:
        (PROC / "clear_refs").write_text("5")
    except OSError:  # another system, or one that forbids it
        return False
    return _peak() is not None


def _peak() -> int | None:
    """VmHWM in MiB."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", (PROC / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return round(int(found[1]) / 1024) if found else None


def _peak_so_far() -> int:
    """The most memory that this process ever had, in MiB; 0 where the system does not tell."""
    try:
        import resource  # not on every system
    except ImportError:
        return 0
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
