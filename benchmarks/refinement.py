"""Verify and refine with another model's critiques: does a better critic make better proofs?

    python benchmarks/refinement.py runs/seed0 --critic=runs/seed0/verifier2 --out=v2.json
    python benchmarks/refinement.py runs/seed0 --out=self.json                # by its own critiques

A reviser of the run (its generator, and its untrained base) drafts a proof of each held-out problem, the
critic criticises, the reviser revises by that critique, until the critic finds nothing wrong or four proofs
are written. The drafts are the same whoever the critic is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanov2.distributed.ranks import Ranks
from nanov2.hub.chat import load_model
from nanov2.hub.local import OwnAuthor
from nanov2.method.search import Draft, refine
from nanov2.method.tasks import false_accepts
from nanov2.model.rollout import Sampling
from nanov2.records import write_atomically
from nanov2.run.config import load_config
from nanov2.run.folder import Run

REVISERS = ("generator", "base")
SETS = {"labelled": "held_out", "hard": "held_out_hard"}


def revise(run: Run, reviser: str, critic: Path | None, problems: int, rounds: int) -> dict[str, float]:
    """True score of draft and final proof, of both held-out sets and of each; proofs, tokens a problem; and
    "…false_accept_rate": of the final proofs in which the critic finds nothing wrong, the share that is not
    worth 1, where there are such proofs."""
    (model, tokenizer), seed = run.load(reviser), run.config.seed
    language, how = run.domain.language(tokenizer), Sampling(1.0, run.config.verifier.max_tokens)
    author = OwnAuthor(model, language, how, seed)
    other = OwnAuthor(load_model(critic)[0], language, how, seed) if critic else None
    asked = [(name, p.problem) for name, key in SETS.items() for p in run.problems[key][:problems]]
    texts = [problem for _, problem in asked]
    written = refine(author, language, texts, list(range(len(texts))), rounds, critic=other)

    ends = [(ds[0].proof, ds[-1].proof) for ds in written]
    truth = [[run.domain.truth.score(x, y) for y in proofs] for x, proofs in zip(texts, ends, strict=True)]

    def mean(which: int, where: str = "") -> float:
        return statistics.fmean(
            t[which] for (name, _), t in zip(asked, truth, strict=True) if where in ("", name)
        )

    found = {"draft": mean(0), "final": mean(-1)}
    found |= {f"{name}/{when}": mean(i, name) for name in SETS for i, when in ((0, "draft"), (-1, "final"))}
    accepted = false_accepts([ds[-1].score for ds in written], [final for _, final in truth])
    for name in SETS:
        wrong = [x for (of, _), x in zip(asked, accepted, strict=True) if of == name and x == x]
        found |= {f"{name}/false_accept_rate": statistics.fmean(wrong)} if wrong else {}
    found["proofs"] = statistics.fmean(len(drafts) for drafts in written)
    return found | {"tokens": statistics.fmean(map(spent, written))}


def spent(drafts: list[Draft]) -> int:
    return sum(draft.tokens for draft in drafts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--critic", type=Path, help="model folder (default: the reviser itself)")
    parser.add_argument("--problems", type=int, default=200, help="of each held-out set")
    parser.add_argument("--rounds", type=int, default=4, help="proofs of a problem, at most")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    args = parser.parse_args()
    run = Run(args.run, load_config(args.run / "config.json"), Ranks())
    found = {name: revise(run, name, args.critic, args.problems, args.rounds) for name in REVISERS}
    write_atomically(args.out, json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
