"""The DeepSeekMath-V2 cycle, phase by phase.

    python train.py --phase=flywheel                                     # everything, one process
    torchrun --nproc-per-node=2 train.py --phase=flywheel                # everything, two ranks
    torchrun --nproc-per-node=2 train.py --phase=verifier --dir=runs/a --seed=1 --verifier.steps=80

Phases, in order: base, coldstart, verifier, meta, verifier2, generator, selfverify, then autolabel.py;
flywheel runs them all, for `laps` laps, from lap 2 on also consolidate where a phase starts from it. Each
reads what earlier ones wrote to --dir and says which phase makes what is missing. A phase that is done is
not done again; an interrupted one continues. --from=RUN takes another run's phases up to the first whose
settings differ, so that a change is tried without doing again what it does not touch:

    python train.py --phase=flywheel --from=runs/proofworld --dir=runs/no-gate --verifier2.meta_gate=false

--dry-run prints what a run takes, without weights.
Any other --section.field=value overrides the configuration (see --help).
"""

from nanov2.distributed.startup import prepare

prepare()

import dataclasses
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from autolabel import assess_proofs, autolabel
from nanov2.distributed.ranks import derive_rng, derive_seed
from nanov2.distributed.safety import on_main
from nanov2.domains.domain import FindingTruth
from nanov2.domains.language import Language
from nanov2.errors import InputError
from nanov2.hub.chat import ChatTokenizer
from nanov2.method import figures as ev
from nanov2.method.experts import GRADED, ExactExpert, gradable, make_expert
from nanov2.method.habits import habit_table
from nanov2.method.judges import OwnScores, meta_judge
from nanov2.method.labels import as_demonstration, label_all
from nanov2.method.samples import pick
from nanov2.method.tasks import GeneratorTask, SelfVerifyTask, VerifierTask
from nanov2.model.decoder import Model
from nanov2.model.packing import Pack
from nanov2.model.rollout import Sampling
from nanov2.pages import legend
from nanov2.pages.report import build_report, headline_text
from nanov2.records import LEVELS, CritiqueRecord, ProofRecord, TrajectoryRecord
from nanov2.rl.logs import print_table, track
from nanov2.rl.trainer import Trainee, counted_tokens, supervised_loss, train_supervised
from nanov2.run import takeover
from nanov2.run.aware import aware
from nanov2.run.cli import open_folder, parse, read_config, script
from nanov2.run.folder import Run
from nanov2.run.left import time_left
from nanov2.run.phase import (
    Exams,
    Result,
    at_best_temperature,
    balanced,
    both,
    distinct_proofs,
    endpoint_author,
    graded,
    hardest_held_out,
    held_out_problems,
    initial_weights,
    judge,
    merged,
    on_held_out_problems,
    proof_judge,
    read_eval,
    run_grpo,
    spread,
    starting_point,
    verifier_test_sets,
    write_trajectories,
)
from nanov2.run.phases import check_request, flywheel, heading, needed
from nanov2.run.plan import HARDWARE, dry_run


def base(run: Run, lap: int) -> Result:
    """Supervised training on the domain's demonstrations, from fresh weights or from a pretrained model."""
    c, domain = run.config, run.domain
    model, tokenizer = run.start()
    language = domain.language(tokenizer)
    bench = run.bench(language)

    def draw(step: int, i: int) -> Pack:
        rng = derive_rng(c.seed, "demonstration", step, i)
        return language.document(domain.demonstration(rng, step / max(c.base.steps, 1)))

    rng = derive_rng(c.seed, "held-out demonstrations")
    held_out = [language.document(domain.demonstration(rng, 1.0)) for _ in range(c.eval.demonstrations)]

    @torch.no_grad()
    def measure(model: Model, step: int) -> ev.Metrics:
        loss = round(supervised_loss(model, held_out, counted_tokens(held_out), backward=False), 4)
        return {"held-out/loss": {"value": loss, "n": len(held_out), "low": loss, "high": loss}}

    def figures(model: Model) -> ev.Measured:
        metrics, samples = on_held_out_problems(run, bench, lambda b, *args: b.generator(model, *args))
        if proofs := [r for r in domain.graded_proofs().get("held_out", []) if r.score is not None]:
            critic, shown = both(bench, ev.Bench.verifier, model, proofs, "labelled")
            metrics, samples = metrics | critic, samples + shown
        return metrics | bench.pass_at_k(model, hardest_held_out(run), "hard") | measure(model, 0), samples

    trained_before = c.pretrained.folder or not c.base.steps
    before = figures(model)[0] if trained_before else measure(model, 0)
    curve = [{"step": 0, **measure(model, 0)}]
    if c.base.steps:
        trainee = Trainee(run.folder("base"), "base", model, tokenizer, run.ranks)
        curve += train_supervised(trainee, draw, c.base, measure)
        curve.append({"step": c.base.steps, **measure(model, c.base.steps)})
    run.save("base", 1, model, tokenizer)
    after, samples = figures(model)
    tables = [habit_table(bench, domain, model, run.problems["held_out"])] if domain.truth else []
    return Result(after, before, curve=curve, samples=samples, tables=tables, steps=c.base.steps)


UNSCORED = "unscored_proofs.jsonl"  # of the weak prover; people may score them at any time


def coldstart(run: Run, lap: int) -> Result:
    """1A: the weak prover (the base) drafts, criticises and revises; the expert scores a diverse subset.

    𝒟v also holds the proofs that people graded, where the domain has some. What nobody scores is kept.
    """
    c, folder, domain = run.config, run.folder("coldstart"), run.domain
    model, tokenizer = run.load("base")
    language = domain.language(tokenizer)
    turns = language.turns_per_proof * c.coldstart.rounds - (language.turns_per_proof - 1)

    def write(name: str, problems: list) -> list[TrajectoryRecord]:
        path, seed = folder / f"{name}_trajectories.jsonl", derive_seed(c.seed, "coldstart", name)
        return write_trajectories(run, path, model, language, problems, turns, c.selfverify.max_tokens, seed)

    known = domain.graded_proofs()
    given = [r for r in known.get("train", []) if r.score is not None]
    trajectories, found = [], []
    if c.scorer not in GRADED:  # with grades alone there is nobody to score a new proof
        hard = round(c.coldstart.hard * c.coldstart.problems)
        problems = run.problems["train"][: c.coldstart.problems - hard]
        trajectories = write("train", problems + run.hard_problems("train_hard", 1)[:hard])
        unscored = [r for r in known.get("train", []) if r.score is None]
        copied = {(r.problem, r.proof.strip()) for r in given}
        new = distinct_proofs(trajectories, language, "coldstart")
        unscored += spread([r for r in new if (r.problem, r.proof) not in copied], c.coldstart.subset)
        found = scored(run, run.ranks.from_main(unscored[: c.coldstart.subset]))
    dv = given + [r for r in found if r.score is not None]
    waiting = [r for r in found if r.score is None]
    run.write("coldstart", 1, "dv.jsonl", dv)
    if waiting:
        run.write("coldstart", 1, UNSCORED, waiting)
    for name in ("held_out", "held_out_hard", "validation"):
        proofs = [r for r in known.get(name, []) if r.score is not None]
        if domain.truth and name in run.problems:
            proofs += graded(run, distinct_proofs(write(name, run.problems[name]), language, name))
        run.write("coldstart", 1, f"{name}_proofs.jsonl", proofs[: c.eval.proofs])

    scores = {(r.problem, r.proof): r.score for r in dv}

    def score(problem: str, proof: str) -> float | None:
        return domain.truth.score(problem, proof) if domain.truth else scores.get((problem, proof))

    tables = [scores_by_kind(dv), *refined(trajectories, score)]
    samples = [{"problem": r.problem, "kind": r.kind, "proof": r.proof, "truth": r.score} for r in dv]
    told = f"𝒟v: {len(given)} proofs came with grades"
    told += f", {len(dv) - len(given)} were scored by {c.scorer!r}" if len(dv) > len(given) else ""
    told += f"; {len(waiting)} that nobody has scored are in {UNSCORED}" if waiting else ""
    told += "; the weak prover wrote none in form" if trajectories and not found else ""
    return Result(samples=samples, tables=tables, notes=[told] if given or waiting else [])


def scored(run: Run, proofs: list[ProofRecord]) -> list[ProofRecord]:
    """The proofs with the scores that coldstart.expert gives them; None where it gives none."""
    c, who = run.config.autolabel, run.config.scorer
    if who == "nobody":
        return proofs
    if who != "endpoint":
        return make_expert(who, run.folder("coldstart"), run.domain.truth).score_proofs(proofs)
    author = endpoint_author(run, c.temperature, derive_seed(run.config.seed, "coldstart", "endpoint"))
    mine = run.ranks.mine(proofs)
    pairs = [(r.problem, r.proof) for r in mine]
    critiques = assess_proofs(author, author, Language(), c, pairs, bar=run.ranks.main)
    records = [x.record(c) for x in label_all(mine, critiques, c)]
    model = run.config.endpoint.model
    return run.ranks.gather([dataclasses.replace(r, label=f"{r.label}, {model}") for r in records])


def scores_by_kind(dv: list[ProofRecord]) -> dict:
    kinds = sorted({r.kind for r in dv})
    rows = [[k, *(sum(r.kind == k and r.score == s for r in dv) for s in LEVELS)] for k in kinds]
    return {"title": "𝒟v: proofs per type and score", "columns": ["type", "0", "0.5", "1"], "rows": rows}


def refined(trajectories: list[TrajectoryRecord], score: Callable[[str, str], float | None]) -> list[dict]:
    """How many trajectories improved in refinement; no table where nobody knows."""
    counts = Counter()
    for t in trajectories:
        scores = [score(t.problem, text) for name, text in t.turns if name == "prove"]
        if len(scores) > 1 and None not in (scores[0], scores[-1]):
            change = scores[-1] - scores[0]
            counts["improved" if change > 0 else "worse" if change < 0 else "same"] += 1
    if not counts:
        return []
    rows = [[k, counts[k]] for k in ("improved", "same", "worse")]
    return [{"title": "Refined trajectories", "columns": ["final against draft", "count"], "rows": rows}]


def verifier(run: Run, lap: int) -> Result:
    """1B: GRPO from the base on 𝒟v with R_format · R_score (· credit for each finding)."""
    model, tokenizer = starting_point(run, "base")
    truth, findings = run.domain.truth, None
    items = balanced(run.records("coldstart", 1, "dv.jsonl", ProofRecord), "score")
    if run.config.verifier.credit == "finding":
        assert isinstance(truth, FindingTruth)  # as the check at the start saw to
        findings = {(r.problem, r.proof): truth.findings(r.problem, r.proof) for r in items}
    task = VerifierTask(run.domain.language(tokenizer), truth=truth, findings=findings)
    return train_verifier(run, ("verifier", lap), model, task, items)


def train_verifier(
    run: Run, at: tuple[str, int], model: Model, task: VerifierTask, items: list, own=None
) -> Result:
    """What 1B and 1D share: train on `items`, measure on held-out proofs before and after.

    `own`: critiques whose quality is known, on which the model is measured as a meta-verifier too.
    """
    bench, shown = run.bench(task.language), run.config.eval.shown // 2
    validation = run.records("coldstart", 1, "validation_proofs.jsonl", ProofRecord)
    sets = verifier_test_sets(run, at[1])

    def measure(model: Model, step: int) -> ev.Measured:
        return bench.at_step(step).verifier(model, validation, "validation")

    def held_out(model: Model) -> ev.Measured:
        metrics, samples = {}, []
        for name, proofs in sets.items():
            m, s = both(bench, ev.Bench.verifier, model, proofs, name)
            metrics, samples = metrics | m, samples + bench.weighed(pick(s, shown), task.meta)
        if own:
            m, s = both(bench, ev.Bench.meta, model, own, "labelled")
            metrics, samples = metrics | m, samples + pick(s, shown)
        return metrics, samples

    best = at_best_temperature(
        bench,
        "validation/score_accuracy",
        lambda b: b.verifier(model, validation, "validation")[0],
        lambda b: merged(b.verifier(model, proofs, name)[0] for name, proofs in sets.items()),
    )
    return run_grpo(run, at, model, task, items, Exams(measure, held_out, best))


def meta(run: Run, lap: int) -> Result:
    """1C: v1 writes critiques, the expert grades them (𝒟mv), and GRPO trains πη on the grades."""
    files = {"train": "dv", "labelled": "held_out_proofs", "validation": "validation_proofs"}
    proofs = {n: run.records("coldstart", 1, f"{file}.jsonl", ProofRecord) for n, file in files.items()}
    proofs["train"] = [r for r in proofs["train"] for _ in range(run.config.meta.critiques)]
    critic, _ = run.load("verifier", frozen=True)
    return train_meta(run, ("meta", lap), critic, starting_point(run, "base"), proofs, [])


def renew_meta(run: Run, lap: int) -> Result:
    """1C in a later lap: πη goes on, with the last verifier's critiques of the last generator's proofs."""
    proofs = {
        "train": spread(
            run.records("autolabel", lap - 1, "labels.jsonl", ProofRecord), run.config.renew_meta.proofs
        ),
        "labelled": run.records("autolabel", lap - 1, "held_out_proofs.jsonl", ProofRecord),
        "validation": run.records("coldstart", 1, "validation_proofs.jsonl", ProofRecord),
    }
    last = last_meta(run, lap - 1)
    critic, _ = run.load("verifier2", lap - 1, frozen=True)
    earlier = run.records(*last, "dmv.jsonl", CritiqueRecord)
    return train_meta(run, ("renew_meta", lap), critic, starting_point(run, *last), proofs, earlier)


def last_meta(run: Run, lap: int) -> tuple[str, int]:
    """(phase, lap) of the meta-verifier that a lap uses."""
    return ("renew_meta", lap) if lap > 1 and run.config.renew_meta.on else ("meta", 1)


def train_meta(
    run: Run,
    at: tuple[str, int],
    critic: Model,
    start: tuple[Model, ChatTokenizer],
    proofs: dict[str, list[ProofRecord]],
    earlier: list[CritiqueRecord],
) -> Result:
    """`critic` writes critiques of `proofs`, the expert grades them, and GRPO trains the model of `start` on
    these grades and `earlier` ones. Where several critiques of a proof are alike, one is graded."""
    c, folder, (model, tokenizer) = run.config, run.folder(*at), start
    language, truth = run.domain.language(tokenizer), run.domain.truth
    unmarked = {(r.problem, r.proof) for r in proofs["train"]}
    proofs = {name: gradable(c.expert, records) for name, records in proofs.items()}
    unmarked -= {(r.problem, r.proof) for r in proofs["train"]}
    task, bench = VerifierTask(language, truth=truth), run.bench(language)

    def criticise(proofs: list[ProofRecord], name: str) -> list[CritiqueRecord]:
        def make():
            questions = [language.verify(r.problem, r.proof) for r in proofs]
            how = Sampling(c.eval.temperature, c.verifier.max_tokens, c.verifier.batch_rows)
            seed = derive_seed(c.seed, *at, name)
            answers = ev.sample_answers(critic, language, questions, how, seed, run.ranks)
            distinct = {(r.problem, r.proof, a): r for r, a in zip(proofs, answers, strict=True)}
            return [
                CritiqueRecord(
                    r.problem, r.proof, a, None, r.score, f"lap {at[1]}: the last verifier", wrong=r.wrong
                )
                for (*_, a), r in distinct.items()
                if language.claimed_score(a) is not None
            ]

        return run.once(folder / f"{name}_critiques.jsonl", CritiqueRecord, make)

    critiques = {name: criticise(records, name) for name, records in proofs.items()}
    everything = [r for records in critiques.values() for r in records]
    expert = make_expert(c.expert, folder, truth, c.meta.misses)
    if truth:  # what figures are made of is graded by the truth, whoever the expert is
        scored = expert.score_critiques(critiques["train"])
        held = ExactExpert(truth, c.meta.misses).score_critiques(everything[len(scored) :])
        grades = iter(scored + held)
    else:
        grades = iter(expert.score_critiques(everything))
    sets = {name: list(islice(grades, len(records))) for name, records in critiques.items()}
    dmv = earlier + sets["train"]
    run.write(*at, "dmv.jsonl", dmv)
    run.write(*at, "held_out_dmv.jsonl", sets["labelled"])

    def measure(model: Model, step: int) -> ev.Measured:
        return bench.at_step(step).meta(model, sets["validation"], "validation")

    def held_out(model: Model) -> ev.Measured:
        return both(bench, ev.Bench.meta, model, sets["labelled"], "labelled")

    best = at_best_temperature(
        bench,
        "validation/meta_balanced_accuracy",
        lambda b: b.meta(model, sets["validation"], "validation")[0],
        lambda b: b.meta(model, sets["labelled"], "labelled")[0],
    )
    items = balanced(dmv, "quality", most=4)
    result = run_grpo(run, at, model, task, items, Exams(measure, held_out, best))
    counts = Counter(r.quality for r in dmv)
    table = {"title": "𝒟mv: critiques per quality", "columns": ["quality", "critiques"]}
    result.tables.append(table | {"rows": [[q, counts[q]] for q in LEVELS]})
    if unmarked:
        told = f"{len(unmarked)} faulty proofs have no marked wrong step: their critiques are not in 𝒟mv"
        result.notes.append(told)
    return result


def consolidate(run: Run, lap: int) -> Result:
    """Rejection fine-tuning: the first base learns from the last lap's best samples, beside demonstrations.

    The demonstrations keep every skill that the best samples do not show.
    """
    c, settings, domain = run.config, run.config.consolidate, run.domain
    model, tokenizer = run.load("base")
    language = domain.language(tokenizer)
    bench = run.bench(language)
    labels = run.records("autolabel", lap - 1, "labels.jsonl", ProofRecord)
    scores = {(r.problem, r.proof): r.score for r in labels}
    samples = run.records("autolabel", lap - 1, "best.jsonl", TrajectoryRecord)
    best = [language.document(as_demonstration(t, scores[t.problem, t.turns[0][1]])) for t in samples]

    def draw(step: int, i: int) -> Pack:
        rng = derive_rng(c.seed, "consolidate", lap, step, i)
        if best and i % 2:
            return rng.choice(best)
        return language.document(domain.demonstration(rng, 1.0))

    def held_out(model: Model) -> ev.Measured:
        return on_held_out_problems(run, bench, lambda b, *args: b.generator(model, *args))

    before, _ = held_out(model)
    folder, name = run.folder("consolidate", lap), f"lap{lap}/consolidate"
    trainee = Trainee(folder, name, model, tokenizer, run.ranks)
    curve = train_supervised(trainee, draw, settings, lambda *_: {})
    run.save("consolidate", lap, model, tokenizer)
    after, shown = held_out(model)
    note = f"{len(best)} best samples of lap {lap - 1}, as many documents again from the demonstrations"
    return Result(after, before, curve=curve, samples=shown, notes=[note], steps=settings.steps)


def verifier2(run: Run, lap: int) -> Result:
    """1D: from a fresh base, R_meta of the frozen πη gates the reward on 𝒟v; 𝒟mv is learnt beside it.

    In later laps: from the last verifier, on the 𝒟v that autolabelling enlarged.
    """
    config = run.config.phase("verifier2", lap)
    model, tokenizer = initial_weights(run, "verifier2", lap)
    source_mv = last_meta(run, lap)
    gate = judge(run, meta_judge, *source_mv, config) if config.meta_gate else None
    source = ("coldstart", 1) if lap == 1 else ("autolabel", lap - 1)
    dv = run.records(*source, "dv.jsonl", ProofRecord)
    if lap > 1:  # what was left open, where a person has scored it before this phase began
        left = run.records(*source, "unclear.jsonl", ProofRecord)
        if (run.folder("coldstart") / UNSCORED).is_file():
            left += run.records("coldstart", 1, UNSCORED, ProofRecord)
        late = run.folder("verifier2", lap) / "scored_by_people.jsonl"
        dv = dv + run.once(late, ProofRecord, lambda: [r for r in left if r.score is not None])
    dv = balanced(dv, "score")
    dmv = balanced(run.records(*source_mv, "dmv.jsonl", CritiqueRecord), "quality", most=4)
    derive_rng(run.config.seed, "mixture", lap).shuffle(dmv)
    own = run.records("meta", 1, "held_out_dmv.jsonl", CritiqueRecord)
    task = VerifierTask(run.domain.language(tokenizer), gate, run.domain.truth)
    items = dv + dmv[: len(dv) // 3]
    result = train_verifier(run, ("verifier2", lap), model, task, items, own)
    if lap == 1:  # the paper compares with v1
        result.beside["verifier v1"] = read_eval(run, "verifier", 1)["after"]
    return result


def generator(run: Run, lap: int) -> Result:
    """2: GRPO on 𝒟p; the frozen verifier's score is the whole reward."""
    config, truth = run.config.phase("generator", lap), run.domain.truth
    model, tokenizer = initial_weights(run, "generator", lap)
    language = run.domain.language(tokenizer)
    bench = run.bench(language)
    own = OwnScores(model, language, run.config.verifier.max_tokens, config.batch_rows)
    task = GeneratorTask(language, proof_judge(run, lap, config), truth, own, config.self_scores)
    validation = run.problems["validation"] if lap == 1 else run.hard_problems("validation_hard", lap)

    def measure(model: Model, step: int) -> ev.Measured:
        return bench.at_step(step).generator(model, validation, "validation", task.verifier, 2)

    def held_out(model: Model) -> ev.Measured:
        metrics, samples = on_held_out_problems(
            run, bench, lambda b, *args: b.generator(model, *args, task.verifier)
        )
        return metrics | bench.pass_at_k(model, hardest_held_out(run), "hard"), samples

    items = run.problems["train"] if lap == 1 else run.hard_problems("train_hard", lap)
    keep = "validation/true_score" if config.keep_best == "truth" else ""
    best = at_best_temperature(
        bench,
        "validation/true_score",
        lambda b: b.generator(model, validation, "validation")[0],
        lambda b: merged(b.generator(model, p, name)[0] for name, p in held_out_problems(run).items()),
    )
    return run_grpo(run, ("generator", lap), model, task, items, Exams(measure, held_out, best, keep))


def selfverify(run: Run, lap: int) -> Result:
    """3: trajectories draft → own critique → revision → …; the reward is on the final proof."""
    config, truth = run.config.phase("selfverify", lap), run.domain.truth
    model, tokenizer = initial_weights(run, "selfverify", lap)
    language = run.domain.language(tokenizer)
    bench = run.bench(language)
    verdicts = proof_judge(run, lap, config)
    weights = (config.alpha, config.beta) if config.reward == "alpha_beta" else None
    gate = judge(run, meta_judge, "verifier2", lap, config) if weights else None
    task = SelfVerifyTask(language, verdicts, config.max_turns, gate, weights, truth=truth)

    validation = run.hard_problems("validation_hard", lap)

    def measure(model: Model, step: int) -> ev.Measured:
        return bench.at_step(step).selfverify(model, validation, "validation", verdicts, 2)

    def held_out(model: Model) -> ev.Measured:
        return on_held_out_problems(run, bench, lambda b, *args: b.selfverify(model, *args, verdicts))

    items = (run.problems["train"] if lap == 1 else []) + run.hard_problems("train_hard", lap)
    keep = "validation/final_true_score" if config.keep_best == "truth" else ""
    best = at_best_temperature(
        bench,
        "validation/final_true_score",
        lambda b: b.selfverify(model, validation, "validation")[0],
        lambda b: merged(b.selfverify(model, p, name)[0] for name, p in held_out_problems(run).items()),
    )
    result = run_grpo(run, ("selfverify", lap), model, task, items, Exams(measure, held_out, best, keep))
    if config.init != "generator" and run.is_done("generator", lap):  # what the phase adds to phase 2
        figures, _ = held_out(run.load("generator", lap)[0])
        result.beside["the generator of phase 2"] = ev.without_types(figures)
    return result


STEPS = {
    "base": base,
    "coldstart": coldstart,
    "verifier": verifier,
    "aware": aware,
    "meta": meta,
    "consolidate": consolidate,
    "renew_meta": renew_meta,
    "verifier2": verifier2,
    "generator": generator,
    "selfverify": selfverify,
}


def do_phase(run: Run, phase: str, lap: int, place: str = "") -> None:
    """One phase, at its `place` in the plan, unless it is done: figures, samples and, last, phase.json."""
    if phase == "autolabel":
        autolabel(run, lap, place)
    elif not run.is_done(phase, lap):
        begin, name = time.time(), place + heading(phase, lap)
        run.begin(phase, lap)
        result = STEPS[phase](run, lap)
        run.write(phase, lap, "eval.json", result.figures())
        run.write(phase, lap, "samples.jsonl", pick(result.samples, run.config.eval.shown))
        facts = {"notes": result.notes, "tables": result.tables, "steps": result.steps}
        run.finish(phase, lap, time.time() - begin, **facts)
        if run.ranks.main:
            print_table(f"{name} ({time.time() - begin:.0f} s)", result.before, result.after, legend.title)
    if run.ranks.main:
        build_report(run.dir)


FLAGS = {
    "phase": ("flywheel", "which phase to run, or flywheel for all"),
    "lap": (1, "lap of the phase"),
    "from": ("", "folder of another run: its finished phases that have this run's settings are taken over"),
    "track": ("", "also tell every step to wandb or trackio, which must be installed"),
    "dry-run": (False, "print parameters, memory per rank, tokens and seconds per step; do nothing"),
    "ranks": (0, "ranks of --dry-run (default: those that torchrun started)"),
    "hardware": ("this", f"device of --dry-run: this machine's, or one of {', '.join(HARDWARE)}"),
}


def main() -> None:
    args, overrides = parse(__doc__, FLAGS)
    if args.dry_run:
        ranks = args.ranks or int(os.environ.get("WORLD_SIZE", "1"))
        if os.environ.get("RANK", "0") == "0":
            print(dry_run(read_config(args, overrides), ranks, args.hardware))
        return
    if args.ranks or args.hardware != "this":
        raise InputError(
            "--ranks and --hardware are for --dry-run; torchrun --nproc-per-node=N starts N ranks"
        )
    check_request(args.phase, args.lap, read_config(args, overrides))
    run = open_folder(args, overrides)
    if args.track and run.ranks.main:
        track(args.track, run.dir.name, run.config.to_dict())
    wanted: list[tuple[str, int]] = (
        flywheel(run.config) if args.phase == "flywheel" else [(args.phase, args.lap)]
    )
    taken = takeover.plan(run, Path(source), wanted[-1]) if (source := getattr(args, "from")) else None
    if not run.is_done(*wanted[0]):
        for earlier in needed(*wanted[0], run.config):
            if not taken or earlier not in taken.phases:
                run.need(*earlier)
    run.claim()
    if taken:
        on_main(run.ranks, run.dir, partial(takeover.take, run, taken))
        if run.ranks.main:
            print(taken, file=sys.stderr)
    if run.ranks.main and len(wanted) > 1:
        for i, at in enumerate(wanted, 1):
            print(f"  {i:2} {heading(*at)}" + (", done" if run.is_done(*at) else ""))
    for i, (phase, lap) in enumerate(wanted, 1):
        place = f"[{i} of {len(wanted)}] " if len(wanted) > 1 else ""
        if run.ranks.main and not run.is_done(phase, lap):
            left = time_left(wanted[i - 1 :], run.spent(), run.config.to_dict())
            print(f"\n{place}{heading(phase, lap)}" + (f"\n  {left}" if left else ""), flush=True)
        do_phase(run, phase, lap, place)
    if run.ranks.main:
        if len(wanted) > 1:
            print(f"\nWhat each step changed\n{headline_text(run.dir)}")
        print(f"\nreport: {run.dir / 'report.html'}")
    run.ranks.close()


if __name__ == "__main__":
    script(main)
