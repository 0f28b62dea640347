"""The DeepSeekMath-V2 cycle, phase by phase.

    python train.py --phase=flywheel                                     # everything, one process
    torchrun --nproc-per-node=2 train.py --phase=flywheel                # everything, two ranks
    torchrun --nproc-per-node=2 train.py --phase=verifier --dir=runs/a --seed=1 --verifier.steps=80

Phases, in order: base, coldstart, verifier, meta, verifier2, generator, selfverify, then autolabel.py;
flywheel runs them all, for `laps` laps, from lap 2 on also consolidate where a phase starts from it. Each
reads what earlier ones wrote to --dir and says which phase makes what is missing. A phase that is done is
not done again; an interrupted one continues.
--dry-run prints what a run takes, without weights.
Any other --section.field=value overrides the configuration (see nanov2/run/config.py).
"""

from nanov2.distributed.startup import prepare

prepare()

import dataclasses
import difflib
import os
import time
from collections import Counter
from itertools import islice

import torch

from autolabel import autolabel
from nanov2.distributed.ranks import derive_rng, derive_seed
from nanov2.domains.natural import pretrained
from nanov2.domains.order.demos import make_demonstration
from nanov2.domains.order.prompts import true_score
from nanov2.domains.order.tokenizer import Tokenizer
from nanov2.domains.order.world import Difficulty, make_problem
from nanov2.errors import InputError
from nanov2.method import figures as ev
from nanov2.method.consolidation import consolidate
from nanov2.method.experts import make_expert
from nanov2.method.judges import meta_judge, verifier_judge
from nanov2.method.tasks import GeneratorTask, SelfVerifyTask, VerifierTask
from nanov2.model.decoder import Model
from nanov2.model.packing import Pack
from nanov2.pages.report import build_report
from nanov2.records import CritiqueRecord, ProofRecord, TrajectoryRecord
from nanov2.rl.logs import print_table
from nanov2.rl.trainer import counted_tokens, document, supervised_loss, train_supervised
from nanov2.run.cli import open_folder, parse, read_config, script
from nanov2.run.folder import PHASES, Run
from nanov2.run.phase import (
    balanced,
    distinct_proofs,
    initial_weights,
    judge,
    on_held_out_problems,
    read_eval,
    run_grpo,
    spread,
)
from nanov2.run.plan import HARDWARE, dry_run


def base(run: Run, lap: int) -> dict:
    """Supervised training from scratch, on demonstrations that grow from short chains to long ones."""
    c, tokenizer = run.config, Tokenizer.for_world()
    everything = Difficulty(
        (c.world.labelled_chain[0], c.world.hard_chain[1]), (c.world.labelled_facts[0], c.world.hard_facts[1])
    )
    stages = ((0.12, Difficulty((2, 2), (3, 4))), (0.28, Difficulty((2, 3), (3, 6))), (1.1, everything))
    model = Model(dataclasses.replace(c.model, vocab_size=tokenizer.vocab_size))
    model.init_weights(torch.Generator().manual_seed(c.seed)).to(run.ranks.device)
    prompts = run.prompts(tokenizer)

    def draw(step: int, i: int) -> Pack:
        difficulty = next(d for share, d in stages if step < share * c.base.steps)
        rng = derive_rng(c.seed, "demonstration", step, i)
        return document(tokenizer, make_demonstration(rng, make_problem(rng, difficulty), c.noise))

    rng = derive_rng(c.seed, "held-out demonstrations")
    held_out = [
        document(tokenizer, make_demonstration(rng, make_problem(rng, c.world.labelled), c.noise))
        for _ in range(c.world.validation)
    ]

    @torch.no_grad()
    def measure(model: Model, step: int) -> ev.Metrics:
        loss = round(supervised_loss(model, held_out, tokenizer, counted_tokens(held_out), backward=False), 4)
        return {"held-out/loss": {"value": loss, "n": len(held_out), "low": loss, "high": loss}}

    before = measure(model, 0)
    curve = train_supervised(run.folder("base"), "base", model, tokenizer, draw, c.base, run.ranks, measure)
    run.save("base", 1, model, tokenizer)
    last = measure(model, c.base.steps)
    metrics, samples = on_held_out_problems(
        run, lambda problems, name: ev.eval_generator(model, prompts, problems, c, run.ranks, name)
    )
    after = last | metrics
    curve = [{"step": 0, **before}, *curve, {"step": c.base.steps, **last}]
    return {"before": before, "after": after, "curve": curve, "samples": samples, "steps": c.base.steps}


def coldstart(run: Run, lap: int) -> dict:
    """1A: the weak prover (the base) drafts, criticises and revises; the expert scores a diverse subset."""
    c, folder = run.config, run.folder("coldstart")
    model, tokenizer = run.load("base")
    prompts = run.prompts(tokenizer)
    task = SelfVerifyTask(prompts, None, max_turns=2 * c.coldstart.rounds - 1)

    def write(name: str, problems: list) -> list[TrajectoryRecord]:
        def make():
            seed = derive_seed(c.seed, "coldstart", name)
            turns = ev.sample_trajectories(model, task, problems, c, seed, run.ranks, c.verifier.max_tokens)
            return ev.trajectory_records(problems, turns)

        return run.once(folder / f"{name}_trajectories.jsonl", TrajectoryRecord, make)

    trajectories = write("train", run.problems["train"][: c.coldstart.problems])
    expert = make_expert(c.expert, folder)
    unscored = spread(distinct_proofs(trajectories, prompts, "coldstart"), c.coldstart.subset)
    dv = expert.score_proofs(run.ranks.from_main(unscored))
    run.write("coldstart", 1, "dv.jsonl", dv)
    for name in ("held_out", "held_out_hard", "validation"):
        proofs = distinct_proofs(write(name, run.problems[name]), prompts, name)[: c.eval.proofs]
        graded = [dataclasses.replace(r, score=true_score(r.problem, r.proof), label="exact") for r in proofs]
        run.write("coldstart", 1, f"{name}_proofs.jsonl", graded)

    improved = Counter()
    for t in trajectories:
        scores = [true_score(t.problem, text) for name, text in t.turns if name == "prove"]
        if len(scores) > 1:
            change = scores[-1] - scores[0]
            improved["improved" if change > 0 else "worse" if change < 0 else "same"] += 1
    kinds = sorted({r.kind for r in dv})
    rows = [[k, *(sum(r.kind == k and r.score == s for r in dv) for s in (0.0, 0.5, 1.0))] for k in kinds]
    tables = [
        {"title": "𝒟v: proofs per type and score", "columns": ["type", "0", "0.5", "1"], "rows": rows},
        {
            "title": "Refined trajectories",
            "columns": ["final against draft", "count"],
            "rows": [[k, improved[k]] for k in ("improved", "same", "worse")],
        },
    ]
    samples = [{"problem": r.problem, "kind": r.kind, "proof": r.proof, "truth": r.score} for r in dv]
    return {"after": {}, "tables": tables, "samples": samples}


def verifier(run: Run, lap: int) -> dict:
    """1B: GRPO from the base on 𝒟v with R_format · R_score."""
    model, tokenizer = run.load("base")
    task = VerifierTask(run.prompts(tokenizer))
    items = balanced(run.records("coldstart", 1, "dv.jsonl", ProofRecord), "score")
    return train_verifier(run, "verifier", lap, model, tokenizer, task, items)


def train_verifier(
    run: Run, phase: str, lap: int, model: Model, tokenizer: Tokenizer, task, items: list, before=None
) -> dict:
    """What 1B and 1D share: train on `items`, measure on held-out proofs before and after."""
    c, prompts = run.config, task.prompts
    validation = run.records("coldstart", 1, "validation_proofs.jsonl", ProofRecord)

    def measure(model: Model, step: int) -> ev.Metrics:
        return ev.eval_verifier(model, prompts, validation, c, run.ranks, "validation")[0]

    def held_out(model: Model):
        metrics, samples = {}, []
        for name, proofs in verifier_test_sets(run, lap).items():
            m, s = ev.eval_verifier(model, prompts, proofs, c, run.ranks, name)
            metrics, samples = metrics | m, samples + ev.pick(s, c.eval.shown // 2)
        return metrics, samples

    return run_grpo(run, phase, lap, model, tokenizer, task, items, measure, held_out, before=before)


def verifier_test_sets(run: Run, lap: int) -> dict[str, list[ProofRecord]]:
    """Held-out proofs: by the weak prover in lap 1; from lap 2 on the hard ones are the last generator's.

    Only those whose truth somebody knows.
    """
    hard = (
        ("coldstart", 1, "held_out_hard_proofs.jsonl")
        if lap == 1
        else ("autolabel", lap - 1, "held_out_proofs.jsonl")
    )
    sets = {"labelled": ("coldstart", 1, "held_out_proofs.jsonl"), "hard": hard}
    found = {name: run.records(*where, ProofRecord) for name, where in sets.items()}
    return {name: records for name, records in found.items() if records}


def meta(run: Run, lap: int) -> dict:
    """1C: v1 writes critiques, the expert grades them (𝒟mv), and GRPO trains πη on the grades."""
    c, folder = run.config, run.folder("meta")
    v1, _ = run.load("verifier")
    model, tokenizer = run.load("base")
    task = VerifierTask(run.prompts(tokenizer))
    expert = make_expert(c.expert, folder)

    def criticise(proofs: list[ProofRecord], name: str) -> list[CritiqueRecord]:
        def make():
            questions = [task.prompts.verify(r.problem, r.proof) for r in proofs]
            seed, how = derive_seed(c.seed, "meta", name), ev.sampling(c, c.verifier)
            answers = ev.sample_answers(v1, task.prompts, questions, how, seed, run.ranks)
            return [
                CritiqueRecord(r.problem, r.proof, a, None, r.score, source="verifier v1")
                for r, a in zip(proofs, answers, strict=True)
                if task.prompts.claimed_score(a) is not None
            ]

        return run.once(folder / f"{name}_critiques.jsonl", CritiqueRecord, make)

    files = {"train": "dv", "held_out": "held_out_proofs", "validation": "validation_proofs"}
    critiques = {
        name: criticise(run.records("coldstart", 1, f"{file}.jsonl", ProofRecord), name)
        for name, file in files.items()
    }
    if run.natural:  # nobody knows better than the expert
        graded = iter(expert.score_critiques([r for records in critiques.values() for r in records]))
        dmv, *held = (list(islice(graded, len(records))) for records in critiques.values())
    else:
        dmv = expert.score_critiques(critiques["train"])
        held = [ev.grade_critiques(critiques[name]) for name in ("held_out", "validation")]
    run.write("meta", 1, "dmv.jsonl", dmv)
    sets = dict(zip(("labelled", "validation"), held, strict=True))
    run.write("meta", 1, "held_out_dmv.jsonl", sets["labelled"])

    def measure(model: Model, step: int) -> ev.Metrics:
        return ev.eval_meta(model, task.prompts, sets["validation"], c, run.ranks, "validation")[0]

    def held_out(model: Model):
        return ev.eval_meta(model, task.prompts, sets["labelled"], c, run.ranks, "labelled")

    items = balanced(dmv, "quality")
    result = run_grpo(run, "meta", lap, model, tokenizer, task, items, measure, held_out)
    counts = Counter(r.quality for r in dmv)
    table = {"title": "𝒟mv: critiques per quality", "columns": ["quality", "critiques"]}
    return result | {"tables": [table | {"rows": [[q, counts[q]] for q in (0.0, 0.5, 1.0)]}]}


def verifier2(run: Run, lap: int) -> dict:
    """1D: from a fresh base, R_meta of the frozen πη gates the reward on 𝒟v; 𝒟mv is learnt beside it.

    In later laps: from the last verifier, on the 𝒟v that autolabelling enlarged.
    """
    config = run.config.phase("verifier2", lap)
    model, tokenizer = initial_weights(run, "verifier2", lap)
    prompts = run.prompts(tokenizer)
    gate = judge(run, meta_judge, "meta", 1, config, prompts) if config.meta_gate else None
    source = ("coldstart", 1) if lap == 1 else ("autolabel", lap - 1)
    dv = run.records(*source, "dv.jsonl", ProofRecord)
    if lap > 1:  # what consensus left open, where a person has scored it since
        unclear = run.records(*source, "unclear.jsonl", ProofRecord)
        dv = dv + [r for r in unclear if r.score is not None]
    dv = balanced(dv, "score")
    dmv = balanced(run.records("meta", 1, "dmv.jsonl", CritiqueRecord), "quality")
    derive_rng(run.config.seed, "mixture", lap).shuffle(dmv)
    own = run.records("meta", 1, "held_out_dmv.jsonl", CritiqueRecord)

    def as_meta_verifier(model: Model):
        return ev.eval_meta(model, prompts, own, run.config, run.ranks, "labelled")

    first, _ = as_meta_verifier(model)
    # The paper compares with v1, not with the base that training starts from.
    v1 = read_eval(run, "verifier", 1)["after"] if lap == 1 else None
    task = VerifierTask(prompts, gate)
    items = dv + dmv[: len(dv) // 3]
    result = train_verifier(run, "verifier2", lap, model, tokenizer, task, items, v1)
    last, shown = as_meta_verifier(model)
    result["before"], result["after"] = result["before"] | first, result["after"] | last
    result["samples"] += ev.pick(shown, run.config.eval.shown // 2)
    if lap == 1:
        result["notes"].append("before: verifier v1; for meta_accuracy: the base")
    return result


def generator(run: Run, lap: int) -> dict:
    """2: GRPO on 𝒟p; the frozen verifier's score is the whole reward."""
    c, config = run.config, run.config.phase("generator", lap)
    model, tokenizer = initial_weights(run, "generator", lap)
    prompts = run.prompts(tokenizer)
    task = GeneratorTask(prompts, judge(run, verifier_judge, "verifier2", lap, config, prompts))
    validation = run.problems["validation"] if lap == 1 else run.hard_problems("validation_hard", lap)

    def measure(model: Model, step: int) -> ev.Metrics:
        return ev.eval_generator(model, prompts, validation, c, run.ranks, "validation", task.verifier, 2)[0]

    def held_out(model: Model):
        def evaluate(problems: list, name: str):
            return ev.eval_generator(model, prompts, problems, c, run.ranks, name, task.verifier)

        return on_held_out_problems(run, evaluate)

    items = run.problems["train"] if lap == 1 else run.hard_problems("train_hard", lap)
    # In lap 1 beside the base, whatever the weights start from.
    before = held_out(run.load("base")[0])[0] if lap == 1 else None
    best = "validation/true_score" if config.keep_best == "truth" else ""
    result = run_grpo(run, "generator", lap, model, tokenizer, task, items, measure, held_out, best, before)
    if lap == 1:
        result["notes"].append("before: the base")
    return result


def selfverify(run: Run, lap: int) -> dict:
    """3: trajectories draft → own critique → revision → …; the reward is on the final proof."""
    c, config = run.config, run.config.phase("selfverify", lap)
    model, tokenizer = initial_weights(run, "selfverify", lap)
    prompts = run.prompts(tokenizer)
    verdicts = judge(run, verifier_judge, "verifier2", lap, config, prompts)
    weights = (config.alpha, config.beta) if config.reward == "alpha_beta" else None
    gate = judge(run, meta_judge, "verifier2", lap, config, prompts) if weights else None
    task = SelfVerifyTask(prompts, verdicts, config.max_turns, gate, weights)

    def measure(model: Model, step: int) -> ev.Metrics:
        problems = run.hard_problems("validation_hard", lap)
        return ev.eval_selfverify(model, prompts, problems, c, run.ranks, "validation", verdicts, 2)[0]

    def held_out(model: Model):
        def evaluate(problems: list, name: str):
            return ev.eval_selfverify(model, prompts, problems, c, run.ranks, name, verdicts)

        return on_held_out_problems(run, evaluate)

    items = (run.problems["train"] if lap == 1 else []) + run.hard_problems("train_hard", lap)
    best = "validation/final_true_score" if config.keep_best == "truth" else ""
    return run_grpo(run, "selfverify", lap, model, tokenizer, task, items, measure, held_out, best)


STEPS = {
    "base": base,
    "coldstart": coldstart,
    "verifier": verifier,
    "meta": meta,
    "consolidate": consolidate,
    "verifier2": verifier2,
    "generator": generator,
    "selfverify": selfverify,
}
NATURAL_STEPS = {"base": pretrained.base, "coldstart": pretrained.coldstart}
FIRST_LAP_ONLY = ("base", "coldstart", "verifier", "meta")


def do_phase(run: Run, phase: str, lap: int) -> None:
    """One phase, unless it is done: its figures, samples and, last of all, phase.json."""
    if phase == "autolabel":
        autolabel(run, lap)
    elif not run.is_done(phase, lap):
        begin = time.time()
        steps = STEPS | NATURAL_STEPS if run.natural else STEPS
        result = steps[phase](run, lap)
        figures = {k: result.get(k, d) for k, d in (("before", {}), ("after", {}), ("curve", []))}
        run.write(phase, lap, "eval.json", figures)
        run.write(phase, lap, "samples.jsonl", ev.pick(result["samples"], run.config.eval.shown))
        facts = {k: result[k] for k in ("notes", "tables", "steps") if k in result}
        run.finish(phase, lap, time.time() - begin, **facts)
        if run.ranks.main:
            print_table(f"{PHASES[phase]} ({time.time() - begin:.0f} s)", figures["before"], figures["after"])
    if run.ranks.main:
        build_report(run.dir)


FLAGS = {
    "phase": ("flywheel", "which phase to run, or flywheel for all"),
    "lap": (1, "lap of the phase"),
    "dry-run": (False, "print parameters, memory per rank, tokens and seconds per step; do nothing"),
    "ranks": (0, "ranks of --dry-run (default: those that torchrun started)"),
    "hardware": ("h100-80gb", f"device of --dry-run: {', '.join(HARDWARE)}"),
}


def main() -> None:
    args, overrides = parse(__doc__, FLAGS)
    if args.dry_run:
        ranks = args.ranks or int(os.environ.get("WORLD_SIZE", "1"))
        if os.environ.get("RANK", "0") == "0":
            print(dry_run(read_config(args, overrides), ranks, args.hardware))
        return
    run = open_folder(args, overrides)
    run.lock()
    phases = [*STEPS, "autolabel"]
    if args.phase == "flywheel":
        for lap in range(1, run.config.laps + 1):
            for phase in phases:
                if phase == "consolidate":
                    wanted = lap > 1 and run.config.consolidates
                else:
                    wanted = lap == 1 or phase not in FIRST_LAP_ONLY
                if wanted:
                    do_phase(run, phase, lap)
    elif args.phase in phases:
        do_phase(run, args.phase, args.lap)
    else:
        near = difflib.get_close_matches(args.phase, [*phases, "flywheel"], n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join([*phases, 'flywheel'])}"
        raise InputError(f"unknown phase {args.phase!r}; {hint}")
    if run.ranks.main:
        print(f"\nreport: {run.dir / 'report.html'}")
    run.ranks.close()


if __name__ == "__main__":
    script(main)
