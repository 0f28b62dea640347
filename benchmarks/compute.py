"""What verification compute buys: true score over rounds of refinement, critiques and drafts, as curves.

    python benchmarks/compute.py runs/default        # about three minutes; goes into the run's report

Held-out harder problems, temperature 1. Pass@1 is the mean over trajectories, Best@k the trajectory whose
final proof has the highest own score (section 3.4.2 of the paper; ties count by their mean). "Drafts" are
judged as in search, without revision.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanov2.distributed.ranks import Ranks, derive_seed
from nanov2.hub.local import OwnAuthor
from nanov2.method import figures as ev
from nanov2.method.search import Search
from nanov2.method.tasks import SelfVerifyTask, judged_proofs, true_scores
from nanov2.model.rollout import Sampling
from nanov2.pages.report import build_report
from nanov2.run.config import load_config
from nanov2.run.folder import Run

ROUNDS = 8


def rounds(run: Run, lap: int, problems: list, k: int) -> dict[str, list[tuple[float, float]]]:
    """Pass@1 and Best@k after at most 1 … 8 proofs in a row."""
    model, tokenizer = run.load("selfverify", lap)
    task = SelfVerifyTask(run.domain.language(tokenizer), None, max_turns=2 * ROUNDS)
    items = [p for p in problems for _ in range(k)]
    limit = run.config.selfverify.max_tokens
    seed = derive_seed(run.config.seed, "compute")
    how = Sampling(run.config.eval.temperature, limit)
    turns = ev.sample_trajectories(model, task, items, how, seed, run.ranks)
    after: list[dict[str, list]] = [defaultdict(list) for _ in range(ROUNDS)]
    for item, trajectory in zip(items, turns, strict=True):
        judged = judged_proofs(trajectory)
        proofs = true_scores(run.domain.truth, [item] * len(judged), [proof for proof, _ in judged])
        claims = [task.language.claimed_score(critique) or 0.0 for _, critique in judged]
        for r in range(ROUNDS):
            last = min(r, len(proofs) - 1)
            after[r][item.problem].append((claims[last], proofs[last]))
    pass_1, best_k = [], []
    for r, found in enumerate(after, 1):
        pass_1.append((r, statistics.mean(truth for rows in found.values() for _, truth in rows)))
        best = [[t for c, t in rows if c == max(rows)[0]] for rows in found.values()]
        best_k.append((r, statistics.mean(map(statistics.mean, best))))
    return {"Pass@1": pass_1, f"Best@{k}": best_k}


def search_curves(run: Run, lap: int, problems: list) -> dict[str, list[tuple[float, float]]]:
    """True score over tokens a problem: more drafts, more critiques, more rounds of revision."""
    model, tokenizer = run.load("selfverify", lap)
    verifier, _ = run.load("verifier2", lap)

    def point(**changes) -> tuple[float, float]:
        config = dataclasses.replace(run.config.search, **changes)
        language, limit = run.domain.language(tokenizer), run.config.selfverify.max_tokens
        how = Sampling(config.temperature, limit)
        writer, judge = OwnAuthor(model, language, how), OwnAuthor(verifier, language, how)
        pools = Search(writer, judge, judge, language, config).run([p.problem for p in problems])
        scores = [run.domain.truth.score(p.problem, p.best().proof) if p.best() else 0.0 for p in pools]
        return statistics.mean(p.tokens for p in pools), statistics.mean(scores)

    return {
        "best of 2 … 32 drafts": [point(pool=n, rounds=0) for n in (2, 4, 8, 16, 32)],
        "16 drafts, 1 … 8 critiques": [point(n=n, rounds=0) for n in (1, 2, 4, 8)],
        "16 drafts, 0 … 4 rounds": [point(rounds=n) for n in (0, 1, 2, 4)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--lap", type=int, default=1)
    parser.add_argument("--samples", type=int, default=8, help="k of Best@k")
    args, overrides = parser.parse_known_args()
    run = Run(args.run, load_config(args.run / "config.json", overrides), Ranks())
    problems = run.problems["held_out_hard"][: args.problems]
    found = {
        "proofs in a row": rounds(run, args.lap, problems, args.samples),
        "tokens a problem": search_curves(run, args.lap, problems),
    }
    (args.run / "compute.json").write_text(json.dumps(found, indent=1))
    build_report(args.run)
    for x, curves in found.items():
        for name, points in curves.items():
            print(f"{name:28} ({x}) " + "  ".join(f"{a:g}: {b:.3f}" for a, b in points))
        print()


if __name__ == "__main__":
    main()
