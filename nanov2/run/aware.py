"""A solution-aware critic: the verifier distilled from itself with the reference solution in view.

After self-trained verification (arXiv 2605.30290). v1 writes several critiques of each proof of 𝒟v with a
reference solution in view; those whose score is the expert's are kept, and v1 learns, supervised, to write
them without the solution. `aware.solution = false` is the control: the same without the solution, so that
what rejection alone gives is not taken for what the solution gives.
"""

from __future__ import annotations

from nanov2.distributed.ranks import derive_rng, derive_seed
from nanov2.domains.domain import Solved
from nanov2.domains.language import Language
from nanov2.errors import InputError
from nanov2.hub.author import Messages
from nanov2.method import figures as ev
from nanov2.method.config import AwareConfig
from nanov2.method.samples import pick
from nanov2.model.decoder import Model
from nanov2.model.packing import Pack
from nanov2.model.rollout import Sampling
from nanov2.records import CritiqueRecord, ProofRecord
from nanov2.rl.trainer import Trainee, train_supervised
from nanov2.run.folder import Run
from nanov2.run.phase import Result, balanced, both, read_eval, verifier_test_sets


def aware(run: Run, lap: int) -> Result:
    """v1, asked with the reference solution in view, teaches v1 without it."""
    domain = run.domain
    if not isinstance(domain, Solved):
        raise InputError(f"--phase=aware: domain {run.config.domain!r} has no reference solutions")
    c, folder = run.config.aware, run.folder("aware")
    model, tokenizer = run.load("verifier")
    language = run.domain.language(tokenizer)
    bench, held_out = run.bench(language), verifier_test_sets(run, 1)

    teacher = {}
    for name, proofs in held_out.items():
        asked = questions(language, domain, proofs, c.solution)
        teacher |= both(bench, ev.Bench.verifier, model, proofs, name, asked)[0]

    critiques = run.once(
        folder / "critiques.jsonl", CritiqueRecord, lambda: criticise(run, domain, model, language, c)
    )
    kept = balanced(critiques, "score")

    def draw(step: int, i: int) -> Pack:
        r = derive_rng(run.config.seed, "aware", step, i).choice(kept)
        return language.example(language.verify(r.problem, r.proof), r.critique)

    trainee = Trainee(folder, "aware", model, tokenizer, run.ranks)
    curve = train_supervised(trainee, draw, c, lambda *_: {})
    run.save("aware", 1, model, tokenizer)
    after, samples = {}, []
    for name, proofs in held_out.items():
        figures, shown = both(bench, ev.Bench.verifier, model, proofs, name)
        after, samples = after | figures, samples + pick(shown, run.config.eval.shown // 2)
    seen = "with the reference solution in view" if c.solution else "(no solution in view: the control)"
    note = f"{len(critiques)} critiques of v1 {seen} have the expert's score and are learnt"
    beside = {f"verifier v1 {seen}": teacher}
    before = read_eval(run, "verifier", 1)["after"]
    return Result(after, before, beside, curve=curve, samples=samples, notes=[note], steps=c.steps)


def questions(language: Language, domain: Solved, proofs: list[ProofRecord], in_view: bool) -> list[Messages]:
    """What the teacher is asked of each proof."""
    if not in_view:
        return [language.verify(r.problem, r.proof) for r in proofs]
    return [language.verify_aware(r.problem, r.proof, domain.solution(r.problem) or "") for r in proofs]


def criticise(
    run: Run, domain: Solved, model: Model, language: Language, c: AwareConfig
) -> list[CritiqueRecord]:
    """The teacher's critiques of 𝒟v that have the expert's score, each once."""
    proofs = [r for r in run.records("coldstart", 1, "dv.jsonl", ProofRecord) for _ in range(c.samples)]
    how = Sampling(1.0, run.config.verifier.max_tokens, run.config.verifier.batch_rows)
    asked = questions(language, domain, proofs, c.solution)
    answers = ev.sample_answers(model, language, asked, how, derive_seed(run.config.seed, "aware"), run.ranks)
    right = {
        (r.problem, r.proof, a): r
        for r, a in zip(proofs, answers, strict=True)
        if r.score is not None and language.claimed_score(a) == r.score
    }
    return [
        CritiqueRecord(r.problem, r.proof, a, score=r.score, source="verifier v1, solution in view")
        for (*_, a), r in right.items()
    ]
