"""What the phases of train.py share: where weights start, frozen judges, one GRPO phase from end to end."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from itertools import chain, zip_longest

from nanov2.distributed import derive_seed
from nanov2.errors import InputError
from nanov2.evaluate import pick
from nanov2.prompts import WorldPrompts
from nanov2.run import Run
from nanov2.training import train_grpo


def spread(records: list, n: int) -> list:
    """At most n records, in turn from each problem type, so that rare types are not drowned."""
    kinds = defaultdict(list)
    for r in records:
        kinds[r.kind].append(r)
    in_turn = chain.from_iterable(zip_longest(*(kinds[k] for k in sorted(kinds))))
    return [r for r in in_turn if r is not None][:n]


def balanced(records: list, field: str, most: int = 2) -> list:
    """Records of rarer scores repeated (at most `most` times), so that each score is seen about as often."""
    if not records:
        raise InputError(
            "there is nothing to train on: no answer of the model that was to write the records has the "
            "required form; train the base longer (base.steps) in a new --dir"
        )
    levels = defaultdict(list)
    for r in records:
        levels[getattr(r, field)].append(r)
    largest = max(map(len, levels.values()))
    return [
        r
        for level in sorted(levels)
        for r in levels[level] * min(most, max(1, largest // len(levels[level])))
    ]


def on_held_out_problems(run: Run, evaluate: Callable) -> tuple[dict, list[dict]]:
    """`evaluate(problems, name)` on each held-out set: figures, and samples to show."""
    metrics, samples = {}, []
    sets = {"labelled": "held_out", "hard": "held_out_hard", "hardest": "held_out_hardest"}
    for name, problems in sets.items():
        if problems not in run.problems:
            continue
        figures, shown = evaluate(run.problems[problems], name)
        metrics |= figures
        samples += pick(shown, run.config.eval.shown // 2)
    return metrics, samples


def initial_weights(run: Run, phase: str, lap: int):
    """Where a phase starts: `init` of its settings."""
    init = run.config.phase(phase, lap).init
    sources = {
        "base": ("base", 1),
        "consolidated": ("consolidate", lap),
        "verifier": ("verifier2", lap),
        "generator": ("generator", lap),
        "previous": ("verifier2" if phase == "verifier2" else "selfverify", lap - 1),
    }
    if init not in sources or (init in ("previous", "consolidated") and lap == 1):
        raise InputError(
            f"{phase}.init must be one of {', '.join(sources)} (previous and consolidated: from lap 2), "
            f"found {init!r}"
        )
    return run.load(*sources[init])


def judge(run: Run, kind, phase: str, lap: int, config, prompts: WorldPrompts):
    """A frozen judge from a finished phase."""
    model, _ = run.load(phase, lap)
    seed = derive_seed(run.config.seed, "judge", phase, lap)
    return kind(model, prompts, samples=config.judge_samples, temperature=config.judge_temperature, seed=seed)


def run_grpo(
    run: Run,
    phase: str,
    lap: int,
    model,
    tokenizer,
    task,
    items: list,
    measure,
    held_out,
    keep_best: str = "",
    before: dict | None = None,
) -> dict:
    """What every GRPO phase does: measure (unless `before` is given), train, save, measure again."""
    config, seed = run.config.phase(phase, lap), derive_seed(run.config.seed, phase, lap)
    folder, name = run.folder(phase, lap), phase if lap == 1 else f"lap{lap}/{phase}"
    if before is None:
        before, _ = held_out(model)
    curve, notes = train_grpo(
        folder, name, model, tokenizer, task, items, config, run.ranks, seed, measure, keep_best
    )
    run.save(phase, lap, model, tokenizer)
    after, samples = held_out(model)
    judges = [j for j in (getattr(task, "verifier", None), getattr(task, "meta", None)) if j]
    notes += [f"frozen judge: {j.unparsed} of {j.asked} answers did not parse (rank 0)" for j in judges]
    return {
        "before": before,
        "after": after,
        "curve": curve,
        "samples": samples,
        "notes": notes,
        "steps": config.steps,
    }


def read_eval(run: Run, phase: str, lap: int) -> dict:
    return json.loads((run.need(phase, lap) / "eval.json").read_text())
