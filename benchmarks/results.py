"""Figures of finished runs (seeds): docs/results.json, the tables of docs/results.md, and README's beside it.

    for s in 0 1 2; do torchrun --nproc-per-node=2 train.py --phase=flywheel --seed=$s --dir=runs/seed$s; done
    python benchmarks/results.py runs/seed0 runs/seed1 runs/seed2 --out=docs

Every row is the phase's own start against its end, at temperature 1 and at temperature 0, since a gain at
temperature 1 alone may be no more than a lower temperature. v2 is compared with v1 after as many steps.
Several runs give mean ± standard deviation over seeds. With `--keep` the seeds of results.json that are not
given stay in it, so that seeds can be measured one after the other; without any run the tables are made
again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import runs as bench
from nanov2.records import read_json


@dataclass(frozen=True)
class Row:
    """A figure before and after: a phase's own, or (`beside`) that of another model in place of its start."""

    step: str
    title: str
    phase: str
    figure: str
    beside: str = ""  # the model that "before" is of, as eval.json calls it
    readme: bool = False
    greedy: bool = True  # whether the figure is measured at temperature 0 too


V1, BEST = "verifier v1", "the start at its best temperature"
THETA1 = "the generator of phase 2"
ROWS = (
    Row("1B", "score accuracy, base → v1", "verifier", "labelled/score_accuracy", readme=True),
    Row("1B", "the same, from the base's best T", "verifier", "labelled/score_accuracy", BEST, greedy=False),
    Row(
        "1B",
        "critiques of failed proofs with an invented issue",
        "verifier",
        "labelled/invented_in_failed_rate",
    ),
    Row("1B", "critiques that miss an issue", "verifier", "labelled/missed_issue_rate"),
    Row("1C", "balanced accuracy of πη", "meta", "labelled/meta_balanced_accuracy", readme=True),
    Row(
        "1C",
        "the same, from the base's best T",
        "meta",
        "labelled/meta_balanced_accuracy",
        BEST,
        greedy=False,
    ),
    Row("1C", "plain accuracy of πη", "meta", "labelled/meta_accuracy"),
    Row("1C", "a constant answer", "meta", "labelled/meta_constant_accuracy"),
    Row("1D", "critique quality, v1 → v2", "verifier2", "labelled/critique_quality", V1, readme=True),
    Row("1D", "score accuracy, v1 → v2", "verifier2", "labelled/score_accuracy", V1),
    Row(
        "1D",
        "invented in failed proofs, v1 → v2",
        "verifier2",
        "labelled/invented_in_failed_rate",
        V1,
        readme=True,
    ),
    Row("1D", "missed issues, v1 → v2", "verifier2", "labelled/missed_issue_rate", V1),
    Row("2", "true score, base → θ v1", "generator", "labelled/true_score", readme=True),
    Row("2", "the same, from the base's best T", "generator", "labelled/true_score", BEST, greedy=False),
    Row("2", "true score, harder problems", "generator", "hard/true_score"),
    Row("2", "verifier's reward − true score", "generator", "labelled/hacking_gap"),
    Row("2", "perfect rewards that are wrong", "generator", "labelled/false_accept_rate"),
    Row("2", "pass@1, harder problems", "generator", "hard/pass_at_1", greedy=False),
    Row("2", "pass@4, harder problems", "generator", "hard/pass_at_4", greedy=False),
    Row("2", "pass@16, harder problems", "generator", "hard/pass_at_16", greedy=False),
    Row("2", "pass@64, harder problems", "generator", "hard/pass_at_64", greedy=False),
    Row("3", "final true score, harder problems", "selfverify", "hard/final_true_score", readme=True),
    Row("3", "the same, θ v1 → θ v2", "selfverify", "hard/final_true_score", THETA1),
    Row("3", "draft to final, harder problems", "selfverify", "hard/revision_gain"),
    Row("3", "the same, from the start's best T", "selfverify", "hard/final_true_score", BEST, greedy=False),
    Row("3", "draft true score, harder problems", "selfverify", "hard/draft_true_score"),
    Row("4", "agreement of labels", "autolabel", "hard/label_agreement", greedy=False),
    Row("4", "majority, same proofs", "autolabel", "hard/majority_agreement", greedy=False),
    Row("4", "mean, same proofs", "autolabel", "hard/mean_agreement", greedy=False),
    Row("4", "one critique, same proofs", "autolabel", "hard/single_critique_agreement", greedy=False),
    Row("4", "the paper's letter, same proofs", "autolabel", "hard/letter_agreement", greedy=False),
    Row("4", "a constant answer, same proofs", "autolabel", "hard/constant_agreement", greedy=False),
    Row("4", "coverage", "autolabel", "hard/label_coverage", greedy=False),
    Row("lap 2", "score accuracy on the generator's hard proofs", "lap2/verifier2", "hard/score_accuracy"),
    Row("lap 2", "true score, harder problems", "lap2/generator", "hard/true_score"),
    Row("lap 2", "reward − truth, harder problems", "lap2/generator", "hard/hacking_gap"),
    Row("lap 2", "final true score, harder problems", "lap2/selfverify", "hard/final_true_score"),
)


def value(run: Path, row: Row, when: str, suffix: str) -> float | None:
    """One figure of one run; None where the run has not got it."""
    path = run / row.phase / "eval.json"
    if not path.is_file():
        return None
    found = read_json(path)
    if when == "before" and row.beside:
        figures = found.get("beside", {}).get(row.beside, {})
    else:
        figures = found.get(when, {})
    figure = figures.get(row.figure + suffix)
    return figure and figure["value"]


def measure(runs: list[Path]) -> list[dict]:
    """A dict a row: `T=1` and `T=0`, each with `before` and `after`, a list of one number a run."""
    out = []
    for row in ROWS:
        found: dict = {"step": row.step, "figure": row.title, "readme": row.readme}
        for name, suffix in (("T=1", ""), ("T=0", "@T0")):
            pair = {when: [value(r, row, when, suffix) for r in runs] for when in ("before", "after")}
            if any(v is not None for v in pair["after"]):
                found[name] = pair
        out.append(found)
    return out


def joined(old: dict, names: list[str], rows: list[dict], n: int) -> list[dict]:
    """The runs `names` of an older results.json, then those of `rows`, n runs."""
    at, before = (
        [old["runs"].index(name) for name in names],
        {(r["step"], r["figure"]): r for r in old["rows"]},
    )

    def values(row: dict, key: str, when: str, count: int) -> list[float | None]:
        return row[key][when] if key in row else [None] * count

    out = []
    for row in rows:
        kept = before.get((row["step"], row["figure"]), {})
        out.append({key: row[key] for key in ("step", "figure", "readme")})
        for key in [key for key in ("T=1", "T=0") if key in row or key in kept]:
            out[-1][key] = {}
            for when in ("before", "after"):
                known = values(kept, key, when, len(old["runs"]))
                out[-1][key][when] = [*(known[i] for i in at), *values(row, key, when, n)]
    return out


def change(before: list[float | None], after: list[float | None]) -> str:
    """Mean ± standard deviation over the runs that have it, before → after; a dash where nobody has it."""
    start, end = ([v for v in values if v is not None] for values in (before, after))
    result = bench.spread(end) if end else "–"
    return f"{bench.spread(start)} → {result}" if start else result


def table(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        pairs = [row.get(name) for name in ("T=1", "T=0")]
        cells = [change(pair["before"], pair["after"]) if pair else "" for pair in pairs]
        lines.append([row["step"], row["figure"], *cells])
    return bench.table(["step", "figure", "T = 1", "T = 0"], lines)


def each_seed(names: list[str], rows: list[dict]) -> str:
    """Every row of each run, at either temperature."""
    lines = []
    for row in rows:
        for name in [name for name in ("T=1", "T=0") if name in row]:
            pairs = zip(row[name]["before"], row[name]["after"], strict=True)
            lines.append([row["step"], row["figure"], name[2:], *(change([a], [b]) for a, b in pairs)])
    return bench.table(["step", "figure", "T", *names], lines)


def gains(rows: list[dict]) -> str:
    """README's rows, means alone."""

    def mean(pair: dict) -> str:
        both = ([v for v in pair[when] if v is not None] for when in ("before", "after"))
        return " → ".join(f"{statistics.fmean(values):.3f}" for values in both)

    lines = [
        [row["step"], row["figure"], mean(row["T=1"]), mean(row["T=0"])] for row in rows if row["readme"]
    ]
    return bench.table(["step", "figure", "T = 1", "T = 0"], lines)


def costs(runs: list[Path]) -> str:
    """Minutes and memory of each run."""
    lines = []
    for run in runs:
        done = [read_json(p) for p in sorted(run.glob("**/phase.json"))]
        minutes = sum(d["seconds"] for d in done) / 60
        memory = max(d["peak_memory_mb"] for d in done) / 1024
        lines.append(f"- {run.name}: {minutes:.1f} minutes in {len(done)} phases, {memory:.1f} GB a process")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--out", type=Path, help="folder for results.json and results.md")
    parser.add_argument("--keep", action="store_true", help="keep the other seeds of --out's results.json")
    args = parser.parse_args()
    rows, names = measure(args.runs), [r.name for r in args.runs]
    if args.out:
        path = args.out / "results.json"
        if args.keep and path.is_file():
            old = read_json(path)
            others = [name for name in old["runs"] if name not in names]
            rows, names = joined(old, others, rows, len(names)), [*others, *names]
        path.write_text(json.dumps({"runs": names, "rows": rows}, indent=1, ensure_ascii=False) + "\n")
        bench.fill(args.out / "results.md", {"results": table(rows), "seeds": each_seed(names, rows)})
        if (readme := args.out.parent / "README.md").is_file():
            bench.fill(readme, {"gains": gains(rows)})
    print(table(rows), costs(args.runs), sep="\n\n")


if __name__ == "__main__":
    main()
