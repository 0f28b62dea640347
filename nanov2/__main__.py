"""One command for all: `nanov2 COMMAND …`, or `python -m nanov2 COMMAND …`, each with its own --help.

train …       train.py: the cycle, phase by phase
sample …      sample.py: prove, verify, meta, refine and search with a run's models
autolabel …   autolabel.py: labels by consensus
report RUN    build report.html again, or put two runs side by side
judge RUN     the page on which experts score proofs and critiques
watch RUN     a running flywheel in the terminal
hf …          look at or check a model folder
torchrun …    torchrun with its own arguments, without its tracebacks where a run was stopped or refused

On several ranks: `nanov2 torchrun --nproc-per-node=2 -m nanov2 train --phase=flywheel`.
"""

import runpy
import sys

from nanov2 import beside

SCRIPTS = ("train", "sample", "autolabel")  # flat files, at the top of a checkout
COMMANDS = {
    "report": "nanov2.pages.report",
    "judge": "nanov2.pages.expert_page",
    "watch": "nanov2.pages.watch",
    "hf": "nanov2.hub.hf",
    "torchrun": "nanov2.distributed.launch",
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in (*SCRIPTS, *COMMANDS):
        if name in ("-h", "--help"):
            print(__doc__)
            sys.exit(0)
        print(f"error: no command {name!r}; one of {', '.join((*SCRIPTS, *COMMANDS))}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"nanov2 {name}", *sys.argv[2:]]
    if name in COMMANDS:
        runpy.run_module(COMMANDS[name], run_name="__main__")
        return
    folder = beside()
    sys.path.insert(0, str(folder))  # train.py imports autolabel.py
    runpy.run_path(str(folder / f"{name}.py"), run_name="__main__")


if __name__ == "__main__":
    main()
