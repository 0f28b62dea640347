"""What keeps a generator from fooling its verifier? Does a meta-verifier help? Arms × seeds, exact truth.

    python benchmarks/question.py runs/seed0 runs/seed1 … runs/seed4     # about two hours on two cores
    python benchmarks/question.py runs/seed* --arms min-v2 mean-v2       # only these
    python benchmarks/question.py runs/smoke --smoke                     # a test of it: nothing is learnt

Every run has finished phase `generator` of lap 1. An arm does one part of the cycle again from that run's own
models with one thing changed, all else equal, in RUN-question/ARM. A finished arm is not done again, and a
stopped one goes on. question.json, question.md and question.svg in --out hold each arm's mean over seeds with
the 95% interval of Student's t, and the claims of others, each decided by its differences within seeds.
docs/question.md says what each arm is for.
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

from benchmarks import question_tables as show
from benchmarks.runs import do_phase, phase_folder
from nanov2.distributed.ranks import Ranks
from nanov2.hub.chat import load_model
from nanov2.hub.local import OwnAuthor
from nanov2.method.alarms import compare
from nanov2.method.search import refine
from nanov2.model.rollout import Sampling
from nanov2.records import write_atomically
from nanov2.rl.logs import read_rows
from nanov2.run.config import load_config
from nanov2.run.folder import Run

LOOKS = 4  # of a judge at one proof, in every arm
ORDER = ("base", "coldstart", "verifier", "meta", "verifier2", "generator")


@dataclass(frozen=True)
class Arm:
    """A phase done again with other settings; `takes` is another arm whose phase it needs."""

    title: str
    phase: str
    settings: tuple[str, ...] = ()
    takes: str = ""


def judged(rule: str, phase: str, who: str, *more: str, takes: str = "") -> Arm:
    """A generator trained against a rule over the looks of a phase's model."""
    settings = (f"--generator.judged_by={phase}", f"--generator.judge_rule={rule}", *more)
    return Arm(f"{rule} of {LOOKS} looks by {who}", "generator", settings, takes)


STOPS, VARIANCE = "--generator.judge_error=0.05", "--generator.draw=variance"
ARMS = {
    # critics
    "finding": Arm("1B with credit per finding", "verifier", ("--verifier.credit=finding",)),
    "no-gate": Arm("1D without R_meta", "verifier2", ("--verifier2.meta_gate=false",)),
    "aware": Arm("v1 distilled with the solution in view", "aware"),
    "unaware": Arm("the same without the solution", "aware", ("--aware.solution=false",)),
    # generators
    "mean-v2": judged("mean", "verifier2", "v2"),
    "min-v2": judged("min", "verifier2", "v2"),
    "gate-v2": judged("gate", "verifier2", "v2"),
    "min-v2-stop": judged("min", "verifier2", "v2, early stop", STOPS),
    "mean-v1": judged("mean", "verifier", "v1"),
    "min-v1": judged("min", "verifier", "v1"),
    "mean-base": judged("mean", "base", "the base"),
    "min-base": judged("min", "base", "the base"),
    "mean-aware": judged("mean", "aware", "the aware critic", takes="aware"),
    "curriculum": judged("mean", "verifier2", "v2, drawn by variance", VARIANCE),
}
GENERATORS = {name: arm.title for name, arm in ARMS.items() if arm.phase == "generator"}
# Refinement: the run's generator revises by the critiques of each of these phases or arms; "self": its own.
CRITICS = ("self", "verifier", "verifier2", "no-gate", "aware", "unaware")
NAMES = {"verifier": "v1", "verifier2": "v2"}


def do_arm(run: Path, name: str, ranks: int, flags: list[str]) -> dict[str, float]:
    """An arm's figures, made first if they are not there."""
    arm, folder = ARMS[name], arm_folder(run, name)
    done = folder / "result.json"
    if not done.is_file():
        if not (folder / "config.json").is_file():
            for phase in ORDER[: ORDER.index(arm.phase if arm.phase in ORDER else "meta")]:
                copy_phase(run / phase, folder / phase)
        if arm.takes:
            do_arm(run, arm.takes, ranks, flags)
            phase = ARMS[arm.takes].phase
            copy_phase(arm_folder(run, arm.takes) / phase, folder / phase)
        settings = [f"--config={run / 'config.json'}", *flags, *arm.settings]
        do_phase(folder, arm.phase, 1, ranks, *settings)
        write_atomically(done, json.dumps(figures(folder, arm.phase), indent=1))
    return json.loads(done.read_text())


def arm_folder(run: Path, name: str) -> Path:
    return run.with_name(f"{run.name}-question") / name


def copy_phase(source: Path, target: Path) -> None:
    """A finished phase's models and records for another folder, which is measured with settings of its own:
    without those that this one was measured with."""
    left_out = shutil.ignore_patterns("settings.json", "tensorboard")
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=left_out)


def figures(folder: Path, phase: str) -> dict[str, float]:
    """A phase's held-out figures at its end, what it sampled, and how many of its groups had variance."""
    path = phase_folder(folder, phase, 1)
    after = json.loads((path / "eval.json").read_text())["after"]
    rows = read_rows(path / "metrics.jsonl")

    def spent(name: str) -> float:
        return sum(row.get(name, 0) for row in rows)

    return {name: figure["value"] for name, figure in after.items()} | {
        "tokens": spent("tokens") + spent("judge_tokens"),
        "judge_share": spent("judge_tokens") / max(spent("tokens"), 1),  # for each of the generator's
        "kept_share": spent("groups_kept") / max(spent("groups_sampled"), 1),
    }


def do_refinement(run_folder: Path, problems: int, rounds: int) -> dict[str, dict[str, float]]:
    """By critic: true score of draft and final proof, proofs and tokens a problem, from the same drafts."""
    done = arm_folder(run_folder, "refinement.json")
    found = json.loads(done.read_text()) if done.is_file() else {}
    config = load_config(run_folder / "config.json")
    run = Run(run_folder, config, Ranks())
    model, tokenizer = run.load("generator")
    language, how = run.domain.language(tokenizer), Sampling(1.0, config.verifier.max_tokens)
    author, truth = OwnAuthor(model, language, how, config.seed), run.domain.truth
    asked = [p.problem for name in ("held_out", "held_out_hard") for p in run.problems[name][:problems]]
    for name in CRITICS:
        title = f"refine {NAMES.get(name, name)}"
        where, phase = (
            (arm_folder(run_folder, name), ARMS[name].phase) if name in ARMS else (run_folder, name)
        )
        if title in found or not (name == "self" or (where / phase / "phase.json").is_file()):
            continue
        critic = None
        if name != "self":
            critic = OwnAuthor(load_model(where / phase)[0], language, how, config.seed)
        written = refine(author, language, asked, list(range(len(asked))), rounds, critic=critic)
        scores = [[truth.score(x, d.proof) for d in ds] for x, ds in zip(asked, written, strict=True)]
        found[title] = {
            "draft": statistics.fmean(s[0] for s in scores),
            "final": statistics.fmean(s[-1] for s in scores),
            "proofs": statistics.fmean(len(s) for s in scores),
            "tokens": statistics.fmean(sum(d.tokens for d in drafts) for drafts in written),
        }
        write_atomically(done, json.dumps(found, indent=1))
    return found


def report(seeds: show.Seeds, runs: list[Path], out: Path) -> str:
    """question.json, question.md and question.svg of whatever has been measured; returns the tables."""
    claims = [show.decide(c, seeds) for c in show.CLAIMS]
    curves = [arm_folder(run, name) / "generator" / "metrics.jsonl" for run in runs for name in GENERATORS]
    alarms = compare([read_rows(path) for path in curves if path.is_file()])
    found = {"runs": [run.name for run in runs], "seeds": seeds, "claims": claims, "alarms": alarms}
    tables = [
        show.claim_table(claims),
        show.arm_table(seeds, GENERATORS),
        show.critic_table(seeds, [NAMES.get(name, name) for name in CRITICS]),
        show.alarm_table(alarms),
    ]
    write_atomically(out / "question.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_atomically(out / "question.md", "\n".join(tables))
    write_atomically(out / "question.svg", show.drawing(seeds, GENERATORS))
    return "\n".join(tables)


def measure(run: Path, args: argparse.Namespace, flags: list[str]) -> dict[str, dict[str, float]]:
    """All figures of one seed, by arm."""
    found = {name: figures(run, phase) for name, phase in (("v1", "verifier"), ("run", "generator"))}
    found["base"] = figures(run, "base")
    for name in args.arms:
        found[name] = do_arm(run, name, args.ranks, flags)
    return found | do_refinement(run, *((4, 2) if args.smoke else (args.problems, 4)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs, one for each seed")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS), help="only these")
    parser.add_argument("--steps", type=int, default=120, help="of each generator")
    parser.add_argument("--problems", type=int, default=200, help="of each held-out set, for refinement")
    parser.add_argument("--out", type=Path, default=Path("runs/question"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="two steps an arm and few problems")
    args, overrides = parser.parse_known_args()
    args.steps = 2 if args.smoke else args.steps
    flags = [f"--generator.steps={args.steps}", "--generator.init=base", "--generator.prompts=8"]
    flags += [f"--generator.judge_samples={LOOKS}", "--eval.pass_at=[0,0,0,0]"]
    if args.smoke:
        short = [f"--{phase}.steps=2" for phase in ("verifier", "verifier2", "aware")]
        flags += ["--generator.prompts=2", "--generator.samples=4", *short]
    seeds: show.Seeds = []
    for run in args.runs:
        seeds.append(measure(run, args, flags + overrides))
        tables = report(seeds, args.runs, args.out)
    print(tables)


if __name__ == "__main__":
    main()
