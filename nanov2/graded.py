"""How well a language model judges real proofs: against people's grades, over any endpoint.

    python -m nanov2.graded proofs.jsonl --endpoint=http://127.0.0.1:8080/v1 --model=NAME --n=4 --m=2
    python -m nanov2.graded grades.csv --columns=proof=solution,score=points --full=7 --half=4 ...

Every proof is judged n times; critiques that report an issue are assessed m times. Figures: one critique,
the mean, and the paper's consensus, each with accuracy, balanced accuracy and a confusion table, and how
well the mean score is calibrated. Answers are kept in --cache, so a run that is stopped asks nothing twice.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from pathlib import Path

from nanov2 import natural
from nanov2.consensus import Assessed, Rule, assess
from nanov2.data import GradedFile
from nanov2.endpoint import Endpoint
from nanov2.errors import InputError
from nanov2.records import ProofRecord
from nanov2.reward_model import Judgement


class NaturalPrompts:
    """What `assess` asks of prompts, for natural-language proofs."""

    verify, meta = staticmethod(natural.verify), staticmethod(natural.meta)
    claims_issue = staticmethod(natural.reports_issue)


class EndpointJudge:
    """A verifier or meta-verifier behind an endpoint, with the interface of reward_model.Judge."""

    def __init__(self, endpoint: Endpoint, samples: int):
        self.endpoint, self.samples = endpoint, samples
        self.asked = self.unparsed = self.cut = 0

    def ask(self, questions: list[natural.Messages]) -> list[Judgement]:
        out = []
        for answers in self.endpoint.ask(questions, self.samples):
            texts = tuple(natural.without_thinking(a.text) if a.text is not None else None for a in answers)
            scores = tuple(natural.read_score(t) for t in texts)
            good = [s for s in scores if s is not None]
            self.asked += len(answers)
            self.cut += sum(a.text is None for a in answers)
            self.unparsed += len(answers) - len(good)
            out.append(Judgement(sum(good) / len(good) if good else math.nan, texts, scores))
        return out


def figures(given: list[float | None], truth: list[float]) -> dict:
    """Accuracy over the answered, mean of the recalls of each level, coverage, and the confusion table."""
    pairs = [(t, g) for t, g in zip(truth, given, strict=True) if g is not None]
    levels = sorted(set(truth))
    recalls = []
    for level in levels:
        of_level = [g == t for t, g in pairs if t == level]
        recalls += [sum(of_level) / len(of_level)] if of_level else []
    return {
        "accuracy": sum(t == g for t, g in pairs) / len(pairs) if pairs else math.nan,
        "balanced accuracy": sum(recalls) / len(recalls) if recalls else math.nan,
        "coverage": len(pairs) / len(truth),
        "confusion": {f"{t:g}→{g:g}": n for (t, g), n in sorted(Counter(pairs).items())},
    }


def calibration(critiques: list[list[Assessed]], truth: list[float], bins: int = 5) -> list[tuple]:
    """(from, to, proofs, mean score given, mean grade) by the mean score of a proof's critiques."""
    rows = []
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = []
        for cs, t in zip(critiques, truth, strict=True):
            scores = [c.score for c in cs if c.score is not None]
            if scores and (low <= (mean := sum(scores) / len(scores)) < high or mean == high == 1):
                inside.append((mean, t))
        if inside:
            means = (sum(x) / len(inside) for x in zip(*inside, strict=True))
            rows.append((low, high, len(inside), *means))
    return rows


def judge_file(records: list[ProofRecord], endpoint: Endpoint, n: int, m: int, k: int) -> dict:
    """Everything that is reported, and the critiques of each proof."""
    verifier, meta = EndpointJudge(endpoint, n), EndpointJudge(endpoint, m)
    critiques = assess([(r.problem, r.proof) for r in records], verifier, meta, NaturalPrompts())
    truth = [r.score for r in records]
    rules = {"one critique": Rule("single"), "mean": Rule("mean"), "majority": Rule("majority")}
    rules["consensus"] = Rule("consensus", k)
    return {
        "rules": {name: figures([rule(cs) for cs in critiques], truth) for name, rule in rules.items()},
        "calibration": calibration(critiques, truth),
        "answers": {"asked": verifier.asked, "cut off": verifier.cut, "unread": verifier.unparsed},
        "critiques": critiques,
    }


def report(found: dict) -> str:
    lines = ["rule           accuracy  balanced  coverage  grade→given: proofs"]
    for name, f in found["rules"].items():
        table = "  ".join(f"{pair}: {count}" for pair, count in f["confusion"].items())
        rates = "".join(f"{f[x]:10.3f}" for x in ("accuracy", "balanced accuracy", "coverage"))
        lines.append(f"{name:13}{rates}  {table}")
    lines += ["", "mean score    proofs  given  grade"]
    lines += [
        f"{a:.1f} to {b:.1f}  {n:8}  {given:.3f}  {t:.3f}" for a, b, n, given, t in found["calibration"]
    ]
    lines += ["", ", ".join(f"{name} {count}" for name, count in found["answers"].items())]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="JSONL or CSV of problem, proof, score")
    parser.add_argument("--endpoint", required=True, help="base URL, up to /v1")
    parser.add_argument("--model", required=True, help="the model's name there")
    parser.add_argument("--columns", default="", help="ours=theirs, with commas between: score=points,…")
    parser.add_argument("--full", type=float, default=1.0, help="grades of at least this are 1")
    parser.add_argument("--half", type=float, default=0.5, help="grades of at least this are 0.5")
    parser.add_argument("--limit", type=int, default=0, help="only so many proofs")
    parser.add_argument("--n", type=int, default=1, help="critiques per proof")
    parser.add_argument("--m", type=int, default=1, help="meta-assessments of each that reports an issue")
    parser.add_argument("--k", type=int, default=1, help="valid critiques that a consensus needs")
    parser.add_argument("--max-tokens", type=int, default=8192, help="limit of an answer")
    parser.add_argument("--concurrency", type=int, default=16, help="requests at a time")
    parser.add_argument("--cache", type=Path, default=Path("graded-cache.jsonl"), help="answers so far")
    parser.add_argument("--output", type=Path, help="JSONL file for the critiques")
    args = parser.parse_args()
    try:
        pairs = [c.partition("=") for c in args.columns.split(",") if c]
        columns = {ours: theirs for ours, _, theirs in pairs}
        if unknown := columns.keys() - {"problem", "proof", "score"}:
            raise InputError(f"--columns: {unknown.pop()!r} is none of problem, proof, score")
        records, counts = GradedFile(args.file, columns, args.full, args.half).read()
        print(f"{args.file}: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
        records = records[: args.limit or None]
        endpoint = Endpoint(
            args.endpoint, args.model, args.cache, args.concurrency, max_tokens=args.max_tokens
        )
        found = judge_file(records, endpoint, args.n, args.m, args.k)
    except InputError as e:
        sys.exit(f"error: {e}")
    print(report(found))
    if args.output:
        lines = [
            json.dumps(
                {
                    "problem": r.problem,
                    "proof": r.proof,
                    "score": r.score,
                    "critiques": [{"text": c.critique, "score": c.score, "valid": c.valid} for c in cs],
                },
                ensure_ascii=False,
            )
            for r, cs in zip(records, found["critiques"], strict=True)
        ]
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
