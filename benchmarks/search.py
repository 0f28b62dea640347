"""Search against best-of-n at equal tokens, on the harder held-out problems of finished runs.

    python benchmarks/search.py runs/seed0 runs/seed1 runs/seed2            # about two minutes a run
    python benchmarks/search.py runs/default --problems=50 --search.rounds=8

Best-of-n draws so many drafts that it samples as many tokens (of all models) as the search did, judges them
in the same way, with meta-verification and the sequential test, and takes the best. Figures are true scores
of the exact expert, and of the proofs that passed all their critiques the share that is not worth 1; no model
sees them.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanov2.distributed.ranks import Ranks
from nanov2.domains.order.domain import OrderDomain
from nanov2.hub.local import OwnAuthor
from nanov2.method.search import Pool, Search
from nanov2.method.tasks import false_accepts
from nanov2.model.rollout import Sampling
from nanov2.run.config import load_config
from nanov2.run.folder import Run


def true_scores(pools: list[Pool]) -> list[float]:
    return [OrderDomain.truth.score(p.problem, p.best().proof) if p.best() else 0.0 for p in pools]


def given(pool: Pool, n: int) -> float | None:
    """Full marks where the best proof passes its n critiques."""
    best = pool.best()
    return 1.0 if best and best.passes(n) else None


def equal_tokens(hunt, tokens: float, pool: int) -> list[Pool]:
    """Pools of so many drafts that the mean of their tokens is nearest to `tokens`: drawn, counted, and drawn
    again, since a further draft does not cost what the first ones did."""
    tried: dict[int, list[Pool]] = {}
    while pool not in tried and len(tried) < 6:
        tried[pool] = hunt(pool=pool, rounds=0)
        spent = statistics.mean(p.tokens for p in tried[pool])
        pool = max(1, round(pool * tokens / spent))
    return min(tried.values(), key=lambda ps: abs(statistics.mean(p.tokens for p in ps) - tokens))


def arms(run: Run, lap: int, count: int) -> dict[str, tuple[float, float, float]]:
    """Mean true score, tokens a problem, and wrong proofs among those that passed, by name."""
    model, tokenizer = run.load("selfverify", lap)
    verifier, _ = run.load("verifier2", lap)
    problems = [p.problem for p in run.problems["held_out_hard"][:count]]

    language, limit = run.domain.language(tokenizer), run.config.selfverify.max_tokens
    how = Sampling(run.config.search.temperature, limit)
    writer, judge = OwnAuthor(model, language, how), OwnAuthor(verifier, language, how)

    def hunt(**changes) -> list[Pool]:
        config = dataclasses.replace(run.config.search, **changes)
        return Search(writer, judge, judge, language, config).run(problems)

    c = run.config.search

    def figures(pools: list[Pool], n: int = c.n) -> tuple[float, float, float]:
        truth, tokens = true_scores(pools), statistics.mean(p.tokens for p in pools)
        wrong = [x for x in false_accepts([given(p, n) for p in pools], truth) if x == x]
        return statistics.mean(truth), tokens, statistics.mean(wrong) if wrong else math.nan

    found = {"one draft": figures(hunt(pool=1, rounds=0, n=0), 0)}
    for rounds in sorted({0, 1, 2, c.rounds}):
        found[f"search, {rounds} rounds"] = figures(hunt(rounds=rounds))
    found["best of n, equal tokens"] = figures(
        equal_tokens(hunt, found[f"search, {c.rounds} rounds"][1], c.pool)
    )
    found["search, meta not weighing"] = figures(hunt(m=0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--lap", type=int, default=1)
    args, overrides = parser.parse_known_args()
    results = []
    for folder in args.runs:
        run = Run(folder, load_config(folder / "config.json", overrides), Ranks())
        results.append(arms(run, args.lap, args.problems))
    print("| | true score, mean ± sd over runs | tokens a problem | wrong among those that passed |")
    print("|---|---|---|---|")
    for name in results[0]:
        scores, tokens, wrong = zip(*(r[name] for r in results), strict=True)
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        known = [x for x in wrong if x == x]
        passed = f"{statistics.mean(known):.3f}" if known else "–"
        row = f"{statistics.mean(scores):.3f} ± {spread:.3f} | {statistics.mean(tokens):,.0f} | {passed}"
        print(f"| {name} | {row} |")


if __name__ == "__main__":
    main()
