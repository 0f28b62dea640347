"""What single parts of the method do: phases of finished runs again, with one setting changed; one table.

    python benchmarks/ablations.py runs/seed0 runs/seed1 runs/seed2 --out=docs      # all variants
    python benchmarks/ablations.py runs/seed0 --only generator-from-verifier --only renew-meta
    python benchmarks/ablations.py RUN RUN RUN --minutes=30      # those that are worth most come first

Each variant begins from a finished run (`--from`) in RUN-NAME, and does again what its setting touches, up
to the phase that is measured; the run's own phase is what it is held against. What is finished is not done
again, and what was stopped goes on. The table goes to the terminal, into ablations.json and results.md in
--out, and to the phase's tables in each run's report. Figures are of held-out items, at temperature 1 and
(@T0) at 0.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runs import (
    MISSING,
    Job,
    add_table,
    check_runs,
    difference,
    do_all,
    figures_of,
    fill,
    is_done,
    options,
    phase_job,
    spread,
    table,
    tell,
)
from nanov2.pages.report import build_report
from nanov2.records import write_atomically
from nanov2.run.cli import script
from nanov2.run.config import load_config
from nanov2.run.phases import flywheel


@dataclass(frozen=True)
class Variant:
    """The phases of the cycle from `first` to `measured`, each (phase, lap), again with other settings."""

    title: str
    first: tuple[str, int]
    measured: tuple[str, int]
    settings: tuple[str, ...]
    figures: tuple[str, ...]


CRITIC = ("labelled/score_accuracy", "labelled/critique_quality", "labelled/invented_in_failed_rate")
LATER = ("hard/score_accuracy", "hard/critique_quality", "hard/invented_in_failed_rate")
REFINED = ("hard/draft_true_score", "hard/final_true_score", "hard/revision_gain", "hard/self_score_error")
PROVER = ("labelled/true_score", "hard/true_score", "hard/hacking_gap", "hard/false_accept_rate")
SAMPLED = ("hard/pass_at_1", "hard/pass_at_64")  # at temperature 1 alone


def greedy(*names: str) -> tuple[str, ...]:
    """Each figure at both temperatures."""
    return tuple(name + at for name in names for at in ("", "@T0"))


VARIANTS = {  # those that are worth most come first
    "generator-from-verifier": Variant(
        "2 from the verifier's weights in place of a fresh base",
        ("generator", 1),
        ("generator", 1),
        ("--generator.init=verifier",),
        (*greedy(*PROVER), *SAMPLED),
    ),
    "no-meta-gate": Variant(
        "1D on the score alone, without R_meta",
        ("verifier2", 1),
        ("verifier2", 1),
        ("--verifier2.meta_gate=false",),
        greedy(*CRITIC),
    ),
    "renew-meta": Variant(
        "lap 2 with 𝒟mv and πη renewed, in place of lap 1's",
        ("renew_meta", 2),
        ("verifier2", 2),
        ("--renew_meta.on=true",),
        greedy(*LATER),
    ),
    "hardest-labels": Variant(
        "lap 2's 𝒟v with the 600 labelled proofs that are hardest to verify, in place of all",
        ("autolabel", 1),
        ("verifier2", 2),
        ("--autolabel.most=600",),
        greedy(*LATER),
    ),
    "alpha-beta": Variant(
        "3 with the paper's R_format · (α·R_Y + β·R_Z) in place of the final proof's R_Y",
        ("selfverify", 1),
        ("selfverify", 1),
        ("--selfverify.reward=alpha_beta",),
        greedy(*REFINED),
    ),
    "no-self-verification": Variant(
        "3 on proofs alone: as many steps, no critiques and revisions in training",
        ("selfverify", 1),
        ("selfverify", 1),
        ("--selfverify.max_turns=1",),
        greedy(*REFINED),
    ),
    "fresh-verifier": Variant(
        "lap 2's verifier from the base, twice the steps, in place of the last verifier's weights",
        ("verifier2", 2),
        ("verifier2", 2),
        ("--lap_verifier2.init=base", "--lap_verifier2.steps=100"),
        greedy(*LATER),
    ),
    "consolidated-verifier": Variant(
        "lap 2's verifier from the base that rejection fine-tuning consolidated, twice the steps",
        ("consolidate", 2),
        ("verifier2", 2),
        ("--lap_verifier2.init=consolidated", "--lap_verifier2.steps=100"),
        greedy(*LATER),
    ),
}
COLUMNS = ["held-out", "the run", "changed", "changed − the run, 95% interval, seeds"]


def variant_folder(run: Path, name: str) -> Path:
    return run.with_name(f"{run.name}-{name}")


def jobs(runs: list[Path], names: list[str], settings: list[str]) -> list[Job]:
    """All runs of a variant before the next one. Its phases follow each other."""
    found = []
    for name in names:
        variant = VARIANTS[name]
        for run in runs:
            if not is_done(run, *variant.measured).is_file():
                phase, lap = variant.measured
                tell(f"{name} is left out of {run}, which has not finished {phase} of lap {lap}")
                continue
            folder, needs = variant_folder(run, name), ()
            order = flywheel(load_config(run / "config.json", [*settings, *variant.settings]))
            for phase, lap in order[order.index(variant.first) : order.index(variant.measured) + 1]:
                job = phase_job(folder, run, phase, lap, (*settings, *variant.settings), needs)
                found, needs = [*found, job], (job.done,)
    return found


def figures(folder: Path, variant: Variant) -> dict[str, float]:
    """The variant's figures as a run measured them; empty where it has not."""
    known = figures_of(folder, *variant.measured)
    return {name: known[name] for name in variant.figures if name in known}


def measured(runs: list[Path], names: list[str]) -> dict[str, list[dict[str, dict[str, float]]]]:
    """By variant: of each run that has both, the figures of the run and of the variant."""
    found = {}
    for name in names:
        pairs = [
            {
                "run": figures(run, VARIANTS[name]),
                "changed": figures(variant_folder(run, name), VARIANTS[name]),
            }
            for run in runs
        ]
        found[name] = [pair for pair in pairs if pair["run"] and pair["changed"]]
    return found


def rows(pairs: list[dict[str, dict[str, float]]]) -> list[list[str]]:
    """COLUMNS of each figure that all pairs have."""
    common = [
        name for name in pairs[0]["run"] if all(name in p["run"] and name in p["changed"] for p in pairs)
    ]
    out = []
    for name in common:
        ours, changed = ([pair[side][name] for pair in pairs] for side in ("run", "changed"))
        apart = [b - a for a, b in zip(ours, changed, strict=True)]
        out.append([name, spread(ours), spread(changed), difference(apart)])
    return out


def ablation_table(found: dict[str, list[dict[str, dict[str, float]]]]) -> str:
    """The table in Markdown; of nothing one line."""
    lines = [[f"`{name}`", *row] for name, pairs in found.items() if pairs for row in rows(pairs)]
    return table(["ablation", *COLUMNS], lines) if lines else f"{MISSING.capitalize()}.\n"


def report(runs: list[Path], names: list[str], out: Path) -> str:
    """ablations.json, and the table in results.md, of whatever has been measured."""
    found = measured(runs, names)
    titles = {name: VARIANTS[name].title for name in names}
    facts = {"runs": [run.name for run in runs], "titles": titles, "variants": found}
    write_atomically(out / "ablations.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    text = ablation_table(found)
    fill(out / "results.md", {"ablations": text})
    return text


def into_report(run: Path, names: list[str]) -> None:
    """Each variant as a table of the run's phase, in the run's own report."""
    for name, pairs in measured([run], names).items():
        if pairs:
            variant = VARIANTS[name]
            add_table(run, *variant.measured, variant.title, COLUMNS, rows(pairs))
    build_report(run)


def main() -> None:
    parser = options(__doc__, "runs/ablations")
    parser.add_argument(
        "--only", choices=VARIANTS, action="append", help="only this variant (may be repeated)"
    )
    args, settings = parser.parse_known_args()
    check_runs(args.runs)
    names = args.only or list(VARIANTS)
    after = partial(report, args.runs, list(VARIANTS), args.out)  # of what earlier calls have done too
    wrong = do_all(jobs(args.runs, names, settings), args.workers, args.minutes, after)
    print(after())
    for run in args.runs:
        into_report(run, names)
    for line in wrong:
        tell(line)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    script(main)
