"""sample.py and autolabel.py on natural-language proofs: the same modes, asked of any chat model.

The model is behind an endpoint (`--endpoint=URL --model=NAME`) or in a folder (`--model=FOLDER`); items
come from a file (`--data=FILE`, its columns and grades under [data]) or from the flags.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections import Counter
from pathlib import Path

from nanov2.distributed.ranks import derive_seed
from nanov2.domains import language as natural
from nanov2.domains.language import Language
from nanov2.domains.natural.data import Loaded, load, split
from nanov2.errors import InputError
from nanov2.hub.endpoint import Endpoint, EndpointConfig
from nanov2.method.agreement import agreement, measure, report
from nanov2.method.consensus import Assessed, Rule, assess, assess_adaptively, doubt
from nanov2.method.judges import Chat, ChatJudge
from nanov2.method.search import Search, Written
from nanov2.records import CritiqueRecord, ProblemRecord, ProofRecord, write_jsonl
from nanov2.run.config import Config, load_config

KIND = {"verify": ProofRecord, "meta": CritiqueRecord} | dict.fromkeys(
    ("prove", "refine", "search"), ProblemRecord
)
FLAGS = {
    "endpoint": ("", "base URL of an OpenAI-compatible endpoint that answers instead of a run's model"),
    "model": ("", "the model's name there; without --endpoint: a folder with a Hugging Face model"),
    "data": ("", "JSONL or CSV file of items; [data] says what its columns and grades are"),
}


def wanted(args: argparse.Namespace, overrides: list[str]) -> Config | None:
    """The configuration for natural-language proofs, or None where a run's own models are meant."""
    items = args.data or (getattr(args, "input", "") or getattr(args, "proofs", "")) * bool(args.model)
    given = {"endpoint.url": args.endpoint, "endpoint.model": args.model, "data.path": items}
    overrides = [*overrides, *(f"{name}={json.dumps(value)}" for name, value in given.items() if value)]
    if not args.config and not any(o.lstrip("-").startswith(("endpoint.", "data.")) for o in overrides):
        return None
    config = load_config(args.config, overrides)
    if not (config.endpoint.url or config.endpoint.model):
        if config.data.path:
            raise InputError("who answers? Give --endpoint=URL --model=NAME, or --model=FOLDER")
        return None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("an endpoint is asked by one process: start with python, not with torchrun")
    return config


def open_chat(config: EndpointConfig) -> Chat:
    if config.url:
        return Endpoint(config)
    if not (Path(config.model) / "config.json").is_file():
        raise InputError(f"{config.model!r} is no model folder (no config.json); a name needs --endpoint=URL")
    from nanov2.hub.local import LocalChat  # only here: it loads weights

    return LocalChat(config)


def read_items(config: Config, kind: type, args: argparse.Namespace) -> list:
    """The items of --data (of their held-out part where data.held_out is set), or one from the flags."""
    names = [f.name for f in dataclasses.fields(kind) if f.name in ("problem", "proof", "critique")]
    if not config.data.path:
        missing = [name for name in names if not getattr(args, name, "")]
        if missing:
            raise InputError(f"no --{missing[0]}, and no --data=FILE")
        return [kind(**{name: getattr(args, name) for name in names})]
    loaded: Loaded = load(config.data, kind)
    print(f"{config.data.path}: {loaded.report()}")
    records = loaded.records
    if config.data.held_out:
        _, records = split(records, config.data.held_out, config.seed)
        print(f"held out by problem: {len(records)}")
    return records[: getattr(args, "limit", 0) or None]


def sample_main(config: Config, args: argparse.Namespace) -> None:
    """prove, verify, meta, refine, search."""
    seed = derive_seed(args.draw) % 2**31 if args.draw else config.endpoint.seed
    chat = open_chat(dataclasses.replace(config.endpoint, seed=seed))
    items = read_items(config, KIND[args.mode], args)
    states = Counter()
    rows = MODES[args.mode](config, chat, items, args, states)
    if args.output:
        write_jsonl(args.output, rows)
        print(f"{args.output}: {len(rows)} answers")
    elif not config.data.path:
        for row in rows:
            print("\n" + "\n\n".join(f"[{name}]\n{value}" for name, value in row.items()))
    print("answers: " + ", ".join(f"{n} {state}" for state, n in states.items()))


def prove(config: Config, chat: Chat, items: list, args, states: Counter) -> list[dict]:
    """n proofs of each problem. One that is cut off or has no `## Solution` is counted and left out."""
    rows = []
    answers = chat.ask([natural.prove(r.problem) for r in items], args.n)
    for item, row in zip(items, answers, strict=True):
        for answer in row:
            proof = natural.read_proof(answer.text)
            states[answer.missing or ("read" if proof else "no solution")] += 1
            if proof:
                rows.append({"problem": item.problem, "proof": proof.text, "self_score": proof.self_score})
    return rows


def verify(config: Config, chat: Chat, items: list, args, states: Counter) -> list[dict]:
    """n critiques of each proof, and what they are worth where the file has grades."""
    c = config.autolabel
    verifier = ChatJudge(chat, args.n, states=states)
    meta = ChatJudge(chat, c.m)
    critiques = assess([(r.problem, r.proof) for r in items], verifier, meta)
    if meta.states:
        print("meta-assessments: " + ", ".join(f"{n} {state}" for state, n in meta.states.items()))
    show(items, critiques, dataclasses.replace(Rule.of(c), name="consensus", k=min(c.k, args.n)))
    return [critique_row(r, cs) for r, cs in zip(items, critiques, strict=True)]


def show(records: list[ProofRecord], critiques: list[list[Assessed]], rule: Rule) -> None:
    """Print the figures of the proofs that have a grade."""
    known = [(r, cs) for r, cs in zip(records, critiques, strict=True) if r.score is not None]
    if known:
        print(report(measure(*map(list, zip(*known, strict=True)), rule)))


def critique_row(record: ProofRecord, critiques: list[Assessed]) -> dict:
    shown = [{"critique": c.critique, "score": c.score, "confirmed": c.confirmations} for c in critiques]
    return {"problem": record.problem, "proof": record.proof, "score": record.score, "critiques": shown}


def meta(config: Config, chat: Chat, items: list, args, states: Counter) -> list[dict]:
    """n meta-critiques of each critique; accuracy of the first where the file has the critiques' quality."""
    judge = ChatJudge(chat, args.n, states=states)
    found = judge.ask([natural.meta(r.problem, r.proof, r.critique) for r in items])
    known = [(j.scores[0], r) for j, r in zip(found, items, strict=True) if r.quality is not None]
    if known:
        a = agreement([s for s, _ in known], [r.quality for _, r in known], [r.problem for _, r in known])
        print(f"quality: accuracy {a.accuracy['value']:.3f}, balanced {a.balanced:.3f}, of {a.coverage:.3f}")
    return [
        {"problem": r.problem, "proof": r.proof, "critique": r.critique, "meta": text, "quality": score}
        for r, j in zip(items, found, strict=True)
        for text, score in zip(j.answers, j.scores, strict=True)
    ]


def refine(config: Config, chat: Chat, items: list, args, states: Counter) -> list[dict]:
    """Draft, self-evaluation, revision, …: until a proof's own score is 1, --rounds are written, or --budget
    tokens are spent on it."""
    todo = [(item, i) for item in items for i in range(args.n)]
    proofs: list[list[natural.Proof]] = [[] for _ in todo]
    tokens = [0] * len(todo)
    for round_ in range(args.rounds):
        within = [j for j, spent in enumerate(tokens) if not args.budget or spent < args.budget]
        open_ = [j for j in within if len(proofs[j]) == round_ and not _settled(proofs[j])]
        questions = [_next(todo[j][0].problem, proofs[j]) for j in open_]
        numbers = [todo[j][1] for j in open_]  # drafts of one problem are other samples
        for j, (answer,) in zip(open_, chat.ask(questions, 1, numbers), strict=True):
            proof = natural.read_proof(answer.text)
            tokens[j] += answer.tokens
            states[answer.missing or ("read" if proof else "no solution")] += 1
            if proof:
                proofs[j].append(proof)
    rows = []
    for (item, _), ps, spent in zip(todo, proofs, tokens, strict=True):
        if ps:
            turns = [x for p in ps for x in (("prove", p.text), ("verify", p.critique))]
            last = {"proof": ps[-1].text, "self_score": ps[-1].self_score, "proofs": len(ps), "tokens": spent}
            rows.append({"problem": item.problem, **last, "turns": turns})
    return rows


def _settled(proofs: list[natural.Proof]) -> bool:
    return bool(proofs) and proofs[-1].self_score == 1


def _next(problem: str, proofs: list[natural.Proof]) -> natural.Messages:
    if not proofs:
        return natural.prove(problem)
    return natural.refine(problem, proofs[-1].text, [proofs[-1].critique or "(no evaluation was written)"])


class ChatVoices:
    """One chat model that writes, judges and weighs in a search."""

    prompts = Language()

    def __init__(self, chat: Chat, config: EndpointConfig, states: Counter):
        self.chat, self.states = chat, states
        self.names = {"model": config.model, "seed": config.seed}

    def write(self, questions: list, keys: list[tuple[str, int, int]]) -> list[Written]:
        out = []
        numbers = [round_ << 16 | i for _, round_, i in keys]
        for (answer,) in self.chat.ask(questions, 1, numbers):
            proof = natural.read_proof(answer.text)
            self.states[answer.missing or ("read" if proof else "no solution")] += 1
            out.append(Written(proof and proof.text, proof and proof.self_score, answer.tokens))
        return out

    def critiques(self, questions: list, n: int, first: int, meta: bool) -> list[list[tuple]]:
        rows = self.chat.ask(questions, n, first)
        return [[(natural.without_thinking(a.text or "") or None, a.tokens) for a in row] for row in rows]


def search(config: Config, chat: Chat, items: list, args, states: Counter) -> list[dict]:
    """The best proof found for each problem, with its critiques. Goes on where it was stopped."""
    state = Path(f"{args.output}.state.jsonl") if args.output else None
    voices = ChatVoices(chat, chat.config, states)
    pools = Search(voices, config.search).run([item.problem for item in items], state)
    return [pool.found(config.search.n) for pool in pools]


MODES = {"prove": prove, "verify": verify, "meta": meta, "refine": refine, "search": search}


def autolabel_main(config: Config, args: argparse.Namespace) -> None:
    """Label the proofs of --data by consensus; figures where some have a grade."""
    if not config.data.path:
        raise InputError("which proofs? Give --data=FILE")
    c, chat, states = config.autolabel, open_chat(config.endpoint), Counter()

    def judges(first: int, count: int) -> tuple[ChatJudge, ChatJudge]:
        # Other critiques of one proof differ, so their assessments need no further numbers
        return ChatJudge(chat, count, first, states), ChatJudge(chat, c.m)

    proofs, rule = read_items(config, ProofRecord, args), Rule.of(c)
    pairs = [(r.problem, r.proof) for r in proofs]
    critiques = assess_adaptively(pairs, judges, c.n, c.chunk, c.k, c.clean)
    rows, unclear = [], []
    for r, cs in sorted(zip(proofs, critiques, strict=True), key=lambda x: -doubt(x[1])):
        note = f"{c.rule} n={c.n} m={c.m} k={c.k}, {config.endpoint.model}"
        label = dataclasses.replace(r, score=rule(cs), label=note)
        (rows if label.score is not None else unclear).append(label)
    out = Path(args.out)
    write_jsonl(out, rows)
    write_jsonl(out.with_name(f"{out.stem}.unclear.jsonl"), unclear)
    show(proofs, critiques, rule)
    drawn = sum(map(len, critiques)) / len(critiques)
    print("answers: " + ", ".join(f"{n} {state}" for state, n in states.items()))
    print(f"{out}: {len(rows)} proofs labelled, {len(unclear)} unclear, {drawn:.1f} critiques a proof")
