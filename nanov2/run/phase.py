"""What the phases of train.py share: where weights start, frozen judges, one GRPO phase from end to end."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Concatenate, ParamSpec

from nanov2.distributed.ranks import derive_seed
from nanov2.domains.language import Language
from nanov2.errors import InputError
from nanov2.hub.chat import ChatTokenizer
from nanov2.hub.endpoint import Endpoint
from nanov2.method import figures as ev
from nanov2.method.config import JudgedConfig, ProverConfig
from nanov2.method.judges import Judge, meta_judge, verifier_judge
from nanov2.method.samples import pick
from nanov2.method.tasks import SelfVerifyTask, true_scores
from nanov2.model.decoder import Model
from nanov2.model.lora import add_adapters
from nanov2.model.rollout import Sampling
from nanov2.records import ProblemRecord, ProofRecord, TrajectoryRecord, group, in_turn, read_json
from nanov2.rl.logs import progress
from nanov2.rl.trainer import Trainee, train_grpo
from nanov2.run.engines import close_engines, rollout_engine, served_author
from nanov2.run.folder import Run
from nanov2.run.phases import PHASES

P = ParamSpec("P")


@dataclass
class Result:
    """What a phase found: figures of held-out items, and what its page shows."""

    after: ev.Metrics = field(default_factory=dict)
    before: ev.Metrics = field(default_factory=dict)
    beside: dict[str, ev.Metrics] = field(default_factory=dict)  # other models' figures, to compare with
    curve: list[dict] = field(default_factory=list)  # on validation items, by step
    samples: list[dict] = field(default_factory=list)
    tables: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    steps: int | None = None

    def __post_init__(self):
        if by_type := ev.type_table(self.before, self.after):
            self.tables.append(by_type)
        self.before, self.after = ev.without_types(self.before), ev.without_types(self.after)

    def figures(self) -> dict:
        """The content of eval.json."""
        return {name: getattr(self, name) for name in ("before", "after", "beside", "curve")}


def spread(records: list, n: int) -> list:
    """At most n records, in turn from each problem type, so that rare types are not drowned."""
    return in_turn(group(records, lambda r: r.kind))[:n]


def balanced(records: list, field: str, most: int = 2) -> list:
    """Records of rarer scores repeated (at most `most` times), so that each score is seen about as often."""
    if not records:
        raise InputError(
            "there is nothing to train on: no answer of the model that was to write the records has the "
            "required form; train the base longer (base.steps) in a new --dir"
        )
    levels = group(records, lambda r: getattr(r, field))
    largest = max(map(len, levels))
    return [r for level in levels for r in level * min(most, max(1, largest // len(level)))]


def generator_proofs(
    run: Run, lap: int, problems: list, n: int, path: Path, source: str, phase: str = "selfverify"
) -> list[ProofRecord]:
    """Unscored proofs by the self-verifying generator: n trajectories a problem, every proof in them once."""
    model, tokenizer = run.load(phase, lap)
    language = run.domain.language(tokenizer)
    turns = language.turns_per_proof * run.config.eval.rounds
    items = [p for p in problems for _ in range(n)]
    seed = derive_seed(run.config.seed, "autolabel", lap, source)
    limit = run.config.selfverify.max_tokens
    trajectories = write_trajectories(run, path, model, language, items, turns, limit, seed)
    return distinct_proofs(trajectories, language, source)


def write_trajectories(
    run: Run, path: Path, model: Model, language: Language, items: list, turns: int, limit: int, seed: int
) -> list[TrajectoryRecord]:
    """A self-verifying trajectory for each item, kept in the file `path`."""
    task = SelfVerifyTask(language, None, max_turns=turns)
    how = Sampling(run.config.eval.temperature, limit, run.config.selfverify.batch_rows)

    def make() -> list[TrajectoryRecord]:
        with progress(f"proofs ({path.stem})", len(run.ranks.mine(items)), run.ranks.main):
            found = ev.sample_trajectories(model, task, items, how, seed, run.ranks)
        return ev.trajectory_records(items, found)

    return run.once(path, TrajectoryRecord, make)


def distinct_proofs(
    trajectories: list[TrajectoryRecord], language: Language, source: str
) -> list[ProofRecord]:
    """Every proof of the trajectories that has the form of one, once."""
    proofs = {}
    for t in trajectories:
        for i, (task, text) in enumerate(t.turns):
            if task == "prove" and text != ev.CUT and language.is_proof(text):
                name = f"{source}/{'draft' if i == 0 else 'revision'}"
                proofs.setdefault((t.problem, text), ProofRecord(t.problem, text, None, t.kind, name))
    return list(proofs.values())


def graded(run: Run, proofs: list[ProofRecord]) -> list[ProofRecord]:
    """The proofs whose truth somebody knows, with it: for measuring alone."""
    truth = true_scores(run.domain.truth, proofs, [r.proof for r in proofs])
    known = zip(proofs, truth, strict=True)
    return [dataclasses.replace(r, score=t, label="exact") for r, t in known if not math.isnan(t)]


def both(
    bench: ev.Bench, measure: Callable[Concatenate[ev.Bench, P], ev.Measured], *args: P.args, **more: P.kwargs
) -> ev.Measured:
    """Figures of `measure(bench, …)` at the temperature of [eval] and, unless eval.greedy is off, at 0."""
    bench = dataclasses.replace(bench, by_type=True)
    metrics, samples = measure(bench, *args, **more)
    if bench.config.eval.greedy:
        metrics = metrics | measure(bench.greedy(), *args, **more)[0]
    return metrics, samples


def merged(figures: Iterable[ev.Metrics]) -> ev.Metrics:
    return dict(chain.from_iterable(f.items() for f in figures))


BEST = "the start at its best temperature"  # in eval.json's "beside"
TEMPERATURES = (0.0, 0.3, 0.6, 1.0)


def at_best_temperature(
    bench: ev.Bench, validation: str, validate: Callable[[ev.Bench], ev.Metrics], measure: Callable
) -> dict[str, ev.Metrics]:
    """{BEST: figures of `measure(bench)`} at the temperature that does best by the figure `validation` of
    `validate(bench)`: what training gained over a model that is only sampled well."""
    found = {t: validate(bench.at(t)).get(validation) for t in TEMPERATURES}
    tried = {t: figure["value"] for t, figure in found.items() if figure}
    if not tried:  # nobody knows the truth
        return {}
    best = max(tried, key=tried.get)
    chosen = {"temperature": {"value": best, "n": len(tried), "low": best, "high": best}}
    return {BEST: measure(bench.at(best)) | chosen}


def held_out_problems(run: Run) -> dict[str, list[ProblemRecord]]:
    """The held-out sets by the name that their figures have."""
    sets = {"labelled": "held_out", "hard": "held_out_hard", "hardest": "held_out_hardest"}
    return {name: run.problems[key] for name, key in sets.items() if key in run.problems}


def on_held_out_problems(
    run: Run, bench: ev.Bench, measure: Callable[[ev.Bench, list, str], ev.Measured]
) -> ev.Measured:
    """`measure(bench, problems, name)` on each held-out set, at both temperatures."""
    metrics, samples = {}, []
    for name, problems in held_out_problems(run).items():
        figures, shown = both(bench, measure, problems, name)
        metrics |= figures
        samples += pick(shown, run.config.eval.shown // 2)
    return metrics, samples


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


def hardest_held_out(run: Run) -> list[ProblemRecord]:
    """The problems that pass@k is measured on: the harder held-out ones."""
    return run.problems.get("held_out_hard") or run.problems["held_out"]


def initial_weights(run: Run, phase: str, lap: int) -> tuple[Model, ChatTokenizer]:
    """Where a phase starts: `init` of its settings."""
    config = run.config.phase(phase, lap)
    if not isinstance(config, JudgedConfig):
        raise ValueError(f"phase {phase} has no setting where it starts")
    sources = {
        "base": ("base", 1),
        "consolidated": ("consolidate", lap),
        "verifier": ("verifier2", lap),
        "generator": ("generator", lap - 1 if phase == "generator" else lap),
        "previous": ("verifier2" if phase == "verifier2" else "selfverify", lap - 1),
    }
    return starting_point(run, *sources[config.init])


def starting_point(run: Run, phase: str, lap: int = 1) -> tuple[Model, ChatTokenizer]:
    """The weights that a GRPO phase trains, or that its adapters are beside."""
    return run.load(phase, lap, frozen=run.config.lora.rank > 0)


def judge(run: Run, kind, phase: str, lap: int, config: JudgedConfig):
    """A frozen judge: a finished phase's model, here or (`judge = "engine"`) served by [rollout]; or with
    `judge = "endpoint"` the chat model of [endpoint]."""
    seed = derive_seed(run.config.seed, "judge", phase, lap)
    if config.judge == "endpoint":
        return endpoint_judge(run, kind, config, seed)
    limit = run.config.meta.max_tokens if kind is meta_judge else run.config.verifier.max_tokens
    if config.judge == "engine":
        how = Sampling(config.judge_temperature, limit, config.batch_rows)
        author = served_author(run, phase, lap, how, seed)
        language = author.language
        read = language.claimed_quality if kind is meta_judge else language.claimed_score
        more = looks(run, kind, phase, lap, config)
        return Judge(author, language, read, config.judge_samples, **more)
    model, tokenizer = run.load(phase, lap, frozen=True)
    return kind(
        model,
        run.domain.language(tokenizer),
        samples=config.judge_samples,
        temperature=config.judge_temperature,
        max_tokens=limit,
        seed=seed,
        batch_rows=config.batch_rows,
        **looks(run, kind, phase, lap, config),
    )


def looks(run: Run, kind, phase: str, lap: int, config: JudgedConfig) -> dict:
    """What a judge makes of its looks. For rule "gate" a verifier's critiques are weighed by one look each of
    its own model, where that has learnt it (v2) or nobody has (the base), else of πη."""
    how = {"rule": config.judge_rule, "error": config.judge_error}
    if config.judge_rule != "gate":
        return how
    if kind is meta_judge:  # nobody weighs meta-critiques
        return how | {"rule": "mean"}
    once = dataclasses.replace(config, judge_rule="mean", judge_error=0.0, judge_samples=1)
    weighs = "meta" if phase in ("verifier", "aware") else phase
    return how | {"meta": judge(run, meta_judge, weighs, lap, once)}


def proof_judge(run: Run, lap: int, config: ProverConfig) -> Judge:
    """The frozen verifier whose score is a generator's reward: of the phase `judged_by`."""
    phase = config.judged_by
    return judge(run, verifier_judge, phase, lap if PHASES[phase].laps == "all" else 1, config)


def endpoint_judge(run: Run, kind, config: JudgedConfig, seed: int) -> Judge:
    """A verifier or meta-verifier behind the endpoint, read leniently: it was never trained on the form."""
    language, author = Language(), endpoint_author(run, config.judge_temperature, seed)
    read = language.claimed_quality if kind is meta_judge else language.claimed_score
    how = looks(run, kind, "", 1, config)
    return Judge(author, language, read, config.judge_samples, **how)


def endpoint_author(run: Run, temperature: float, seed: int) -> Endpoint:
    """The model of [endpoint]. Each rank asks about its own rows, and keeps the answers in a file of its own
    in the run folder."""
    options, rank = run.config.endpoint, f".{run.ranks.rank}" if run.ranks.size > 1 else ""
    cache = (options.cache or str(run.dir / "answers.jsonl")) + rank
    asked = dataclasses.replace(options, temperature=temperature, seed=seed % 2**31, cache=cache)
    return Endpoint(asked)


@dataclass(frozen=True)
class Exams:
    """What a GRPO phase is measured by."""

    validation: Callable[[Model, int], ev.Measured]  # now and then, after so many steps
    held_out: Callable[[Model], ev.Measured]  # before and after
    beside: dict[str, ev.Metrics]  # other models' figures, to compare with
    keep_best: str = ""  # the figure of `validation` that chooses the weights; "": the last are kept


def run_grpo(run: Run, at: tuple[str, int], model: Model, task, items: list, exams: Exams) -> Result:
    """What every GRPO phase does: measure, train, save, measure again. `at`: (phase, lap)."""
    (phase, lap), tokenizer = at, task.language.tokenizer
    config, seed = run.config.phase(*at), derive_seed(run.config.seed, *at)
    if run.config.lora.rank:
        add_adapters(model, run.config.lora, derive_seed(seed, "lora"), run.ranks.precision == "bf16")
        model.set_precision(run.ranks.precision)
    model.engine = rollout_engine(run)
    if model.engine:
        model.engine.load(model)
    before, _ = exams.held_out(model)
    name = phase if lap == 1 else f"lap{lap}/{phase}"
    trainee = Trainee(run.folder(*at), name, model, tokenizer, run.ranks, seed)
    curve, notes = train_grpo(trainee, task, items, config, exams.validation, exams.keep_best)
    run.save(*at, model, tokenizer)
    if model.engine and not model.engine.fresh:
        model.engine.load(model)
    after, samples = exams.held_out(model)
    close_engines(judges_only=True)
    judges = [
        f"frozen {name}: {j.unparsed} of {j.asked} answers did not parse (rank 0)"
        for name, j in task.judges.items()
    ]
    chosen = "the true score on validation problems chose the weights (keep_best)"
    notes = [*([chosen] if exams.keep_best else []), *notes, *judges]
    return Result(after, before, exams.beside, curve=curve, samples=samples, notes=notes, steps=config.steps)


def read_eval(run: Run, phase: str, lap: int) -> dict:
    return read_json(run.file(phase, lap, "eval.json"))
