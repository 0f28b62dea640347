"""Which errors a model makes, by kind, sampled and greedy: what the habits of a base come to.

A proof's and a critique's kinds of error are the domain's to name (`View.faults`, `View.errors`). Every share
is of the answers that are wrong at all, and an answer may have several kinds.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from nanov2.domains.domain import Domain
from nanov2.method.figures import Bench
from nanov2.model.decoder import Model
from nanov2.records import CritiqueRecord, ProblemRecord, ProofRecord

NO_FORM = "without the form"
TASKS = {"prove": "proof", "verify": "critique", "meta": "meta-critique", "revise": "revision"}
Wrong = dict[str, list[tuple[str, ...]]]  # task → for each wrong answer, the names of its kinds of error


def habit_table(bench: Bench, domain: Domain, model: Model, problems: list[ProblemRecord]) -> dict:
    """A table of (task, error, share at the temperature of [eval], share at 0), by a domain with a truth."""
    found = [wrong_answers(b, domain, model, problems) for b in (bench, bench.greedy())]
    rows = []
    for task, title in TASKS.items():
        counts = [Counter(kind for kinds in wrong[task] for kind in kinds) for wrong in found]
        totals = [len(wrong[task]) for wrong in found]
        rows.append([f"{title}s that are wrong", "", *totals])
        for kind in sorted(counts[0] | counts[1], key=lambda k: -counts[0][k]):
            shares = [f"{c[kind] / max(n, 1):.0%}" for c, n in zip(counts, totals, strict=True)]
            rows.append(["", kind, *shares])
    columns = ["answers", "kind of error", f"T = {bench.temperature:g}", "T = 0"]
    return {"title": "Habits: shares of the wrong answers", "columns": columns, "rows": rows}


def wrong_answers(bench: Bench, domain: Domain, model: Model, problems: list[ProblemRecord]) -> Wrong:
    """The model proves, judges its proofs, judges its critiques, and revises what it found wanting."""
    language, config, truth = bench.language, bench.config, domain.truth
    wrong: Wrong = defaultdict(list)

    questions = [language.prove(p.problem) for p in problems]
    texts = bench.answers(model, questions, config.generator, "habits: prove", proofs=True)
    proofs = []
    for p, text in zip(problems, texts, strict=True):
        if not language.is_proof(text):
            wrong["prove"].append((NO_FORM,))
            continue
        proofs.append(ProofRecord(p.problem, text, truth.score(p.problem, text), p.kind))
        if proofs[-1].score < 1:
            wrong["prove"].append(domain.view(proofs[-1]).faults)

    questions = [language.verify(r.problem, r.proof) for r in proofs]
    critiques = []
    for r, text in zip(
        proofs, bench.answers(model, questions, config.verifier, "habits: verify"), strict=True
    ):
        claim = language.claimed_score(text)
        if claim is None:
            wrong["verify"].append((NO_FORM,))
            continue
        record = CritiqueRecord(r.problem, r.proof, text, score=claim)
        critiques.append((record, r.score))
        if errors := domain.view(record).errors:
            wrong["verify"].append(errors)

    records = [c for c, _ in critiques]
    questions = [language.meta(c.problem, c.proof, c.critique) for c in records]
    for c, text in zip(records, bench.answers(model, questions, config.meta, "habits: meta"), strict=True):
        claim, quality = language.claimed_quality(text), truth.examine(c.problem, c.proof, c.critique).quality
        if claim is None:
            wrong["meta"].append((NO_FORM,))
        elif claim != quality:
            wrong["meta"].append(("agrees with what it reads" if claim == 1 else "doubts what is right",))

    wanting = [c for c, score in critiques if c.score < 1 and score < 1]
    questions = [language.revise(c.problem, c.proof, [c.critique]) for c in wanting]
    texts = bench.answers(model, questions, config.selfverify, "habits: revise", proofs=True)
    for c, text in zip(wanting, texts, strict=True):
        if not language.is_proof(text):
            wrong["revise"].append((NO_FORM,))
        elif text == c.proof:
            wrong["revise"].append(("the same proof again",))
        elif truth.score(c.problem, text) < 1:
            wrong["revise"].append(("another wrong proof",))
    return wrong
