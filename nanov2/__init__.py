"""nanov2: the DeepSeekMath-V2 cycle (arXiv 2511.22570) in readable PyTorch.

Each room imports only from those below it:

    pages        what people look at: report, judging page, terminal view
    run          settings, run folder, phases, plan, command line
    method       rewards, judges, tasks, labels, search, figures
    domains      languages that proofs are written in: order (the embedded world), natural
    hub          models of the ecosystem: folders, chat templates, endpoints
    rl           GRPO and supervised training
    distributed  ranks, shards, checkpoints, clean stops
    model        transformer, attention over packs, sampling
    records, errors
"""

import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  (it may be on the path without having been installed)
    sys.exit(f"nanov2 needs Python 3.11 or newer; this is {sys.version.split()[0]}")

__version__ = "0.1.0"

_root = Path(__file__).parents[1]
_checkout = (_root / "kernels" / "logprob.py").is_file()
# In a checkout the kernels lie beside this package, in kernels/. They are imported as nanov2.kernels, since
# `kernels` alone is the import name of a package of Hugging Face.
if _checkout:
    __path__.append(str(_root))


def beside(name: str = ".") -> Path:
    """What lies beside this package in a checkout, such as configs/, and in it where it is installed."""
    return (_root if _checkout else Path(__file__).parent / ("scripts" if name == "." else "")) / name
