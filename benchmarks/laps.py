"""Laps with automatic labels against laps without, from the same first lap: the reason for phase 4.

    python benchmarks/laps.py runs/seed0 runs/seed1 runs/seed2 --laps=4 --out=docs
    python benchmarks/laps.py runs/seed0 runs/seed1 runs/seed2 --minutes=60      # lap 2 of all seeds first

From a finished run's first lap RUN-laps goes on with its own labels, and RUN-laps-no-labels without: the
labelled proofs never join 𝒟v (autolabel.grow = false), so its verifiers train as many steps on what the
weak prover once wrote. All else is the same: weights to start from, problems, steps, seeds. What is finished
is not done again, and what was stopped goes on. laps.json in --out holds every seed's figures, and results.md
there gets the table. "Hardest" is a fixed held-out set: the harder problems or, in runs whose problems get
harder each lap (world.lap_chain), those of the last lap. Other settings of later laps, such as
--lap_generator.steps=90, go to both sides.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runs import (
    MISSING,
    ROOT,
    Job,
    add_table,
    check_runs,
    difference,
    do_all,
    figures_of,
    fill,
    is_done,
    options,
    spread,
    table,
    tell,
)
from nanov2.errors import InputError
from nanov2.pages.report import build_report
from nanov2.records import read_json, write_atomically
from nanov2.run.cli import script
from nanov2.run.config import load_config

SIDES = {"with labels": "laps", "without": "laps-no-labels"}  # title → how the folder's name goes on
FIGURES = (  # title, phase, figure on the hardest held-out set, whether at temperature 0 too
    ("verifier's score accuracy on the newest proofs", "newest", "score_accuracy", True),
    ("wrong ones of them that the verifier passes", "newest", "wrong_passed", True),
    ("verifier's score accuracy on its own run's newest proofs", "verifier2", "score_accuracy", True),
    ("generator's true score, phase 2", "generator", "true_score", True),
    ("final true score, phase 3", "selfverify", "final_true_score", True),
    ("reward − truth, phase 2", "generator", "hacking_gap", True),
    ("reward − truth, phase 3", "selfverify", "hacking_gap", True),
    ("perfect rewards that are wrong, phase 2", "generator", "false_accept_rate", True),
    ("perfect rewards that are wrong, phase 3", "selfverify", "false_accept_rate", True),
    ("agreement of labels", "autolabel", "label_agreement", False),
    ("coverage of labels", "autolabel", "label_coverage", False),
)
ROWS = [
    (f"{title}, T = {t}" if greedy else title, phase, name + ("@T0" if t == 0 else ""))
    for title, phase, name, greedy in FIGURES
    for t in ((1, 0) if greedy else (1,))
]
LATER = ("--lap_", "--consolidate.", "--renew_meta.")  # settings that leave lap 1 alone
Seeds = list[dict[str, dict[str, dict[str, float]]]]  # of each seed: side → lap → title → value


def side_folder(run: Path, side: str) -> Path:
    return run.with_name(f"{run.name}-{SIDES[side]}")


def lap_job(run: Path, side: str, lap: int, settings: list[str]) -> Job:
    """All phases of a side's run up to the end of a lap, which follows the side's last one."""
    folder, grow = side_folder(run, side), str(side == "with labels").lower()
    command = (sys.executable, str(ROOT / "train.py"), "--phase=flywheel", f"--from={run}", f"--dir={folder}")
    needs = (is_done(folder, "autolabel", lap - 1) if lap > 2 else is_done(run, "autolabel"),)
    options = (f"--autolabel.grow={grow}", *settings)
    log = folder.with_name(f"{folder.name}.log")
    return Job(f"{folder}, lap {lap}", (*command, *options), is_done(folder, "autolabel", lap), log, needs)


def newest_file(run: Path, lap: int) -> Path:
    return run.with_name(f"{run.name}-laps-newest-{lap}.json")


def newest_job(run: Path, lap: int) -> Job:
    """Both sides' verifiers of a lap on the newest proofs of both."""
    folders, out = [side_folder(run, side) for side in SIDES], newest_file(run, lap)
    command = (sys.executable, str(ROOT / "benchmarks" / "newest.py"), *map(str, folders))
    needs = tuple(is_done(folder, "verifier2", lap) for folder in folders)
    asked = (*command, f"--lap={lap}", f"--out={out}")
    return Job(f"{run}, newest proofs of lap {lap}", asked, out, out.with_suffix(".log"), needs)


def jobs(runs: list[Path], laps: int, overrides: list[str]) -> list[Job]:
    """A lap of all runs and sides before the next lap. How many laps follow changes nothing in a lap, but in
    runs whose problems get harder: what is hardest there is that of the run's last lap."""
    found = []
    for lap in range(2, laps + 1):
        for run in runs:
            all_laps = laps if load_config(run / "config.json").gets_harder else lap
            found += [lap_job(run, side, lap, [f"--laps={all_laps}", *overrides]) for side in SIDES]
            found.append(newest_job(run, lap))
    return found


def check(runs: list[Path], laps: int, overrides: list[str]) -> None:
    """InputError where the first lap would be made again."""
    check_runs(runs)
    for run in runs:
        config = load_config(run / "config.json")
        if config.gets_harder and config.laps != laps:
            raise InputError(
                f"{run}: its problems get harder over {config.laps} laps: give --laps={config.laps}"
            )
        if not config.autolabel.grow:
            raise InputError(f"{run} was made without labels (autolabel.grow): begin from one with them")
    for override in overrides:
        if not override.startswith(LATER):
            raise InputError(f"{override} would change the first lap: give those of {', '.join(LATER)}…")


def figures(folder: Path, lap: int) -> dict[str, float]:
    """A side's figures after a lap, by title; those that are there. The first lap's verifier has no newest
    proofs: it is measured on the weak prover's."""
    found = {}
    for title, phase, name in ROWS:
        if phase == "newest" or (lap == 1 and phase == "verifier2"):
            continue
        after = figures_of(folder, phase, lap)
        sets = ("hard",) if phase in ("verifier2", "autolabel") else ("hardest", "hard")
        if known := [after[key] for s in sets if (key := f"{s}/{name}") in after]:
            found[title] = known[0]
    return found


def measured(run: Path, laps: int) -> dict[str, dict[str, dict[str, float]]]:
    """One seed's figures: side → lap → title → value. Lap 1 is the run's own."""
    found = {}
    for i, side in enumerate(SIDES):
        found[side] = {"1": figures(run, 1)}
        for lap in range(2, laps + 1):
            path = newest_file(run, lap)
            newest = read_json(path)["runs"][i] if path.is_file() else {}
            same = {
                title: newest[name] for title, phase, name in ROWS if phase == "newest" and name in newest
            }
            found[side][str(lap)] = same | figures(side_folder(run, side), lap)
    return found


def rows(seeds: Seeds, laps: int) -> list[list[str]]:
    """[figure, side, lap 1, lap 2, …] and, of laps 2, 3, …, the differences within seeds."""
    out = []
    for title, *_ in ROWS:
        found = {
            side: [{i: s[side][str(n)].get(title) for i, s in enumerate(seeds)} for n in range(1, laps + 1)]
            for side in SIDES
        }
        for side, by_lap in found.items():
            out.append([title, side, *(cell([v for v in lap.values() if v is not None]) for lap in by_lap)])
        apart = []
        for ours, theirs in zip(*found.values(), strict=True):
            both = [i for i in ours if ours[i] is not None and theirs[i] is not None]
            apart.append(difference([ours[i] - theirs[i] for i in both]) if both else "–")
        out.append([title, "difference", "–", *apart[1:]])
    return out


def cell(values: list[float]) -> str:
    """Mean ± standard deviation over seeds, with each seed's value."""
    if len(values) < 2:
        return spread(values) if values else "–"
    each = ", ".join(f"{v:.3f}" for v in values)
    return f"{spread(values)} ({each})"


def columns(laps: int) -> list[str]:
    return ["held-out", "labels", *(f"lap {n}" for n in range(1, laps + 1))]


def lap_table(seeds: Seeds, laps: int) -> str:
    """The table in Markdown; of nothing one line."""
    known = any(s[side][str(n)] for s in seeds for side in SIDES for n in range(2, laps + 1))
    return table(columns(laps), rows(seeds, laps)) if known else f"{MISSING.capitalize()}.\n"


def report(runs: list[Path], laps: int, out: Path) -> str:
    """laps.json, and the table in results.md, of whatever has been measured."""
    seeds = [measured(run, laps) for run in runs]
    found = {"runs": [run.name for run in runs], "laps": laps, "seeds": seeds}
    write_atomically(out / "laps.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    text = lap_table(seeds, laps)
    fill(out / "results.md", {"laps": text})
    return text


def into_report(run: Path, laps: int) -> None:
    """The table of one seed in its own report."""
    folder = side_folder(run, "with labels")
    if is_done(folder, "autolabel", laps).is_file():
        title = "Laps with automatic labels and without"
        add_table(folder, "autolabel", laps, title, columns(laps), rows([measured(run, laps)], laps))
        build_report(folder)


def main() -> None:
    parser = options(__doc__, "runs/laps")
    parser.add_argument("--laps", type=int, default=4)
    args, overrides = parser.parse_known_args()
    check(args.runs, args.laps, overrides)
    after = partial(report, args.runs, args.laps, args.out)
    wrong = do_all(jobs(args.runs, args.laps, overrides), args.workers, args.minutes, after)
    print(after())
    for run in args.runs:
        into_report(run, args.laps)
    for line in wrong:
        tell(line)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    script(main)
