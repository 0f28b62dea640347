"""Held-out figures: every model measured against the truth, each with its number of items and a 95% interval.

Items are split over the ranks; answers depend only on the item and the seed. Where a problem has several
samples, the interval is over problems (samples of one problem are not independent).
"""

from __future__ import annotations

import math
from collections import defaultdict

from nanov2.distributed.ranks import Ranks, derive_rng, derive_seed
from nanov2.domains.order.prompts import Domain
from nanov2.domains.order.world import CritiqueGrade, Difficulty, make_problem
from nanov2.method.experts import WorldExpert
from nanov2.method.judges import Judge
from nanov2.method.tasks import SelfVerifyTask, judge_proofs
from nanov2.model.decoder import Model
from nanov2.model.rollout import Sampling
from nanov2.model.sampler import sample
from nanov2.records import CritiqueRecord, ProblemRecord, ProofRecord, TrajectoryRecord
from nanov2.rl.grpo import Task
from nanov2.run.config import Config, GRPOConfig

Metrics = dict[str, dict]
CUT = "(cut off)"  # what stands for an answer that has none


def interval(values: list[float], clusters: list | None = None) -> dict:
    """Mean and 95% interval (normal, over clusters) as {"value", "n", "low", "high"}; NaN is left out."""
    pairs = [(v, c) for v, c in zip(values, clusters or range(len(values)), strict=True) if v == v]
    if not pairs:
        return {"value": 0.0, "n": 0, "low": 0.0, "high": 0.0}
    mean = sum(v for v, _ in pairs) / len(pairs)
    residual = defaultdict(float)
    for v, c in pairs:
        residual[c] += v - mean
    k = len(residual)
    # A sample all of one value says little: keep the interval from shrinking to a point.
    variance = sum(r * r for r in residual.values()) * k / max(k - 1, 1) / len(pairs) ** 2
    half = max(1.96 * math.sqrt(variance), 1.5 / (len(pairs) + 3))
    low, high = mean - half, mean + half
    if all(0 <= v <= 1 for v, _ in pairs):  # so is their mean, however few they are
        low, high = max(low, 0.0), min(high, 1.0)
    return {
        "value": round(mean, 4),
        "n": len(pairs),
        "low": round(low, 4),
        "high": round(high, 4),
    }


def figures(columns: dict[str, list[float]], name: str, clusters: list) -> Metrics:
    """An interval for each column, as "<name>/<column>"; none for what nobody knows (all NaN)."""
    known = {k: values for k, values in columns.items() if any(v == v for v in values)}
    return {f"{name}/{k}": interval(values, clusters) for k, values in known.items()}


def make_problems(
    seed: int, purpose: str, difficulty: Difficulty, n: int, avoid: set[str]
) -> list[ProblemRecord]:
    """n distinct problems drawn by (seed, purpose, i); none of `avoid`, which grows by them."""
    records, i = [], 0
    while len(records) < n:
        problem = make_problem(derive_rng(seed, purpose, i), difficulty)
        i += 1
        if problem.text not in avoid:
            avoid.add(problem.text)
            records.append(ProblemRecord(problem.text, problem.kind))
    return records


def problem_sets(config: Config) -> dict[str, list[ProblemRecord]]:
    """All sets of problems, disjoint: held-out and validation first, then what is trained on."""
    seen: set[str] = set()
    w = config.world
    sizes = {
        "held_out": (w.labelled, w.held_out),
        "held_out_hard": (w.hard, w.held_out),
        "validation": (w.labelled, w.validation),
        "validation_hard": (w.hard, w.validation),
        "train": (w.labelled, w.problems),
        "train_hard": (w.hard, w.hard_problems),
    }
    if w.gets_harder:  # after the others, which are the same whether laps get harder or not
        sizes["held_out_hardest"] = (w.hard_in(config.laps), w.held_out)
        for lap in range(2, config.laps + 1):
            sizes[f"validation_hard{lap}"] = (w.hard_in(lap), w.validation)
            sizes[f"train_hard{lap}"] = (w.hard_in(lap), w.hard_problems)
    return {name: make_problems(config.seed, name, d, n, seen) for name, (d, n) in sizes.items()}


def sampling(config: Config, phase: GRPOConfig) -> Sampling:
    """How held-out answers are sampled: the evaluation's temperature, the phase's limit."""
    return Sampling(config.eval.temperature, phase.max_tokens, phase.batch_rows)


def grade_critiques(records: list[CritiqueRecord]) -> list[CritiqueRecord]:
    """Held-out critiques with the exact expert's quality."""
    return WorldExpert().score_critiques(records)


def sample_answers(
    model: Model,
    prompts: Domain,
    questions: list[list[int]],
    how: Sampling,
    seed: int,
    ranks: Ranks,
    proofs: bool = False,
) -> list[str | None]:
    """One answer to each prompt, or the proof in it, in order, on every rank; None where cut off."""
    mine = ranks.mine(list(enumerate(questions)))
    seeds = [derive_seed(seed, i) for i, _ in mine]
    rollouts = sample(model, prompts.tokenizer, [prompts.ids(q) for _, q in mine], 1, how, seeds)
    return ranks.gather([prompts.turns(r)[0][1] if proofs else prompts.answer(r) for r in rollouts])


def eval_verifier(
    model: Model, prompts: Domain, proofs: list[ProofRecord], config: Config, ranks: Ranks, name: str
) -> tuple[Metrics, list[dict]]:
    """Critiques of proofs whose truth is known. Returns metrics "<name>/…" and samples for the report."""
    how = sampling(config, config.verifier)
    questions = [prompts.verify(r.problem, r.proof) for r in proofs]
    answers = sample_answers(model, prompts, questions, how, derive_seed("eval verifier", config.seed), ranks)
    columns, samples = defaultdict(list), []
    for record, answer in zip(proofs, answers, strict=True):
        claim = prompts.claimed_score(answer)
        columns["score_accuracy"].append(float(claim == record.score))
        columns["score_error"].append(math.nan if claim is None else abs(claim - record.score))
        columns["unparsed_rate"].append(float(claim is None))
        grade = prompts.examine(record.problem, record.proof, answer or "")
        if grade:
            columns["critique_quality"].append(grade.quality)
            columns["critique_exact"].append(float(grade.quality == 1))
            columns["invented_issue_rate"].append(float(grade.invented > 0))
            columns["missed_issue_rate"].append(float(grade.missed > 0))
        samples.append(
            {
                "problem": record.problem,
                "kind": record.kind,
                "proof": record.proof,
                "truth": record.score,
                "critique": answer or CUT,
                "score": claim,
            }
            | shown_grade(grade)
        )
    return figures(columns, name, [r.problem for r in proofs]), samples


def shown_grade(grade: CritiqueGrade | None) -> dict:
    """The expert's grade of a critique, as a sample in the report shows it."""
    if grade is None:
        return {}
    return {"marks": list(grade.marks), "invented": grade.invented, "quality": grade.quality}


def eval_meta(
    model: Model,
    prompts: Domain,
    critiques: list[CritiqueRecord],
    config: Config,
    ranks: Ranks,
    name: str,
) -> tuple[Metrics, list[dict]]:
    """Meta-critiques of critiques whose quality is known."""
    how = sampling(config, config.meta)
    questions = [prompts.meta(r.problem, r.proof, r.critique) for r in critiques]
    answers = sample_answers(model, prompts, questions, how, derive_seed("eval meta", config.seed), ranks)
    claims = [prompts.claimed_quality(a) for a in answers]
    right = [float(c == r.quality) for c, r in zip(claims, critiques, strict=True)]
    by_level = {
        q: [x for x, r in zip(right, critiques, strict=True) if r.quality == q] for q in (0.0, 0.5, 1.0)
    }
    recalls = [sum(v) / len(v) for v in by_level.values() if v]
    clusters = [r.problem for r in critiques]
    metrics = {
        f"{name}/meta_accuracy": interval(right, clusters),
        f"{name}/meta_balanced_accuracy": interval(recalls) | {"n": len(right)},
        f"{name}/meta_unparsed_rate": interval([float(c is None) for c in claims], clusters),
    }
    samples = [
        {
            "problem": r.problem,
            "proof": r.proof,
            "truth": r.score,
            "critique": r.critique,
            "meta": a or CUT,
            "meta_quality": c,
        }
        | shown_grade(prompts.examine(r.problem, r.proof, r.critique))
        | {"quality": r.quality}
        for r, a, c in zip(critiques, answers, claims, strict=True)
    ]
    return metrics, samples


def eval_generator(
    model: Model,
    prompts: Domain,
    problems: list[ProblemRecord],
    config: Config,
    ranks: Ranks,
    name: str,
    verifier: Judge | None = None,
    samples: int | None = None,
) -> tuple[Metrics, list[dict]]:
    """Proofs sampled once, without revision: true score, and the verifier's reward beside it."""
    n = samples or config.eval.samples
    items = [p for p in problems for _ in range(n)]
    how = sampling(config, config.generator)
    seed = derive_seed("eval generator", config.seed)
    questions = [prompts.prove(p.problem) for p in items]
    proofs = sample_answers(model, prompts, questions, how, seed, ranks, proofs=True)
    truth = [prompts.true_score(i.problem, p) for i, p in zip(items, proofs, strict=True)]
    clusters = [i.problem for i in items]
    columns = {
        "true_score": truth,
        "full_proof_rate": [full(t) for t in truth],
        "proof_format_rate": [float(prompts.is_proof(p)) for p in proofs],
    }
    scores = [None] * len(items)
    if verifier:
        scores = reward_beside_truth(columns, verifier, prompts, items, proofs, truth, ranks)
    shown = [
        {"problem": i.problem, "kind": i.kind, "proof": p or CUT, "reward": s if s == s else None}
        | shown_truth(t)
        for i, p, t, s in zip(items[::n], proofs[::n], truth[::n], scores[::n], strict=True)
    ]
    return figures(columns, name, clusters), shown


def shown_truth(truth: float) -> dict:
    """A proof's truth, as a sample in the report shows it; nothing where nobody knows."""
    return {} if math.isnan(truth) else {"truth": truth}


def full(truth: float) -> float:
    """Whether a proof is worth full marks; NaN where nobody knows."""
    return truth if math.isnan(truth) else float(truth == 1)


def reward_beside_truth(columns, verifier: Judge, prompts, items, proofs, truth, ranks: Ranks) -> list[float]:
    """The verifier's score of each proof, and its excess over the truth: the reward-hacking gap."""
    mine = ranks.mine(list(zip(items, proofs, strict=True)))
    scores = ranks.gather(judge_proofs(verifier, prompts, [i for i, _ in mine], [p for _, p in mine]))
    columns["verifier_reward"] = scores
    columns["hacking_gap"] = [s - t for s, t in zip(scores, truth, strict=True)]
    return scores


def sample_trajectories(
    model: Model, task: Task, items: list, config: Config, seed: int, ranks: Ranks, max_tokens: int
) -> list[list[tuple[str, str]]]:
    """One trajectory for each item, in order, on every rank, as turns of (task, text)."""
    mine = ranks.mine(list(enumerate(items)))
    rollouts = sample(
        model,
        task.prompts.tokenizer,
        [task.prompt(item) for _, item in mine],
        1,
        Sampling(config.eval.temperature, max_tokens, config.selfverify.batch_rows, task.max_given),
        [derive_seed(seed, i) for i, _ in mine],
        task.next_turn,
        task.max_turns,
    )
    return ranks.gather([[(name, text or CUT) for name, text in task.prompts.turns(r)] for r in rollouts])


def eval_selfverify(
    model: Model,
    prompts: Domain,
    problems: list[ProblemRecord],
    config: Config,
    ranks: Ranks,
    name: str,
    verifier: Judge | None = None,
    samples: int | None = None,
) -> tuple[Metrics, list[dict]]:
    """Draft → critique → revision until no issue is found, at most `eval.rounds` proofs."""
    n = samples or config.eval.samples
    items = [p for p in problems for _ in range(n)]
    task = SelfVerifyTask(prompts, None, max_turns=prompts.turns_per_proof * config.eval.rounds)
    seed = derive_seed("eval selfverify", config.seed)
    turns = sample_trajectories(model, task, items, config, seed, ranks, config.selfverify.max_tokens)
    columns, shown, finals = defaultdict(list), [], []
    for j, (item, trajectory) in enumerate(zip(items, turns, strict=True)):
        proofs = [text for task_name, text in trajectory if task_name == "prove"]
        critiques = [text for task_name, text in trajectory if task_name == "verify"]
        truths = [prompts.true_score(item.problem, p) for p in proofs]
        claim = prompts.claimed_score(critiques[-1]) if len(critiques) == len(proofs) else None
        finals.append(proofs[-1])
        columns["draft_true_score"].append(truths[0])
        columns["final_true_score"].append(truths[-1])
        columns["revision_gain"].append(truths[-1] - truths[0])
        columns["final_full_proof_rate"].append(full(truths[-1]))
        columns["rounds"].append(float(len(proofs)))
        columns["self_score_error"].append(math.nan if claim is None else abs(claim - truths[-1]))
        columns["self_score_mean"].append(math.nan if claim is None else claim)
        if j % n == 0:
            shown.append(
                {
                    "problem": item.problem,
                    "kind": item.kind,
                    "turns": trajectory,
                    "turn_truth": turn_truths(trajectory, truths),
                }
            )
    if verifier:
        truth = columns["final_true_score"]
        reward_beside_truth(columns, verifier, prompts, items, finals, truth, ranks)
    clusters = [i.problem for i in items]
    return figures(columns, name, clusters), shown


def turn_truths(trajectory: list[tuple[str, str]], truths: list[float]) -> list[float | None]:
    """The truth of each turn that is a proof; None where nobody knows, and for the critiques."""
    left = iter(truths)
    known = [next(left) if name == "prove" else math.nan for name, _ in trajectory]
    return [None if math.isnan(t) else t for t in known]


def trajectory_records(items: list[ProblemRecord], turns: list) -> list[TrajectoryRecord]:
    return [TrajectoryRecord(i.problem, tuple(t), kind=i.kind) for i, t in zip(items, turns, strict=True)]


def pick(samples: list[dict], n: int) -> list[dict]:
    """n samples for the report, spread evenly: by truth first, so that right and wrong ones are seen."""
    by_truth = defaultdict(list)
    for s in samples:
        by_truth[str(s.get("truth", (s.get("turn_truth") or [None])[-1]))].append(s)
    out, queues = [], [by_truth[k] for k in sorted(by_truth)]
    i = 0
    while len(out) < min(n, len(samples)):
        queue = queues[i % len(queues)]
        if i // len(queues) < len(queue):
            out.append(queue[i // len(queues)])
        i += 1
    return out
