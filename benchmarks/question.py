"""What keeps a generator from fooling its verifier? Does a meta-verifier help? Arms × seeds, exact truth.

    python benchmarks/question.py runs/seed0 … runs/seed4 --steps=80 --out=docs     # as in docs/question.md
    python benchmarks/question.py runs/seed* --minutes=60                # what is worth most comes first
    python benchmarks/question.py runs/seed* --arms mean-v2 min-v2       # only these
    python benchmarks/question.py runs/smoke --smoke                     # a test of it: nothing is learnt

Every run has finished lap 1 of the default configuration, one run a seed. An arm begins from it (`--from`),
changes one setting, and trains what the change touches, in RUN-question/ARM. What is finished is not done
again, and what was stopped goes on. question.json, question.md and question.svg in --out hold each arm's mean
over seeds with the 95% interval of Student's t, and the claims of others, each decided by its differences
within seeds; they are written whenever an arm has finished, from the seeds that are there. docs/question.md
says what each arm is for, and is filled in where it is in --out. Other settings (--generator.steps=60) go to
all arms.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import question_tables as show
from benchmarks.refinement import REVISERS
from benchmarks.runs import (
    ROOT,
    Job,
    check_runs,
    do_all,
    figures_of,
    fill,
    is_done,
    options,
    phase_folder,
    phase_job,
    tell,
)
from nanov2.method.alarms import compare
from nanov2.records import read_json, write_atomically
from nanov2.rl.logs import read_rows
from nanov2.run.cli import script
from nanov2.run.config import load_config

LOOKS = 4  # of a judge at one proof, in every arm
BEFORE = {
    "base": "base",
    "meta": "verifier",
    "verifier": "coldstart",
    "aware": "verifier",
    "verifier2": "meta",
    "generator": "verifier2",
}


@dataclass(frozen=True)
class Arm:
    """A phase done with other settings; `takes` is another arm that it begins from, in place of the run."""

    title: str
    phase: str
    settings: tuple[str, ...] = ()
    takes: str = ""


def judged(rule: str, phase: str, who: str, *more: str, takes: str = "") -> Arm:
    """A generator trained against a rule over the looks of a phase's model."""
    settings = (f"--generator.judged_by={phase}", f"--generator.judge_rule={rule}", *more)
    return Arm(f"{rule} of {LOOKS} looks by {who}", "generator", settings, takes)


def settings_of(
    name: str, sections: tuple[str, ...], only: tuple[str, ...] = (), but: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """What makes these sections of the default configuration, which the runs have, those of another one."""
    runs, wanted = (load_config(ROOT / "configs" / c).to_dict() for c in ("proofworld.toml", name))
    return tuple(
        f"--{section}.{field}={json.dumps(value)}"
        for section in sections
        for field, value in wanted[section].items()
        if value != runs[section][field] and field not in but and (field in only or not only)
    )


STOPS, VARIANCE = "--generator.judge_error=0.05", "--generator.draw=variance"
MISSES = "--meta.misses=true"
AWARE, NO_GATE = "--aware.on=true", "--verifier2.meta_gate=false"
# The base of configs/hacking.toml, and its world. The held-out sets stay as large as the other arms' are, so
# that figures are as sure.
WEAK = settings_of("hacking.toml", ("model", "world", "noise", "base"), but=("held_out", "validation"))
WEAK += settings_of("hacking.toml", ("generator",), only=("lr",))
WEAK += settings_of("hacking.toml", ("eval",), only=("pass_at",))
# The tokens of `mean-weak` spent otherwise: half of them train the verifier first (1A and 1B).
FIRST = ("--coldstart.problems=300", "--coldstart.subset=400", "--coldstart.hard=0.3")
FIRST += ("--verifier.steps=28", "--verifier.lr=5e-4")
ARMS = {  # those that are worth most come first
    "mean-v2": judged("mean", "verifier2", "v2"),
    "min-v2": judged("min", "verifier2", "v2"),
    "gate-v2": judged("gate", "verifier2", "v2"),
    "mean-v1": judged("mean", "verifier", "v1"),
    "mean-base": judged("mean", "base", "the base"),
    "min-base": judged("min", "base", "the base"),
    "weak": Arm("a weak base", "base", WEAK),
    "mean-weak": judged("mean", "base", "a weak base", *WEAK, takes="weak"),
    "min-weak": judged("min", "base", "a weak base", *WEAK, takes="weak"),
    "weak-1A": Arm("1A by the weak base", "coldstart", WEAK + FIRST, takes="weak"),
    "weak-v1": Arm("1B from the weak base", "verifier", WEAK + FIRST, takes="weak-1A"),
    "trained-weak": judged(
        "mean", "verifier", "its v1, at equal tokens", *WEAK, *FIRST, "--generator.steps=30", takes="weak-v1"
    ),
    "finding": Arm("1B with credit per finding", "verifier", ("--verifier.credit=finding",)),
    "curriculum": judged("mean", "verifier2", "v2, drawn by variance", VARIANCE),
    "no-gate": Arm("1D without R_meta", "verifier2", (NO_GATE,)),
    "aware": Arm("v1 distilled with the solution in view", "aware", (AWARE,)),
    "unaware": Arm("the same without the solution", "aware", (AWARE, "--aware.solution=false")),
    "mean-no-gate": judged("mean", "verifier2", "1D without R_meta", NO_GATE, takes="no-gate"),
    "meta-misses": Arm("1C, where a missed issue counts too", "meta", (MISSES,)),
    "misses": Arm("1D gated by it", "verifier2", (MISSES,), takes="meta-misses"),
    "mean-misses": judged("mean", "verifier2", "v2 gated for misses", MISSES, takes="misses"),
    "min-v2-stop": judged("min", "verifier2", "v2, early stop", STOPS),
    "min-v1": judged("min", "verifier", "v1"),
    "mean-aware": judged("mean", "aware", "the aware critic", AWARE, takes="aware"),
}
GENERATORS = {name: arm.title for name, arm in ARMS.items() if arm.phase == "generator"}
# Refinement: a reviser of the run revises by the critiques of each of these, phases of the run or arms.
PHASES = {"base": "base", "v1": "verifier", "v2": "verifier2"}
CRITICS = ("self", *PHASES, "no-gate", "aware", "unaware")


def arm_folder(run: Path, name: str) -> Path:
    return run.with_name(f"{run.name}-question") / name


def critic_folder(run: Path, critic: str) -> Path:
    """The folder of a critic's model."""
    return run / PHASES[critic] if critic in PHASES else arm_folder(run, critic) / ARMS[critic].phase


def refined(run: Path, critic: str) -> Path:
    return arm_folder(run, f"refine-{critic}.json")


def arm_job(run: Path, name: str, shared: list[str]) -> Job:
    """What makes an arm."""
    arm = ARMS[name]
    source = arm_folder(run, arm.takes) if arm.takes else run
    needs = (is_done(source, ARMS[arm.takes].phase if arm.takes else BEFORE[arm.phase]),)
    return phase_job(arm_folder(run, name), source, arm.phase, 1, (*shared, *arm.settings), needs)


def measuring(run: Path, name: str, out: Path, needs: tuple[Path, ...], *command: str) -> Job:
    """Another benchmark's figures of a run, in a JSON file."""
    script, *args = command
    asked = (sys.executable, str(ROOT / "benchmarks" / script), str(run), *args)
    return Job(f"{run.name} {name}", asked, out, out.with_suffix(".log"), needs)


def refinement_job(run: Path, critic: str, problems: int, rounds: int) -> Job:
    needs, which = (is_done(run, "generator"),), []
    if critic != "self":
        folder = critic_folder(run, critic)
        needs, which = (*needs, folder / "phase.json"), [f"--critic={folder}"]
    out, size = refined(run, critic), (f"--problems={problems}", f"--rounds={rounds}")
    return measuring(
        run, f"refinement by {critic}", out, needs, "refinement.py", *which, *size, f"--out={out}"
    )


def labels_job(run: Path, proofs: int) -> Job:
    out, needs = arm_folder(run, "labels.json"), (is_done(run, "autolabel"),)
    return measuring(run, "labels", out, needs, "labels.py", f"--rules={out}", f"--proofs={proofs}")


def jobs(runs: list[Path], arms: list[str], shared: list[str], smoke: bool, problems: int) -> list[Job]:
    """All of an arm's seeds before the next arm's; what refinement needs is followed by it."""
    found = []
    size = (4, 2) if smoke else (problems, 4)
    for name in arms:
        found += [arm_job(run, name, shared) for run in runs]
        if name in CRITICS:
            found += [refinement_job(run, name, *size) for run in runs]
        if name == "gate-v2":  # cheap, and of what the runs have already
            found += [labels_job(run, 8 if smoke else 400) for run in runs]
        if name == "mean-base":
            found += [refinement_job(run, critic, *size) for critic in ("self", *PHASES) for run in runs]
    return found


def kept(folder: Path, phase: str, when: str = "after") -> dict[str, float]:
    """Those of a phase's held-out figures that tables and claims are made of."""
    found = figures_of(folder, phase, when=when)
    return {name: value for name, value in found.items() if name in show.KEPT}


def figures(folder: Path, phase: str) -> dict[str, float]:
    """A phase's held-out figures at its end, what it sampled, and how many of its groups had variance."""
    after = kept(folder, phase)
    if not after:
        return {}
    rows = read_rows(phase_folder(folder, phase) / "metrics.jsonl")

    def spent(name: str) -> float:
        return sum(row.get(name, 0) for row in rows)

    return after | {
        "tokens": spent("tokens") + spent("judge_tokens"),
        "judge_share": spent("judge_tokens") / max(spent("tokens"), 1),  # for each of the generator's
        "kept_share": spent("groups_kept") / max(spent("groups_sampled"), 1),
    }


def measured(run: Path) -> dict[str, dict[str, float]]:
    """All figures of one seed that are there, by arm; those of a generator's start as "ARM start"."""
    found = {"base": figures(run, "base"), "v1": figures(run, "verifier"), "v2": figures(run, "verifier2")}
    found["run"] = figures(run, "generator")
    for name, arm in ARMS.items():
        found[name] = figures(arm_folder(run, name), arm.phase)
        if name in GENERATORS:
            found[f"{name} start"] = kept(arm_folder(run, name), "generator", "before")
    for critic in CRITICS:
        by_reviser = read_json(path) if (path := refined(run, critic)).is_file() else {}
        found |= {f"{reviser} by {critic}": by_reviser.get(reviser, {}) for reviser in REVISERS}
    if (path := arm_folder(run, "labels.json")).is_file():
        found |= {f"label {rule}": values for rule, values in read_json(path).items()}
    return {name: values for name, values in found.items() if values}


def report(runs: list[Path], out: Path) -> str:
    """question.json, question.md and question.svg of whatever has been measured; returns the tables."""
    seeds = [measured(run) for run in runs]
    curves = [arm_folder(run, name) / "generator" for run in runs for name in GENERATORS]
    alarms = compare(
        [read_rows(path / "metrics.jsonl") for path in curves if (path / "phase.json").is_file()]
    )
    found = {"runs": [run.name for run in runs], "seeds": seeds, "alarms": alarms}
    write_atomically(out / "question.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_atomically(out / "question.svg", show.drawing(seeds, GENERATORS))
    parts = tables(seeds, alarms)
    fill(out / "question.md", parts)
    return "\n".join(parts.values())


def tables(seeds: show.Seeds, alarms: list[dict]) -> dict[str, str]:
    """The parts of docs/question.md that are made of figures."""
    return {
        "claims": show.claim_table([show.decide(c, seeds) for c in show.CLAIMS], alarms),
        "generators": show.arm_table(seeds, GENERATORS),
        "refinement": show.critic_table(seeds, REVISERS, CRITICS),
        "labels": show.label_table(seeds),
        "alarms": show.alarm_table(alarms),
    }


def read_args() -> tuple[argparse.Namespace, list[str]]:
    parser = options(__doc__, "runs/question")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS), help="only these")
    parser.add_argument("--steps", type=int, default=120, help="of each generator")
    parser.add_argument("--problems", type=int, default=200, help="of each held-out set, for refinement")
    parser.add_argument("--smoke", action="store_true", help="two steps an arm and few problems")
    return parser.parse_known_args()


def main() -> None:
    args, overrides = read_args()
    check_runs(args.runs)
    steps = 2 if args.smoke else args.steps
    shared = [f"--generator.steps={steps}", f"--generator.eval_every={steps}", "--generator.init=base"]
    shared += [f"--generator.judge_samples={LOOKS}", "--generator.prompts=8"]
    if args.smoke:
        shared += ["--generator.prompts=2", "--generator.samples=4", "--aware.steps=2"]
    todo = jobs(args.runs, args.arms, shared + overrides, args.smoke, args.problems)
    wrong = do_all(todo, args.workers, args.minutes, lambda: report(args.runs, args.out))
    print(report(args.runs, args.out))
    for line in wrong:
        tell(line)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    script(main)
