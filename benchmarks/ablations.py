"""What single parts of the method do: a finished run's phase again, with one setting changed.

    python benchmarks/ablations.py runs/default                 # all variants, two ranks, about six minutes
    python benchmarks/ablations.py runs/default --only alpha-beta

Each variant starts from copies of the run's earlier phases in RUN-NAME, so everything else is the same. The
table goes to the terminal, into the run's ablations.json, and to the phase's tables in the run's report.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanov2.report import build_report
from nanov2.run import PHASES

ROOT = Path(__file__).parents[1]
VARIANTS = {  # name: phase, overrides, what it shows, metrics
    "no-meta-gate": (
        "verifier2",
        ["--verifier2.meta_gate=false"],
        "1D without R_meta: as many steps on the score alone",
        ("labelled/score_accuracy", "labelled/critique_quality", "labelled/invented_issue_rate"),
    ),
    "alpha-beta": (
        "selfverify",
        ["--selfverify.reward=alpha_beta"],
        "3 with the paper's R_format · (α·R_Y + β·R_Z) in place of the final proof's R_Y",
        ("hard/draft_true_score", "hard/final_true_score", "hard/revision_gain", "hard/self_score_error"),
    ),
}


def rerun(run: Path, name: str, ranks: int) -> Path:
    """The variant's folder, its phase done."""
    phase, overrides, _, _ = VARIANTS[name]
    folder = run.with_name(f"{run.name}-{name}")
    if not (folder / phase / "phase.json").is_file():
        for earlier in list(PHASES)[: list(PHASES).index(phase)]:
            if (run / earlier).is_dir():
                shutil.copytree(run / earlier, folder / earlier, dirs_exist_ok=True)
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
        script = [
            str(ROOT / "train.py"),
            f"--phase={phase}",
            f"--dir={folder}",
            f"--config={run / 'config.json'}",
        ]
        subprocess.run([*torchrun, *script, *overrides], check=True)
    return folder


def table(run: Path, name: str, folder: Path) -> dict:
    phase, _, title, metrics = VARIANTS[name]
    found = {d: json.loads((d / phase / "eval.json").read_text())["after"] for d in (run, folder)}
    cells = {
        d: [f"{m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]" for m in (after[x] for x in metrics)]
        for d, after in found.items()
    }
    rows = [[metric, cells[run][i], cells[folder][i]] for i, metric in enumerate(metrics)]
    return {"title": title, "columns": ["held-out, 95% interval", "the run", name], "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--only", choices=VARIANTS, action="append", help="only this variant (may be repeated)"
    )
    parser.add_argument("--ranks", type=int, default=2)
    args = parser.parse_args()
    tables = {}
    for name in args.only or VARIANTS:
        found = table(args.run, name, rerun(args.run, name, args.ranks))
        tables[name] = found
        print(f"\n{found['title']}\n| " + " | ".join(found["columns"]) + " |\n|---|---|---|")
        print("\n".join("| " + " | ".join(row) + " |" for row in found["rows"]))
        path = args.run / VARIANTS[name][0] / "phase.json"
        done = json.loads(path.read_text())
        others = [t for t in done.get("tables", []) if t["title"] != found["title"]]
        path.write_text(json.dumps(done | {"tables": [*others, found]}, indent=1))
    (args.run / "ablations.json").write_text(json.dumps(tables, indent=1))
    build_report(args.run)


if __name__ == "__main__":
    main()
