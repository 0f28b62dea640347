"""What a model of the embedded world reads: is a pair of terms among the facts, and does it say so?

    python benchmarks/reading.py runs/seed0/base runs/seed0/verifier runs/seed0/verifier2

Scrambled proofs are judged by the exact expert, and the model is given each of these critiques up to every
place where it says as what a step is given, or that it is not. Its likeliest next token is right or wrong
there. A pair that is not given is easy where a term of it is on no fact's such side; where both are, only not
together, nothing but reading tells. A base that has learnt the easy half alone passes wrong steps ever after:
v1, the meta-verifier, v2 and the labels go as far as it reads.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.runs import table
from nanov2.distributed.startup import prepare
from nanov2.domains.order.demos import scrambled_proof
from nanov2.domains.order.domain import OrderLanguage
from nanov2.domains.order.world import (
    GIVEN,
    Difficulty,
    examine,
    make_problem,
    write_critique,
    write_proof,
)
from nanov2.hub.chat import load_model
from nanov2.model.packing import Completion, Pack, collate

KINDS = ("given", "not given, a term out of place", "not given, both terms in place")


def reading(folder: Path, problems: int) -> dict[str, tuple[int, int]]:
    """Of each of KINDS: places, and those at which the model's likeliest token is the expert's."""
    model, tokenizer = load_model(folder)
    language, rng, asked, right = OrderLanguage(tokenizer), random.Random(0), Counter(), Counter()
    says = {tokenizer.encode(f"${phrase}")[0] for phrase in GIVEN.values()}
    for _ in range(problems):
        problem = make_problem(rng, Difficulty((2, 4), (4, 8)))
        steps = scrambled_proof(rng, problem)
        truth = examine(problem, steps)
        question = language.ids(language.verify(problem.text, write_proof(steps)))
        answer = tokenizer.encode(write_critique(truth))
        with torch.no_grad():
            hidden = model(collate([Pack(question, [Completion(answer, [True] * len(answer))])]).layout)
            likeliest = (hidden @ model.output_weight.T).argmax(1).tolist()
        places = [i for i, token in enumerate(answer) if token in says]
        for i, (step, relation, _) in zip(places, truth.findings, strict=True):
            kind = KINDS[0 if relation else 1 + problem.in_place(step.left, step.right)]
            asked[kind] += 1
            right[kind] += likeliest[len(question) + i - 1] == answer[i]
    return {kind: (asked[kind], right[kind]) for kind in KINDS}


def main() -> None:
    prepare()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+", help="model folders of runs on the embedded world")
    parser.add_argument("--problems", type=int, default=300)
    args = parser.parse_args()
    rows = []
    for folder in args.models:
        found = reading(folder, args.problems)
        rows.append([str(folder), *(f"{right / asked:.3f} of {asked}" for asked, right in found.values())])
    print(table(["model", *KINDS], rows))


if __name__ == "__main__":
    main()
