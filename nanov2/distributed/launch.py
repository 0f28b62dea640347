"""torchrun without its noise: the same arguments, one line where the run was stopped or refused.

    python -m nanov2 torchrun --nproc-per-node=2 train.py --phase=flywheel

torchrun itself answers Ctrl-C, and a rank that ends with status 1, with a traceback of its own, after ranks
have saved everything or said in one line what was wrong. Its other errors are shown as they are.
"""

from __future__ import annotations

import logging
import os
import sys


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_rank(sys.argv[1:])))
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    logging.disable(logging.ERROR)  # in this process alone; what cannot go on is raised
    try:
        torchrun(sys.argv[1:])
    except SignalException:
        pass  # the ranks have stopped, and said so
    except ChildFailedError as e:
        _, failure = e.get_first_failure()
        if failure.exitcode not in (1, 2):  # 2: Python, which does not find the script
            raise
        sys.exit(failure.exitcode)  # it has said why


def threads_per_rank(arguments: list[str]) -> int:
    """The cores of this machine over its ranks, where --nproc-per-node is a number; else 1."""
    from nanov2.distributed.startup import cores

    for i, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name.replace("_", "-") == "--nproc-per-node":
            value = value or (arguments[i + 1] if i + 1 < len(arguments) else "")
            return max(1, cores() // int(value)) if value.isdigit() and int(value) else 1
    return cores()


if __name__ == "__main__":
    main()
