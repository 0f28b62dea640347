"""Who is fooled by whom, and do the looks of a judge agree where it is wrong?

    python benchmarks/fooled.py runs/seed0 runs/seed3 --out=docs

Each generator (the run's base, and those that benchmarks/question.py trained against one of the judges)
writes one proof of every harder held-out problem, and each judge looks at all of them LOOKS times. A judge
that only its own generator fools was searched for holes; one that all fool has them for everybody.
Several looks at a proof help against errors that are drawn anew each time, and not against those that a judge
makes of a proof whenever it looks: `agreement` is the share of the variance of a judge's scores of wrong
proofs that lies between proofs (the intraclass correlation; 1: all looks alike, 0: looks as if drawn anew).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.question import arm_folder, critic_folder
from benchmarks.runs import fill, spread, table
from nanov2.distributed.ranks import Ranks
from nanov2.hub.chat import load_model
from nanov2.method.figures import write_answers
from nanov2.method.judges import verifier_judge
from nanov2.model.rollout import Sampling
from nanov2.records import ProofRecord, write_atomically
from nanov2.run.cli import script
from nanov2.run.config import load_config
from nanov2.run.folder import Run

LOOKS = 8
JUDGES = ("base", "v1", "v2", "no-gate", "misses")
GENERATORS = ("base", *(f"mean-{judge}" for judge in JUDGES))


def generator_folder(run: Path, name: str) -> Path:
    return run / "base" if name == "base" else arm_folder(run, name) / "generator"


def is_finished(folder: Path) -> bool:
    return (folder / "phase.json").is_file()


def agreement(scores: list[list[float]]) -> float:
    """Share of the variance of the scores that lies between proofs; NaN where there is none.

    The one-way random-effects intraclass correlation, of as many looks for every proof.
    """
    k = len(scores[0]) if scores else 0
    if len(scores) < 2 or k < 2:
        return float("nan")
    between = k * statistics.variance(statistics.fmean(s) for s in scores)
    within = statistics.fmean(statistics.variance(s) for s in scores)
    total = between + (k - 1) * within
    return (between - within) / total if total else float("nan")


def passes(looks: list[float]) -> bool:
    """Whether a proof gets full marks by four looks, as many as a generator's reward takes."""
    return min(looks[:4]) == 1


def mean(values: list) -> float:
    return statistics.fmean(values) if values else float("nan")


def judged(truth: list[float], scores: list[list[float]]) -> dict[str, float]:
    """Figures of one judge's looks at one generator's proofs; NaN where there are none."""
    both = list(zip(truth, scores, strict=True))
    reward, wrong = mean([mean(s) for s in scores]), [s for t, s in both if t < 1]
    return {
        "truth": mean(truth),
        "reward": reward,
        "gap": reward - mean(truth),
        "perfect and wrong": mean([t < 1 for t, s in both if passes(s)]),
        "accepts wrong": mean([x == 1 for s in wrong for x in s]),
        "accepts right": mean([x == 1 for t, s in both if t == 1 for x in s]),
        "agreement on wrong": agreement(wrong),
    }


def measure(path: Path, problems: int) -> dict:
    """{generator: {judge: figures}} of a run; "faults": those of each wrong proof, and who passed it."""
    run = Run(path, load_config(path / "config.json"), Ranks())
    seed, truth, limit = run.config.seed, run.domain.truth, run.config.verifier.max_tokens
    asked = [p.problem for p in run.problems["held_out_hard"][:problems]]
    folders = {name: critic_folder(path, name) for name in JUDGES}
    judges = {name: load_model(folder)[0] for name, folder in folders.items() if is_finished(folder)}
    found: dict = {}
    for name in GENERATORS:
        folder = generator_folder(path, name)
        if not is_finished(folder):
            continue
        model, tokenizer = load_model(folder)
        language = run.domain.language(tokenizer)
        how, questions = Sampling(1.0, run.config.generator.max_tokens), [*map(language.prove, asked)]
        texts = [w.answer for w in write_answers(model, language, questions, how, seed, Ranks(), proofs=True)]
        proofs = [(p, text) for p, text in zip(asked, texts, strict=True) if language.is_proof(text)]
        scores = [truth.score(p, text) for p, text in proofs]
        faults = [run.domain.view(ProofRecord(p, text, None, "")).faults for p, text in proofs]
        wrong = [i for i, t in enumerate(scores) if t < 1]
        found[name] = {"faults": [{"faults": faults[i], "passed by": []} for i in wrong]}
        for who, verifier in judges.items():
            judge = verifier_judge(verifier, language, LOOKS, max_tokens=limit, seed=seed + 1)
            verdicts = judge.ask([language.verify(p, text) for p, text in proofs])
            looks = [[x or 0.0 for x in v.scores] for v in verdicts]
            found[name][who] = judged(scores, looks)
            for row, i in zip(found[name]["faults"], wrong, strict=True):
                row["passed by"] += [who] * passes(looks[i])
    return found


def shown(values: list[float]) -> str:
    """Those that are known, over runs."""
    known = [x for x in values if x == x]
    return spread(known) if known else "–"


def tables(runs: list[dict]) -> str:
    """Who is fooled by whom, and by which faults, over all runs."""
    names = ("truth", "gap", "perfect and wrong", "accepts wrong", "accepts right", "agreement on wrong")
    judges = [j for j in JUDGES if any(j in g for r in runs for g in r.values())]
    rows = []
    for generator in GENERATORS:
        for judge in judges:
            known = [r[generator][judge] for r in runs if judge in r.get(generator, {})]
            if known:
                cells = [shown([row[n] for row in known]) for n in names]
                rows.append([f"`{generator}`", judge, *cells])
    proofs = [row for r in runs for name, g in r.items() if name != "base" for row in g["faults"]]
    passed = []
    for fault, n in Counter(f for row in proofs for f in row["faults"]).most_common():
        having = [row["passed by"] for row in proofs if fault in row["faults"]]
        passed.append([fault, str(n), *(f"{sum(j in p for p in having) / n:.0%}" for j in judges)])
    by_fault = table(
        ["fault of a trained generator's proof", "proofs", *(f"{j} passes" for j in judges)], passed
    )
    return f"{table(['generator', 'judge', *names], rows)}\n{by_fault}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for fooled.json, and question.md")
    args = parser.parse_args()
    found = {path.name: measure(path, args.problems) for path in args.runs}
    write_atomically(args.out / "fooled.json", json.dumps(found, indent=1))
    text = tables(list(found.values()))
    print(text)
    if (args.out / "question.md").is_file():
        fill(args.out / "question.md", {"fooled": text})


if __name__ == "__main__":
    script(main)
