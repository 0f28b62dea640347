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

from pathlib import Path

__version__ = "0.1.0"

# In a checkout the kernels lie beside this package, in kernels/. They are imported as nanov2.kernels, since
# `kernels` alone is the import name of a package of Hugging Face.
_root = Path(__file__).parents[1]
if (_root / "kernels" / "logprob.py").is_file():
    __path__.append(str(_root))
