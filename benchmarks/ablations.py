"""What single parts of the method do: phases of a finished run again, with one setting changed; one table.

    python benchmarks/ablations.py runs/proofworld                      # all variants, two ranks, 20 minutes
    python benchmarks/ablations.py runs/proofworld --only no-meta-gate
    python benchmarks/ablations.py RUN RUN RUN                          # mean and spread over seeds

Each variant starts from copies of the run's earlier phases in RUN-NAME, so everything else is the same. The
table goes to the terminal, into the run's ablations.json, and to the phase's tables in the run's report.
Figures are of held-out items at temperature 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runs import add_table, do_phase, figures_after, phase_folder
from nanov2.pages.report import build_report
from nanov2.run.phases import PHASES


@dataclass(frozen=True)
class Variant:
    """Phases to do again, the last of which is measured."""

    title: str
    phases: tuple[str, ...]
    overrides: tuple[str, ...]
    metrics: tuple[str, ...]
    lap: int = 1


CRITIC = ("labelled/score_accuracy", "labelled/critique_quality", "labelled/invented_issue_rate")
LATER = ("hard/score_accuracy", "hard/critique_quality", "hard/invented_issue_rate")
REFINED = ("hard/draft_true_score", "hard/final_true_score", "hard/revision_gain", "hard/self_score_error")
VARIANTS = {
    "no-meta-gate": Variant(
        "1D on the score alone, without R_meta", ("verifier2",), ("--verifier2.meta_gate=false",), CRITIC
    ),
    "no-self-verification": Variant(
        "3 on proofs alone: as many steps, no critiques and revisions in training",
        ("selfverify",),
        ("--selfverify.max_turns=1",),
        REFINED,
    ),
    "alpha-beta": Variant(
        "3 with the paper's R_format · (α·R_Y + β·R_Z) in place of the final proof's R_Y",
        ("selfverify",),
        ("--selfverify.reward=alpha_beta",),
        REFINED,
    ),
    "fresh-verifier": Variant(
        "lap 2's verifier from the base, twice the steps, in place of the last verifier's weights",
        ("verifier2",),
        ("--lap_verifier2.init=base", "--lap_verifier2.steps=100"),
        LATER,
        lap=2,
    ),
    "consolidated-verifier": Variant(
        "lap 2's verifier from the base that rejection fine-tuning consolidated, twice the steps",
        ("consolidate", "verifier2"),
        ("--lap_verifier2.init=consolidated", "--lap_verifier2.steps=100"),
        LATER,
        lap=2,
    ),
}


def rerun(run: Path, name: str, ranks: int) -> Path:
    """The variant's folder, its phases done."""
    variant = VARIANTS[name]
    folder = run.with_name(f"{run.name}-{name}")
    first, order = variant.phases[0], list(PHASES)
    if not (phase_folder(folder, first, variant.lap) / "phase.json").is_file():
        for kept in order if variant.lap > 1 else order[: order.index(first)]:
            if (run / kept).is_dir():
                shutil.copytree(run / kept, folder / kept, dirs_exist_ok=True)
    for phase in variant.phases:
        settings = [f"--config={run / 'config.json'}", *variant.overrides]
        do_phase(folder, phase, variant.lap, ranks, *settings)
    return folder


def figures(run: Path, variant: Variant) -> list[dict]:
    """The variant's metrics as a run measured them."""
    after = figures_after(run, variant.phases[-1], variant.lap)
    return [after[metric] for metric in variant.metrics]


def cell(found: list[dict]) -> str:
    """One run's figure with its 95% interval; the mean of several ± their standard deviation."""
    if len(found) == 1:
        return f"{found[0]['value']:.3f} [{found[0]['low']:.3f}, {found[0]['high']:.3f}]"
    values = [f["value"] for f in found]
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def rows(variant: Variant, runs: list[Path], folders: list[Path]) -> list[list[str]]:
    """[metric, the runs, the variants, the difference of each pair] for each metric."""
    before, after = ([figures(d, variant) for d in ds] for ds in (runs, folders))
    out = []
    for i, metric in enumerate(variant.metrics):
        a, b = [f[i] for f in before], [f[i] for f in after]
        change = " ".join(f"{y['value'] - x['value']:+.3f}" for x, y in zip(a, b, strict=True))
        out.append([metric, cell(a), cell(b), change])
    return out


def into_report(run: Path, name: str, table: list[list[str]]) -> None:
    variant = VARIANTS[name]
    columns = ["held-out, 95% interval", "the run", name, "change"]
    add_table(run, variant.phases[-1], variant.lap, variant.title, columns, table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs, one for each seed")
    parser.add_argument(
        "--only", choices=VARIANTS, action="append", help="only this variant (may be repeated)"
    )
    parser.add_argument("--ranks", type=int, default=2)
    args = parser.parse_args()
    found = {}
    for name in args.only or VARIANTS:
        folders = [rerun(run, name, args.ranks) for run in args.runs]
        found[name] = rows(VARIANTS[name], args.runs, folders)
        for run, folder in zip(args.runs, folders, strict=True):
            into_report(run, name, rows(VARIANTS[name], [run], [folder]))
    print("\n| ablation | figure | the run | changed | change, each run |\n|---|---|---|---|---|")
    for name, table in found.items():
        print("\n".join(f"| {name} | " + " | ".join(row) + " |" for row in table))
    for run in args.runs:
        (run / "ablations.json").write_text(json.dumps(found, indent=1))
        build_report(run)


if __name__ == "__main__":
    main()
