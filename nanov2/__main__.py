"""The commands beside the flat scripts: `python -m nanov2 COMMAND …`, each with its own --help.

report RUN    build report.html again, or put two runs side by side
judge RUN     the page on which experts score proofs and critiques
watch RUN     a running flywheel in the terminal
hf FOLDER     look at or check a model folder
torchrun …    torchrun with its own arguments, without its tracebacks where a run was stopped or refused
"""

import runpy
import sys

COMMANDS = {
    "report": "nanov2.pages.report",
    "judge": "nanov2.pages.expert_page",
    "watch": "nanov2.pages.watch",
    "hf": "nanov2.hub.hf",
    "torchrun": "nanov2.distributed.launch",
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        asked_for_help = name in ("-h", "--help")
        print(__doc__ if asked_for_help else f"error: no command {name!r}; one of {', '.join(COMMANDS)}")
        sys.exit(0 if asked_for_help else 2)
    sys.argv = [f"nanov2 {name}", *sys.argv[2:]]
    runpy.run_module(COMMANDS[name], run_name="__main__")


if __name__ == "__main__":
    main()
