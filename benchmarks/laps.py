"""Laps on problems that get harder, with automatic labels and without: the reason for phase 4.

    python benchmarks/laps.py runs/proofworld --laps=4        # about 70 minutes with two ranks
    python benchmarks/laps.py RUN RUN RUN                     # mean and spread over seeds

From a finished run's base, verifiers and meta-verifier, RUN-harder goes on for four laps whose harder
problems grow by one step and two facts a lap; RUN-harder-no-labels does the same, but the labelled proofs
never join 𝒟v (autolabel.grow = false): as many steps, on what the weak prover once wrote. "Hardest" are
held-out problems as hard as the last lap's. The table goes to the terminal and into RUN-harder's report.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runs import add_table, do_phase, figures_after
from nanov2.pages.report import build_report

KEPT = ("base", "coldstart", "verifier", "meta", "verifier2")
HARDER = {"lap_chain": 1, "lap_facts": 2}
METRICS = {  # title: phase, metric
    "final true score, hardest": ("selfverify", "hardest/final_true_score"),
    "generator's true score, hardest": ("generator", "hardest/true_score"),
    "reward − truth, hardest": ("selfverify", "hardest/hacking_gap"),
    "verifier's score accuracy on its proofs": ("verifier2", "hard/score_accuracy"),
    "labels' agreement": ("autolabel", "hard/label_agreement"),
    "labels' coverage": ("autolabel", "hard/label_coverage"),
}


def prepare(run: Path, folder: Path, laps: int, grow: bool) -> None:
    """The folder with the run's earlier phases and its settings, but for the harder laps."""
    if folder.is_dir():
        return
    for phase in KEPT:
        shutil.copytree(run / phase, folder / phase)
    settings = json.loads((run / "config.json").read_text())
    settings["laps"] = laps
    settings["world"] |= HARDER
    settings["autolabel"]["grow"] = grow
    (folder / "config.json").write_text(json.dumps(settings, indent=1))


def go_on(folder: Path, laps: int, ranks: int) -> None:
    for lap in range(1, laps + 1):
        for phase in ("verifier2", "generator", "selfverify", "autolabel"):
            do_phase(folder, phase, lap, ranks)


def figures(folder: Path, lap: int) -> dict[str, float]:
    return {
        title: figures_after(folder, phase, lap)[metric]["value"]
        for title, (phase, metric) in METRICS.items()
    }


def rows(pairs: list[tuple[Path, Path]], laps: int) -> list[list[str]]:
    """[figure, with or without labels, lap 1, lap 2, …]; means ± standard deviations over several runs."""
    out = []
    for title in METRICS:
        for name, side in (("with labels", 0), ("without", 1)):
            cells = []
            for lap in range(1, laps + 1):
                values = [figures(pair[side], lap)[title] for pair in pairs]
                spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.3f}{spread}")
            out.append([title, name, *cells])
    return out


def into_report(folder: Path, table: list[list[str]], laps: int) -> None:
    title = "Laps on harder problems, with automatic labels and without"
    columns = ["held-out", "labels", *(f"lap {n}" for n in range(1, laps + 1))]
    add_table(folder, "autolabel", laps, title, columns, table)
    build_report(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs, one for each seed")
    parser.add_argument("--laps", type=int, default=4)
    parser.add_argument("--ranks", type=int, default=2)
    args = parser.parse_args()
    pairs = []
    for run in args.runs:
        with_labels = run.with_name(f"{run.name}-harder")
        without = run.with_name(f"{run.name}-harder-no-labels")
        prepare(run, with_labels, args.laps, grow=True)
        go_on(with_labels, 1, args.ranks)
        prepare(run, without, args.laps, grow=False)
        for phase in ("generator", "selfverify"):  # the first lap is the same
            shutil.copytree(with_labels / phase, without / phase, dirs_exist_ok=True)
        go_on(with_labels, args.laps, args.ranks)
        go_on(without, args.laps, args.ranks)
        pairs.append((with_labels, without))
        into_report(with_labels, rows(pairs[-1:], args.laps), args.laps)
    heads = "".join(f" lap {n} |" for n in range(1, args.laps + 1))
    print(f"\n| held-out | labels |{heads}\n|---|---|{'---|' * args.laps}")
    print("\n".join("| " + " | ".join(row) + " |" for row in rows(pairs, args.laps)))


if __name__ == "__main__":
    main()
