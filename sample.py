"""Prove, verify, meta-verify, refine and search with the models of a run, a model folder or an endpoint.

    python sample.py prove  --problem="…" --n=4
    python sample.py verify --problem="…" --proof="…" --n=4
    python sample.py meta   --problem="…" --proof="…" --critique="…"
    python sample.py refine --problem="…" --rounds=8          # until the author finds nothing wrong
    python sample.py search --data=problems.jsonl --output=proofs.jsonl   # at high compute, see [search]
    python sample.py verify --data=proofs.jsonl --output=critiques.jsonl

    python sample.py verify --data=proofs.jsonl --endpoint=http://127.0.0.1:8080/v1 --model=NAME --n=4
    python sample.py refine --problem="Prove that …" --model=models/smollm2   # a folder, in this process

    python sample.py verify --domain=order --endpoint=URL --model=NAME --output=judge.jsonl

The last measures any language model as verifier and meta-verifier against the exact truth of a world: verify
without a proof or a file (docs/judges.md). Figures go to the terminal and, with --output, beside the answers
as judge.figures.json; a bench that was stopped goes on where it was.

Models come from --dir (default runs/proofworld): the newest lap's generator for prove, its self-verifying
generator for refine and search, its verifier for verify and meta; --phase and --lap choose another. Without
a problem or a file held-out problems are taken: one, or --limit of them, from number --draw on. Each answer
is shown as it was written, with the truth beside it where the domain knows it; a graded file gives figures.
Nothing is written but --output and what lies beside it.
"""

from nanov2.distributed.startup import prepare

prepare()

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

from nanov2.domains.domain import knows_truth, open_domain
from nanov2.domains.marks import grade_by_marks
from nanov2.errors import InputError
from nanov2.method import trust
from nanov2.method.agreement import agreement, measure, report
from nanov2.method.consensus import Rule, assess
from nanov2.method.experts import is_marked
from nanov2.method.judges import Judge
from nanov2.method.search import Draft, Search, refine, write
from nanov2.records import ProblemRecord, write_atomically, write_jsonl
from nanov2.run.authors import FLAGS, KIND, MODEL, Cast, chat_cast, check_items, read_items, run_cast, wanted
from nanov2.run.cli import check_output, parse, script
from nanov2.settings import Within

NO_PROOF = "answer without a proof"  # a turn's name begins so; then why
BENCH = 300  # proofs, and critiques, that a judge is measured on unless --limit says otherwise


def prove_all(cast: Cast, items: list, args, states: Counter) -> list[dict]:
    """n proofs of each problem, as they were written, each with its author's own evaluation."""
    todo = [(item.problem, cast.language.prove(item.problem)) for item in items for _ in range(args.n)]
    numbers = [i for _ in items for i in range(args.n)]
    drafts = write(cast.prover, cast.language, todo, numbers)
    return [proof_row(cast, problem, [d], states) for (problem, _), d in zip(todo, drafts, strict=True)]


def refine_all(cast: Cast, items: list, args, states: Counter) -> list[dict]:
    """Draft, own evaluation, revision, …: until it finds nothing wrong, or --rounds or --budget is spent."""
    problems = [item.problem for item in items for _ in range(args.n)]
    numbers = [i for _ in items for i in range(args.n)]
    found = refine(cast.prover, cast.language, problems, numbers, args.rounds, args.budget, again=True)
    return [proof_row(cast, p, drafts, states) for p, drafts in zip(problems, found, strict=True)]


def proof_row(cast: Cast, problem: str, drafts: list[Draft], states: Counter) -> dict:
    """The last proof, how it came about, and what else was written."""
    for d in drafts:
        states["read" if d.proof else d.missing] += 1
    proofs = [d for d in drafts if d.proof]
    turns = []
    for d in drafts:
        if d.proof:
            turns += [("prove", d.proof), ("verify", d.critique)]
        else:
            turns.append((f"{NO_PROOF}: {d.missing}", d.text))
    last = proofs[-1] if proofs else Draft(None)
    row = {
        "problem": problem,
        "proof": last.proof,
        "self_score": last.score,
        "proofs": len(proofs),
        "tokens": sum(d.tokens for d in drafts),
        "turns": turns,
    }
    if not drafts[-1].proof:
        row["missing"] = drafts[-1].missing
    return row | truth_of(cast, problem, [d.proof for d in proofs])


def truth_of(cast: Cast, problem: str, proofs: list[str]) -> dict:
    """What is known of the proofs in truth, the last first of all."""
    if not proofs or not cast.domain or not cast.domain.truth:
        return {}
    scores = [cast.domain.truth.score(problem, p) for p in proofs]
    if math.isnan(scores[-1]):
        return {}
    return {"true_score": scores[-1]} | ({"true_scores": scores} if len(scores) > 1 else {})


def verify_all(cast: Cast, items: list, args, states: Counter) -> list[dict]:
    """n critiques of each proof, each that reports an issue meta-verified; figures where there are grades."""
    c, language = cast.config.autolabel, cast.language
    verifier = Judge(cast.verifier, language, language.claimed_score, args.n, states=states)
    meta = Judge(cast.meta, language, language.claimed_quality, c.m)
    found = assess([(r.problem, r.proof) for r in items], verifier, meta)
    graded = [(r, cs) for r, cs in zip(items, found, strict=True) if r.score is not None]
    if graded:
        rule = dataclasses.replace(Rule.of(c), name="consensus", k=min(c.k, args.n))
        print(report(measure([r for r, _ in graded], [cs for _, cs in graded], rule)))
    rows, marked = [], cast.config.expert == "marks"
    if marked:
        if left := sum(not is_marked(r) for r in items):
            print(f"{left} of {len(items)} proofs have no marked wrong step: their critiques are not graded")
        judged = trust.marked_critiques(items, found)
        print(trust.by_marks(judged))
        if args.output:
            write_jsonl(f"{args.output}.critiques.jsonl", judged)
    for item, critiques in zip(items, found, strict=True):
        shown = [
            {"critique": x.critique, "score": x.score, "confirmed": x.confirmations}
            | true_quality(cast, item.problem, item.proof, x.critique)
            for x in critiques
        ]
        if marked and is_marked(item):
            for row, x in zip(shown, critiques, strict=True):
                grade = grade_by_marks(item.proof, item.wrong, x.critique or "")
                row |= {"quality": grade.quality, "invented": grade.invented, "missed": grade.missed}
        row = {"problem": item.problem, "proof": item.proof, "score": item.score, "critiques": shown}
        rows.append(row | truth_of(cast, item.problem, [item.proof]))
    return rows


def true_quality(cast: Cast, problem: str, proof: str, critique: str) -> dict:
    truth = cast.domain and cast.domain.truth
    grade = truth.examine(problem, proof, critique) if truth and critique else None
    return (
        {"true_quality": grade.quality, "invented": grade.invented, "missed": grade.missed} if grade else {}
    )


def meta_all(cast: Cast, items: list, args, states: Counter) -> list[dict]:
    """n meta-critiques of each critique; accuracy of the first where the file has the critiques' quality."""
    judge = Judge(cast.meta, cast.language, cast.language.claimed_quality, args.n, states=states)
    found = judge.ask([cast.language.meta(r.problem, r.proof, r.critique) for r in items])
    known = [(j.scores[0], r) for j, r in zip(found, items, strict=True) if r.quality is not None]
    if known:
        a = agreement([s for s, _ in known], [r.quality for _, r in known], [r.problem for _, r in known])
        print(f"quality: accuracy {a.accuracy['value']:.3f}, balanced {a.balanced:.3f}, of {a.coverage:.3f}")
    return [
        {"problem": r.problem, "proof": r.proof, "critique": r.critique, "meta": text, "quality": score}
        | true_quality(cast, r.problem, r.proof, r.critique)
        for r, j in zip(items, found, strict=True)
        for text, score in zip(j.answers, j.scores, strict=True)
    ]


def search_all(cast: Cast, items: list, args, states: Counter) -> list[dict]:
    """The best proof found for each problem, with its critiques, and how far a pass can be trusted. Goes on
    where it was stopped."""
    ranks = cast.ranks
    rank = f".{ranks.rank}" if ranks.size > 1 else ""
    state = Path(f"{args.output}.state{rank}.jsonl") if args.output else None
    hunt = Search(cast.prover, cast.verifier, cast.meta, cast.language, cast.config.search, cast.covers)
    found = [pool.found(cast.config.search.n) for pool in hunt.run([i.problem for i in items], state)]
    for row in found:
        if not row["proof"]:
            row["turns"] = [(f"{NO_PROOF}: {row['missing']}", row.pop("wrote"))]
    rows = [f | truth_of(cast, f["problem"], [f["proof"]] if f["proof"] else []) for f in found]
    passed = [row for row in rows if row["passes"]]
    right = ranks.gather([row["true_score"] == 1 for row in passed if "true_score" in row])
    told = trust.of_passes(right, cast.one_critique)
    for row in passed:
        row["trust"] = told
    if ranks.gather(passed) and ranks.main:
        print(f"how far a pass can be trusted: {told}\n")
    return rows


def bench(cast: Cast, args) -> None:
    """The judge against the truth of the domain: --limit proofs and critiques, --n answers to each."""
    if not knows_truth(cast.config):
        raise InputError(
            "which proof? Give --problem and --proof, or --data=FILE; without them a judge is measured on a "
            f"domain whose truth is known, such as --domain=order, not {cast.config.domain}"
        )
    domain = cast.domain or open_domain(cast.config)
    cases = trust.draw_cases(domain, args.limit or BENCH, cast.config.seed)
    proofs, critiques = map(cast.ranks.mine, cases)
    language, states = cast.language, Counter()
    verifier = Judge(cast.verifier, language, language.claimed_score, args.n, states=states)
    meta = Judge(cast.meta, language, language.claimed_quality, args.n, states=states)
    rows = trust.ask_verifier(verifier, language, domain, proofs)
    rows = cast.ranks.gather(rows + trust.ask_meta(meta, language, domain, critiques))
    if not cast.ranks.main:
        return
    found = trust.trust(rows)
    print(trust.table(found))
    print("\nanswers: " + ", ".join(f"{n} {state}" for state, n in states.items()))
    if args.output:
        told = {"domain": cast.config.domain, "seed": cast.config.seed, "judge": cast.verifier.identity}
        write_jsonl(args.output, rows)
        figures = Path(args.output).with_suffix(".figures.json")
        write_atomically(figures, json.dumps(told | {"figures": found}, indent=1) + "\n")
        print(f"{args.output}: {len(rows)} answers; {figures}")


MODES = {
    "prove": prove_all,
    "verify": verify_all,
    "meta": meta_all,
    "refine": refine_all,
    "search": search_all,
}


def shown(row: dict, before: str = "") -> str:
    """A row as blocks of Markdown: texts under headings, all else on a line of its own. `before`: the problem
    of the row before, which is not said twice."""
    blocks = [f"# Problem\n\n{row['problem']}"] if row["problem"] != before else []
    turns, proofs = row.get("turns", []), 0
    for task, text in turns:
        proofs += task == "prove"
        name = {"prove": f"Proof {proofs}", "verify": "Its author's evaluation"}.get(task, task.capitalize())
        blocks.append(f"## {name}\n\n{text or '(none)'}")
    if not turns and row.get("proof"):
        blocks.append(f"## Proof\n\n{row['proof']}")
    if "critique" in row:
        blocks.append(f"## Critique\n\n{row['critique']}")
    if "meta" in row:
        blocks.append(f"## Meta-critique\n\n{row['meta'] or '(no answer)'}")
    for i, c in enumerate(row.get("critiques", []), 1):
        blocks.append(f"## Critique {i}\n\n{c['critique'] or '(no answer)'}\n\n{_facts(c)}")
    texts = {"problem", "proof", "turns", "missing", "critique", "critiques", "meta"}
    facts = _facts({k: v for k, v in row.items() if k not in texts})
    return "\n\n".join([*blocks, facts]).rstrip()


def _facts(row: dict) -> str:
    """Numbers and words in a line each."""
    out = []
    for name, value in row.items():
        if name == "critique" or value is None and name == "score":
            continue
        if isinstance(value, list | tuple):
            value = ", ".join("no score" if v is None else f"{v:g}" for v in value) or "nobody"
        elif isinstance(value, float):
            value = f"{value:.2f}".rstrip("0").rstrip(".")
        elif value is None:
            value = "none that can be read"
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        out.append(f"- {name.replace('_', ' ')}: {value}")
    return "\n".join(out)


def main() -> None:
    modes = {"mode": {"choices": list(MODEL), "help": "what to do"}}
    flags = FLAGS | {
        "problem": ("", "the problem's text"),
        "proof": ("", "the proof to verify"),
        "critique": ("", "the critique to judge"),
        "input": ("", "another name of --data"),
        "output": ("", "JSONL file for the answers instead of the terminal"),
        "phase": ("", "phase whose model to use instead of the default"),
        "lap": (0, "lap of that phase (0: the newest)"),
        "n": (1, "answers per item", Within(1, 100_000)),
        "rounds": (8, "refine: at most this many proofs in a row", Within(1, 1000)),
        "budget": (
            0,
            "refine: tokens of a trajectory after which no revision begins (0: no limit)",
            Within(0, 1 << 40),
        ),
        "limit": (
            0,
            f"only this many items of --data (0: all), of a bench (0: {BENCH}), or new problems (0: 1)",
            Within(0, 1 << 40),
        ),
        "draw": (0, "seed of the samples, and of the random problem"),
    }
    args, overrides = parse(__doc__, flags, modes)
    check_items(args.mode, args)
    config = wanted(args, overrides)
    if args.output:
        check_output(args.output, args.data, args.input)
    cast = chat_cast(config, args.output, args.draw) if config else run_cast(args, overrides)
    if args.mode == "verify" and not (args.problem or args.data or args.input or cast.config.data.path):
        return bench(cast, args)
    items, states = read_items(cast, args.mode, args), Counter()
    rows = cast.ranks.gather(MODES[args.mode](cast, cast.ranks.mine(items), args, states))
    if not cast.ranks.main:
        return
    if args.output:
        write_jsonl(args.output, rows)
        print(f"{args.output}: {len(rows)} answers")
    else:
        problems = ["", *(row["problem"] for row in rows)]
        print("\n\n---\n\n".join(shown(row, before) for row, before in zip(rows, problems, strict=False)))
    if states:
        print("\nanswers: " + ", ".join(f"{n} {state}" for state, n in states.items()))
    if KIND[args.mode] is ProblemRecord and any("true_score" in row for row in rows):
        print(f"right in truth: {sum(row.get('true_score') == 1 for row in rows)} of {len(rows)}")


if __name__ == "__main__":
    script(main)
