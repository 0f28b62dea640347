"""Rejection fine-tuning: the base of a later lap, from the best samples of the lap before (section 3.1).

Of each labelled proof of the harder problems a critique is kept that gives the label and, where it reports
an issue, was confirmed; the proof itself is learnt only where its label is 1. The original demonstrations
stay in the mixture, so that no skill is lost that the best samples do not show.
"""

from __future__ import annotations

from nanov2.distributed.ranks import derive_rng
from nanov2.domains.natural import pretrained
from nanov2.domains.order.demos import Demonstration, make_demonstration
from nanov2.domains.order.world import make_problem
from nanov2.errors import InputError
from nanov2.method import figures as ev
from nanov2.method.consensus import Assessed
from nanov2.model.packing import Pack
from nanov2.records import ProofRecord, TrajectoryRecord
from nanov2.rl.trainer import document, train_supervised
from nanov2.run.folder import Run
from nanov2.run.phase import on_held_out_problems


def best_samples(labelled: list[ProofRecord], critiques: list[list[Assessed]]) -> list[TrajectoryRecord]:
    """A proof and the first critique that gives its label rightly, where there is one."""
    out = []
    for record, given in zip(labelled, critiques, strict=True):
        good = [c for c in given if c.score == record.score and (not c.issue or c.valid)]
        if good:
            turns = (("prove", record.proof), ("verify", good[0].critique))
            out.append(TrajectoryRecord(record.problem, turns, kind=record.kind))
    return out


def as_demonstration(sample: TrajectoryRecord, label: float) -> Demonstration:
    return Demonstration(sample.problem, sample.turns, learnt=(label == 1, True))


def consolidate(run: Run, lap: int) -> dict:
    """Supervised training of the first base on the last lap's best samples and on demonstrations."""
    c, settings = run.config, run.config.consolidate
    model, tokenizer = run.load("base")
    prompts = run.prompts(tokenizer)
    scores = {
        (r.problem, r.proof): r.score for r in run.records("autolabel", lap - 1, "labels.jsonl", ProofRecord)
    }
    samples = run.records("autolabel", lap - 1, "best.jsonl", TrajectoryRecord)
    if run.natural:
        best = pretrained.documents(prompts, samples, scores)
        if not best:
            raise InputError(f"lap {lap - 1} labelled no proof: there is nothing to consolidate")
    else:
        best = [document(tokenizer, as_demonstration(t, scores[t.problem, t.turns[0][1]])) for t in samples]

    def draw(step: int, i: int) -> Pack:
        rng = derive_rng(c.seed, "consolidate", lap, step, i)
        if best and (i % 2 or run.natural):
            return rng.choice(best)
        return document(tokenizer, make_demonstration(rng, make_problem(rng, c.world.hard), c.noise))

    def held_out(model):
        def evaluate(problems: list, name: str):
            return ev.eval_generator(model, prompts, problems, c, run.ranks, name)

        return on_held_out_problems(run, evaluate)

    before, _ = held_out(model)
    folder, name = run.folder("consolidate", lap), f"lap{lap}/consolidate"
    curve = train_supervised(folder, name, model, tokenizer, draw, settings, run.ranks, lambda *_: {})
    run.save("consolidate", lap, model, tokenizer)
    after, shown = held_out(model)
    note = f"{len(best)} best samples of lap {lap - 1}"
    note += "" if run.natural else ", as many documents again from the demonstrations"
    return {
        "before": before,
        "after": after,
        "curve": curve,
        "samples": shown,
        "notes": [note],
        "steps": settings.steps,
    }
