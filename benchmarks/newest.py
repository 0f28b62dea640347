"""Verifiers of several runs on the same proofs: the newest of all of them.

    python benchmarks/newest.py runs/seed0-laps runs/seed0-laps-no-labels --lap=3 --out=newest.json

After some laps two runs differ in their generators too: a verifier that looks worse may only have harder
proofs to judge. Here the verifier of each run's lap is measured on the proofs that the generators of all runs
wrote of held-out problems in the lap before, each once: how often its score is the truth's, and how many of
the wrong proofs it passes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanov2.distributed.ranks import Ranks
from nanov2.method.figures import GREEDY, Bench
from nanov2.records import ProofRecord, write_atomically
from nanov2.run.cli import script
from nanov2.run.config import load_config
from nanov2.run.folder import Run


def newest(runs: list[Run], lap: int) -> list[ProofRecord]:
    """The held-out proofs of the lap before, of all runs."""
    found = [
        r for run in runs for r in run.records("autolabel", lap - 1, "held_out_proofs.jsonl", ProofRecord)
    ]
    return list({(r.problem, r.proof): r for r in found}.values())


def measure(run: Run, lap: int, proofs: list[ProofRecord]) -> dict[str, float]:
    """Figures of a run's verifier, at temperature 1 and (@T0) at 0."""
    model, tokenizer = run.load("verifier2", lap)
    bench = run.bench(run.domain.language(tokenizer))
    return figures(bench, model, proofs) | figures(bench.greedy(), model, proofs)


def figures(bench: Bench, model, proofs: list[ProofRecord]) -> dict[str, float]:
    _, shown = bench.verifier(model, proofs, "newest")
    right = [float(s["score"] == s["truth"]) for s in shown]
    passed = [float(s["score"] == 1) for s in shown if s["truth"] < 1]
    found = {"score_accuracy": statistics.fmean(right)} | (
        {"wrong_passed": statistics.fmean(passed)} if passed else {}
    )
    at = GREEDY if bench.temperature == 0 else ""
    return {name + at: value for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--lap", type=int, default=2, help="whose verifiers")
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file: for each run, in order, its figures"
    )
    args = parser.parse_args()
    runs = [Run(folder, load_config(folder / "config.json"), Ranks()) for folder in args.runs]
    proofs = newest(runs, args.lap)
    found = {"proofs": len(proofs), "runs": [measure(run, args.lap, proofs) for run in runs]}
    write_atomically(args.out, json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    script(main)
