"""Labels without an expert: precision, coverage and cost, of calibrated n, m, k and of simpler rules.

    python benchmarks/labels.py runs/seed0 runs/seed1 runs/seed2 --wanted=0.99     # about two minutes a run

n, m, k and the largest doubt are chosen on the generator's proofs of the validation problems (the cheapest
with the wanted precision and a coverage of at least 80%, else the most precise), and measured on its proofs
of the harder held-out problems. "adaptive" draws no more critiques of a proof once its label is settled.
With --rules=FILE nothing is chosen: every rule labels the held-out proofs of one run's step 4, from the same
n critiques, and the file gets its precision, coverage, and the share of all proofs that it labels rightly.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from autolabel import label_proofs
from nanov2.distributed.ranks import Ranks
from nanov2.method.consensus import RULES, Rule, calibrate, settled
from nanov2.records import ProofRecord, write_atomically
from nanov2.run.config import load_config
from nanov2.run.folder import Run
from nanov2.run.phase import generator_proofs


def judged(run: Run, lap: int, problems: str, samples: int) -> tuple[list[list], list[float]]:
    """All n critiques of the generator's distinct proofs, and the exact expert's scores."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trajectories.jsonl"
        proofs = generator_proofs(run, lap, run.problems[problems], samples, path, problems)
    critiques = label_proofs(run, lap, proofs, settle=False)
    return critiques, [run.domain.truth.score(r.problem, r.proof) for r in proofs]


def figures(labels: list, truth: list[float], drawn: list[int]) -> tuple[float, float, float]:
    right = [s == t for s, t in zip(labels, truth, strict=True) if s is not None]
    return statistics.mean(right), len(right) / len(truth), statistics.mean(drawn)


def measure(run: Run, lap: int, wanted: float) -> dict[str, tuple[float, float, float]]:
    """Precision, coverage, critiques a proof, by name."""
    critiques, truth = judged(run, lap, "validation_hard", 6)
    aims = (wanted, *(wanted - 0.005 * i for i in range(1, 20)), 0.0)  # the wanted one, or the next below
    reached = ([c for c in calibrate(critiques, truth, aim) if c.coverage >= 0.8] for aim in aims)
    best = min(next(filter(None, reached)), key=lambda c: c.critiques)
    chosen = f"n={best.n} m={best.m} k={best.k} max_doubt={best.max_doubt:.2f}"
    print(f"{run.dir}: chosen {chosen}, precision {best.precision:.3f} on validation", flush=True)
    critiques, truth = judged(run, lap, "held_out_hard", 2)
    fixed = [cs[: best.n] for cs in critiques]
    clean = max(best.k, best.n // 2)
    adaptive = [
        next((cs[:i] for i in range(1, best.n) if settled(cs[:i], best.k, clean)), cs) for cs in fixed
    ]
    rule = Rule("consensus", best.k, max_doubt=best.max_doubt)
    found = {
        "consensus, calibrated": figures([rule(cs) for cs in fixed], truth, [len(cs) for cs in fixed]),
        "the same, adaptive": figures([rule(cs) for cs in adaptive], truth, [len(cs) for cs in adaptive]),
    }
    letter = Rule("consensus", best.k, "right", best.max_doubt)
    found["by the letter of the paper"] = figures([letter(cs) for cs in fixed], truth, [best.n] * len(truth))
    for name in ("majority", "mean", "worst"):
        labels = [Rule(name)(cs) for cs in fixed]
        found[f"{name} of as many"] = figures(labels, truth, [best.n] * len(truth))
    found["one critique"] = figures([Rule("single")(cs) for cs in critiques], truth, [1] * len(truth))
    return found


def by_rules(run: Run, lap: int, most: int) -> dict[str, dict[str, float]]:
    """Every rule on the same n critiques of the same held-out proofs, at most `most` of them."""
    proofs = run.records("autolabel", lap, "held_out_proofs.jsonl", ProofRecord)[:most]
    critiques, found = label_proofs(run, lap, proofs, settle=False), {}
    for name in RULES:
        rule = Rule(name, run.config.autolabel.k)
        given = [(rule(cs), r.score) for cs, r in zip(critiques, proofs, strict=True)]
        right = [float(label == truth) for label, truth in given if label is not None]
        found[name] = {
            "precision": statistics.fmean(right) if right else 0.0,
            "coverage": len(right) / len(given),
            "right": sum(right) / len(given),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--wanted", type=float, default=0.99)
    parser.add_argument("--lap", type=int, default=1)
    parser.add_argument("--rules", type=Path, help="JSON file for every rule on the same proofs of the run")
    parser.add_argument("--proofs", type=int, default=400, help="of --rules, at most")
    args, overrides = parser.parse_known_args()
    if args.rules:
        run = Run(args.runs[0], load_config(args.runs[0] / "config.json", overrides), Ranks())
        found = by_rules(run, args.lap, args.proofs)
        return write_atomically(args.rules, json.dumps(found, indent=1))
    results = []
    for folder in args.runs:
        run = Run(folder, load_config(folder / "config.json", overrides), Ranks())
        results.append(measure(run, args.lap, args.wanted))
    print("| rule | precision | coverage | critiques a proof |\n|---|---|---|---|")
    for name in results[0]:
        columns = zip(*(r[name] for r in results), strict=True)
        cells = (
            f"{statistics.mean(c):.3f} ± {statistics.stdev(c) if len(c) > 1 else 0:.3f}" for c in columns
        )
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
