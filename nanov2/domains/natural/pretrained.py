"""Natural-language mode: the phases that differ from the embedded world's, `base` and `coldstart`.

The base is a pretrained chat model in a Hugging Face folder; 𝒟v begins with the graded proofs of [data], and
every other phase is that of train.py. Nobody knows the truth of a new proof, so figures that need it are left
out, and no phase falls back by it.
"""

from __future__ import annotations

from collections import Counter

import torch

from nanov2.distributed.ranks import derive_rng
from nanov2.domains import language as natural
from nanov2.domains.natural.corpus import PARTS, graded_proofs
from nanov2.hub import chat
from nanov2.method import figures as ev
from nanov2.method.experts import make_expert
from nanov2.model.packing import Pack
from nanov2.records import ProofRecord, TrajectoryRecord
from nanov2.rl.trainer import counted_tokens, supervised_loss, train_supervised
from nanov2.run.folder import Run
from nanov2.run.phase import generator_proofs

REMARKS = {  # of the demonstrations of the form
    1.0: "Every step follows from the ones before it, and what was asked is proved. I find no issue.",
    0.5: "The idea is right, but a detail is left out: one step is stated without its reason.",
    0.0: "A step does not follow from the ones before it, and without it the proof fails.",
}


def critique_in_form(score: float) -> str:
    """A verifier's answer, for the form alone."""
    return f"{natural.V_START}\n{REMARKS[score]}\n\n{natural.V_END} \\boxed{{{score:g}}}"


def meta_critique_in_form(quality: float) -> str:
    remark = "What it claims is there, and its score follows." if quality else "What it claims is not there."
    return f"{natural.MV_START}\n{remark}\n\n{natural.MV_END} \\boxed{{{quality:g}}}"


def proof_in_form(proof: str, score: float) -> str:
    return with_evaluation(proof, critique_in_form(score))


def with_evaluation(proof: str, critique: str) -> str:
    """A generator's answer."""
    return f"## Solution\n\n{proof}\n\n## Self Evaluation\n\n{critique}"


def demonstration(prompts: natural.Language, records: list[ProofRecord], rng) -> Pack:
    """One of the three tasks in its form, of one of the shorter proofs, for that is cheap.

    The scores are drawn blindly: they teach the form, not to judge.
    """
    records = sorted(records, key=lambda r: len(r.problem) + len(r.proof))[: (len(records) + 1) // 2]
    record, score = rng.choice(records), rng.choice(list(REMARKS))
    task = rng.choice(("verify", "meta", "prove"))
    if task == "verify":
        return prompts.example(prompts.verify(record.problem, record.proof), critique_in_form(score))
    if task == "meta":
        question = prompts.meta(record.problem, record.proof, critique_in_form(rng.choice(list(REMARKS))))
        return prompts.example(question, meta_critique_in_form(score))
    return prompts.example(prompts.prove(record.problem), proof_in_form(record.proof, score))


def documents(prompts: natural.Language, samples: list[TrajectoryRecord], scores: dict) -> list[Pack]:
    """Best samples to learn: every critique, and the proofs whose label is 1 (see consolidation.py)."""
    out = []
    for sample in samples:
        (_, proof), (_, critique) = sample.turns
        out.append(prompts.example(prompts.verify(sample.problem, proof), critique))
        if scores[sample.problem, proof] == 1:
            answer = with_evaluation(proof, critique)
            out.append(prompts.example(prompts.prove(sample.problem), answer))
    return out


def base(run: Run, lap: int) -> dict:
    """The pretrained model, as it is or (base.steps > 0) after learning the form of the three tasks.

    A large model follows the form because it is told to; a small one needs to see it, or no answer has a
    score and GRPO has nothing to choose from.
    """
    c = run.config
    model, tokenizer = chat.load_model(c.pretrained.folder, run.ranks.device)
    prompts, parts = run.prompts(tokenizer), graded_proofs(c)
    rng = derive_rng(c.seed, "held-out demonstrations")
    held_out = [demonstration(prompts, parts["held_out"], rng) for _ in range(min(12, c.eval.proofs))]

    def draw(step: int, i: int) -> Pack:
        return demonstration(prompts, parts["train"], derive_rng(c.seed, "demonstration", step, i))

    def measure(model, step: int) -> ev.Metrics:
        with torch.no_grad():
            loss = supervised_loss(model, held_out, tokenizer, counted_tokens(held_out), backward=False)
        return {"held-out/loss": {"value": round(loss, 4), "n": len(held_out), "low": loss, "high": loss}}

    def figures(model) -> tuple[ev.Metrics, list[dict]]:
        proofs = [r for r in parts["held_out"] if r.score is not None]
        critic, shown = ev.eval_verifier(model, prompts, proofs, c, run.ranks, "labelled")
        writer, more = ev.eval_generator(
            model, prompts, run.problems["held_out"], c, run.ranks, "labelled", samples=1
        )
        return measure(model, 0) | critic | writer, shown + more

    before, samples = figures(model)
    curve, after = [], before
    if c.base.steps:
        curve = train_supervised(
            run.folder("base"), "base", model, tokenizer, draw, c.base, run.ranks, measure
        )
        after, samples = figures(model)
    run.save("base", 1, model, tokenizer)
    return {"before": before, "after": after, "curve": curve, "samples": samples, "steps": c.base.steps}


def coldstart(run: Run, lap: int) -> dict:
    """1A: 𝒟v from the graded proofs of [data]; what has no grade, and what the base drafts, a person scores.

    With expert "grades" there is nobody to ask: only graded proofs are used.
    """
    c, folder = run.config, run.folder("coldstart")
    parts = graded_proofs(c)
    dv = [r for r in parts["train"] if r.score is not None]
    if c.expert != "grades":
        unscored = [r for r in parts["train"] if r.score is None]
        if c.coldstart.problems:
            problems = run.problems["train"][: c.coldstart.problems]
            path = folder / "train_trajectories.jsonl"
            unscored += generator_proofs(run, 1, problems, 1, path, "coldstart", "base")
        expert = make_expert(c.expert, folder)
        dv = dv + expert.score_proofs(run.ranks.from_main(unscored[: c.coldstart.subset]))
    run.write("coldstart", 1, "dv.jsonl", dv)
    for name in PARTS[1:]:
        graded = [r for r in parts[name] if r.score is not None][: c.eval.proofs]
        run.write("coldstart", 1, f"{name}_proofs.jsonl", graded)
    run.write("coldstart", 1, "held_out_hard_proofs.jsonl", [])
    rows = [
        [name, *(Counter(r.score for r in records)[s] for s in (0.0, 0.5, 1.0, None))]
        for name, records in (parts | {"train": dv}).items()
    ]
    table = {"title": "Graded proofs, split by problem", "columns": ["part", "0", "0.5", "1", "no grade"]}
    samples = [{"problem": r.problem, "proof": r.proof, "truth": r.score} for r in dv]
    return {"after": {}, "tables": [table | {"rows": rows}], "samples": samples}
