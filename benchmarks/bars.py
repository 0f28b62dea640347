"""What the cycle must show, over several finished runs (seeds): mean, spread, and whether it is reached.

for s in 0 1 2; do torchrun --nproc-per-node=2 train.py --seed=$s --dir=runs/seed$s; done
python benchmarks/bars.py runs/seed0 runs/seed1 runs/seed2
"""

import json
import statistics
import sys
from pathlib import Path

DONE = ("base", "coldstart", "verifier", "meta", "verifier2", "generator", "selfverify", "autolabel")
LAP2 = tuple(f"lap2/{p}" for p in ("verifier2", "generator", "selfverify", "autolabel"))


class Figures:
    """Held-out figures of one run: `figures("verifier2", "labelled/critique_quality", "after")`."""

    def __init__(self, run: Path):
        self.run = run
        self.eval = {p: json.loads((run / p / "eval.json").read_text()) for p in DONE + LAP2}
        self.done = {p: json.loads((run / p / "phase.json").read_text()) for p in DONE + LAP2}

    def __call__(self, phase: str, metric: str, when: str = "after") -> float:
        return self.eval[phase][when][metric]["value"]

    def gain(self, phase: str, metric: str) -> float:
        return self(phase, metric) - self(phase, metric, "before")


# name, figure of a run, the bar ("at least" if positive direction), direction
BARS = [
    ("minutes of the whole run", lambda f: sum(d["seconds"] for d in f.done.values()) / 60, 25, "<="),
    (
        "peak memory of a process, GB",
        lambda f: max(d["peak_memory_mb"] for d in f.done.values()) / 1024,
        4,
        "<=",
    ),
    ("1B score accuracy, v1 − base", lambda f: f.gain("verifier", "labelled/score_accuracy"), 0.20, ">="),
    ("1B score accuracy of v1", lambda f: f("verifier", "labelled/score_accuracy"), None, ""),
    ("1D critique quality of v2", lambda f: f("verifier2", "labelled/critique_quality"), 0.95, ">="),
    ("1D critique quality, v2 − v1", lambda f: f.gain("verifier2", "labelled/critique_quality"), 0.08, ">="),
    ("1D score accuracy, v2 − v1", lambda f: f.gain("verifier2", "labelled/score_accuracy"), -0.01, ">="),
    ("1D invented-issue rate of v2", lambda f: f("verifier2", "labelled/invented_issue_rate"), None, ""),
    ("1C quality accuracy of πη", lambda f: f("meta", "labelled/meta_accuracy"), 0.90, ">="),
    ("2 true score of the base", lambda f: f("generator", "labelled/true_score", "before"), 0.45, "<="),
    ("2 true score of θ v1", lambda f: f("generator", "labelled/true_score"), 0.80, ">="),
    ("2 reward − truth", lambda f: f("generator", "labelled/hacking_gap"), 0.05, "<="),
    (
        "3 final − draft, harder problems",
        lambda f: f("selfverify", "hard/final_true_score") - f("selfverify", "hard/draft_true_score"),
        0.05,
        ">=",
    ),
    ("3 proofs per trajectory, harder", lambda f: f("selfverify", "hard/rounds"), None, ""),
    ("4 label agreement", lambda f: f("autolabel", "hard/label_agreement"), 0.97, ">="),
    ("4 label coverage", lambda f: f("autolabel", "hard/label_coverage"), 0.80, ">="),
    (
        "4 agreement, labels − one critique",
        lambda f: f("autolabel", "hard/label_agreement") - f("autolabel", "hard/single_critique_agreement"),
        0.0,
        ">=",
    ),
    (
        "lap 2 score accuracy on harder proofs, v3 − v2",
        lambda f: f.gain("lap2/verifier2", "hard/score_accuracy"),
        0.0,
        ">",
    ),
    (
        "lap 2 true score on harder problems, θ v3 − θ v1",
        lambda f: f("lap2/generator", "hard/true_score") - f("generator", "hard/true_score"),
        0.0,
        ">",
    ),
    (
        "lap 2 final score on harder problems, lap 2 − lap 1",
        lambda f: f("lap2/selfverify", "hard/final_true_score") - f("selfverify", "hard/final_true_score"),
        0.0,
        ">",
    ),
]


def reached(value: float, bar: float | None, direction: str) -> str:
    if bar is None:
        return ""
    good = {"<=": value <= bar, ">=": value >= bar, ">": value > bar}[direction]
    return "reached" if good else "NOT reached"


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    runs = [Figures(Path(p)) for p in sys.argv[1:]]
    print("| bar | wanted | " + " | ".join(f.run.name for f in runs) + " | mean ± sd | |")
    print("|---|---|" + "---|" * (len(runs) + 2))
    for name, figure, bar, direction in BARS:
        values = [figure(f) for f in runs]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        mean = statistics.mean(values)
        wanted = f"{direction} {bar:g}" if bar is not None else ""
        cells = " | ".join(f"{v:.3f}" for v in values)
        print(
            f"| {name} | {wanted} | {cells} | {mean:.3f} ± {spread:.3f} | {reached(mean, bar, direction)} |"
        )


if __name__ == "__main__":
    main()
