"""Held-out figures: every model measured against the truth, each with its number of items and a 95% interval.

Items are split over the ranks; answers depend only on the item and the seed. Where a problem has several
samples, the interval is over problems (samples of one problem are not independent).
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypedDict, TypeVar

from nanov2.distributed.ranks import Ranks, derive_seed
from nanov2.domains.domain import CritiqueGrade, Truth
from nanov2.domains.language import Language
from nanov2.method.judges import Judge, Judgement
from nanov2.method.memory import Memory
from nanov2.method.samples import CUT
from nanov2.method.tasks import (
    SelfVerifyTask,
    false_accepts,
    judge_proofs,
    judged_proofs,
    true_scores,
)
from nanov2.model.decoder import Model
from nanov2.model.rollout import Sampling
from nanov2.model.sampler import sample
from nanov2.records import LEVELS, CritiqueRecord, ProblemRecord, ProofRecord, TrajectoryRecord
from nanov2.rl.config import GRPOConfig

if TYPE_CHECKING:
    from nanov2.run.config import Config


class Figure(TypedDict):
    """A mean over n items with its 95% interval, as eval.json holds it."""

    value: float
    n: int
    low: float
    high: float


T = TypeVar("T")
Metrics = dict[str, Figure]
Measured = tuple[Metrics, list[dict]]  # figures, and samples for the report
GREEDY = "@T0"  # ends the name of a figure at temperature 0
BY_TYPE = ("score_accuracy", "critique_quality", "true_score", "final_true_score")  # per type of problem too
MOST_TYPES = 12  # more of them say too little each


def interval(values: list[float], clusters: list | None = None) -> Figure:
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


class Written(NamedTuple):
    """What a model wrote: the answer, or the proof in it, None where there is none; the whole text; whether
    it was cut off."""

    answer: str | None
    text: str
    cut: bool

    def shown(self, field: str) -> dict:
        """It as a field of a sample for the report: the whole text where there is no answer."""
        what = "cut" if self.cut else "malformed"
        return {field: self.answer or self.text or CUT} | ({} if self.answer else {what: field})


def write_answers(
    model: Model,
    language: Language,
    questions: list,
    how: Sampling,
    seed: int,
    ranks: Ranks,
    proofs: bool = False,
) -> list[Written]:
    """One answer to each question, with `proofs` the proof in it, in order, on every rank."""
    mine = ranks.mine(list(enumerate(questions)))
    seeds = [derive_seed(seed, i) for i, _ in mine]
    rollouts = sample(model, language.tokenizer, [language.ids(q) for _, q in mine], 1, how, seeds)
    return ranks.gather(
        [
            Written(
                language.turns(r)[0][1] if proofs else language.answer(r),
                language.tokenizer.decode(r.turns[-1]),
                r.truncated,
            )
            for r in rollouts
        ]
    )


def sample_answers(*args, **kwargs) -> list[str | None]:
    """The answers that `write_answers` finds; None where cut off."""
    return [w.answer for w in write_answers(*args, **kwargs)]


def sample_trajectories(*args) -> list[list[tuple[str, str]]]:
    """The turns that `write_trajectories` finds, (task, text), CUT where there is no text."""
    return [[(task, text or CUT) for task, text in turns] for turns, _ in write_trajectories(*args)]


def write_trajectories(
    model: Model, task: SelfVerifyTask, items: list, how: Sampling, seed: int, ranks: Ranks
) -> list[tuple[list[tuple[str, str | None]], Written]]:
    """One trajectory for each item, in order, on every rank: its turns as (task, text), and its last turn."""
    mine = ranks.mine(list(enumerate(items)))
    rollouts = sample(
        model,
        task.language.tokenizer,
        [task.prompt(item) for _, item in mine],
        1,
        dataclasses.replace(how, max_given=task.max_given),
        [derive_seed(seed, i) for i, _ in mine],
        task.next_turn,
        task.max_turns,
    )
    language, found = task.language, []
    for r in rollouts:
        turns = language.turns(r)
        found.append((turns, Written(turns[-1][1], language.tokenizer.decode(r.turns[-1]), r.truncated)))
    return ranks.gather(found)


def trajectory_records(items: list[ProblemRecord], turns: list) -> list[TrajectoryRecord]:
    return [TrajectoryRecord(i.problem, tuple(t), kind=i.kind) for i, t in zip(items, turns, strict=True)]


@dataclass(frozen=True)
class Bench:
    """What models of one run are measured with: their language, the truth, settings, ranks.

    Figures are made at the temperature of [eval]; `greedy()` is the same bench at temperature 0. With
    `memory`, what the same weights wrote before is not sampled again.
    """

    language: Language
    truth: Truth | None
    config: Config
    ranks: Ranks
    temperature: float
    suffix: str = ""  # of the figures' names
    by_type: bool = False  # whether some figures are given for each type of problem too
    memory: Memory | None = None

    @classmethod
    def of(
        cls,
        language: Language,
        truth: Truth | None,
        config: Config,
        ranks: Ranks,
        memory: Memory | None = None,
    ) -> Bench:
        return cls(language, truth, config, ranks, config.eval.temperature, memory=memory)

    def greedy(self) -> Bench:
        return dataclasses.replace(self, temperature=0.0, suffix=GREEDY)

    def at(self, temperature: float) -> Bench:
        return dataclasses.replace(self, temperature=temperature, suffix="")

    def at_step(self, step: int) -> Bench:
        """The bench for a curve: weights in the midst of training do not come back, only those of step 0."""
        return dataclasses.replace(self, memory=None) if step else self

    def verifier(
        self, model: Model, proofs: list[ProofRecord], name: str, questions: list | None = None
    ) -> Measured:
        """Critiques of proofs whose score is known. `questions`: what is asked instead of the usual."""
        language = self.language
        questions = questions or [language.verify(r.problem, r.proof) for r in proofs]
        answers = self.written(model, questions, self.config.verifier, "verifier")
        columns, samples = defaultdict(list), []
        for record, written in zip(proofs, answers, strict=True):
            answer = written.answer
            claim = language.claimed_score(answer)
            columns["score_accuracy"].append(float(claim == record.score))
            columns["score_error"].append(math.nan if claim is None else abs(claim - record.score))
            columns["unparsed_rate"].append(float(claim is None))
            columns["false_accept_rate"] += false_accepts([claim], [record.score])
            grade = self.truth.examine(record.problem, record.proof, answer or "") if self.truth else None
            for figure, value in graded_columns(grade, failed=record.score == 0).items():
                columns[figure].append(value)
            samples.append(
                {
                    "problem": record.problem,
                    "kind": record.kind,
                    "proof": record.proof,
                    "truth": record.score,
                    "score": claim,
                }
                | written.shown("critique")
                | shown_grade(grade)
            )
        return self._figures(columns, name, proofs), samples

    def meta(self, model: Model, critiques: list[CritiqueRecord], name: str) -> Measured:
        """Meta-critiques of critiques whose quality is known."""
        language = self.language
        questions = [language.meta(r.problem, r.proof, r.critique) for r in critiques]
        answers = self.written(model, questions, self.config.meta, "meta")
        claims = [language.claimed_quality(a.answer) for a in answers]
        right = [float(c == r.quality) for c, r in zip(claims, critiques, strict=True)]
        clusters = [r.problem for r in critiques]
        columns = {
            "meta_accuracy": right,
            "meta_unparsed_rate": [float(c is None) for c in claims],
        }
        metrics = self._figures(columns, name, critiques)
        metrics[f"{name}/meta_balanced_accuracy{self.suffix}"] = balanced(
            right, [r.quality for r in critiques], clusters
        )
        commonest = max(LEVELS, key=[r.quality for r in critiques].count)
        constant = [float(r.quality == commonest) for r in critiques]
        metrics[f"{name}/meta_constant_accuracy{self.suffix}"] = interval(constant, clusters)
        samples = [
            {
                "problem": r.problem,
                "proof": r.proof,
                "truth": r.score,
                "critique": r.critique,
                "meta_quality": c,
            }
            | a.shown("meta")
            | shown_grade(self.truth.examine(r.problem, r.proof, r.critique) if self.truth else None)
            | {"quality": r.quality}
            for r, a, c in zip(critiques, answers, claims, strict=True)
        ]
        return metrics, samples

    def generator(
        self,
        model: Model,
        problems: list[ProblemRecord],
        name: str,
        verifier: Judge | None = None,
        samples: int | None = None,
    ) -> Measured:
        """Proofs sampled once, without revision: true score, and the verifier's reward beside it."""
        n = self._samples(samples)
        items = [p for p in problems for _ in range(n)]
        questions = [self.language.prove(p.problem) for p in items]
        answers = self.written(model, questions, self.config.generator, "generator", proofs=True)
        proofs = [a.answer for a in answers]
        truth = true_scores(self.truth, items, proofs)
        columns = {
            "true_score": truth,
            "full_proof_rate": [full(t) for t in truth],
            "proof_format_rate": [float(self.language.is_proof(p)) for p in proofs],
        }
        judged: list[Judgement | None] = [None] * len(items)
        if verifier:
            judged = self._reward_beside_truth(columns, verifier, items, proofs, truth)
        shown = [
            {"problem": i.problem, "kind": i.kind} | a.shown("proof") | shown_judge(j) | shown_truth(t)
            for i, a, t, j in zip(items[::n], answers[::n], truth[::n], judged[::n], strict=True)
        ]
        return self._figures(columns, name, items), shown

    def pass_at_k(self, model: Model, problems: list[ProblemRecord], name: str) -> Metrics:
        """Share of problems of which at least one of k samples is a full proof, for the k of eval.pass_at.

        The unbiased estimate from n samples of which c are right: 1 − C(n−c, k) / C(n, k) (Chen et al. 2021).
        """
        ks = [k for k in self.config.eval.pass_at if k]
        if not self.truth or not ks:
            return {}
        n = max(ks)
        items = [p for p in problems[: self.config.eval.pass_problems] for _ in range(n)]
        questions = [self.language.prove(p.problem) for p in items]
        proofs = self.answers(model, questions, self.config.generator, "pass", proofs=True)
        right = [full(t) for t in true_scores(self.truth, items, proofs)]
        counts = [int(sum(right[i : i + n])) for i in range(0, len(right), n)]
        columns = {
            f"pass_at_{k}": [1 - math.comb(n - c, k) / math.comb(n, k) for c in counts] for k in sorted(ks)
        }
        return figures(columns, name, list(range(len(counts))))

    def selfverify(
        self,
        model: Model,
        problems: list[ProblemRecord],
        name: str,
        verifier: Judge | None = None,
        samples: int | None = None,
    ) -> Measured:
        """Draft → critique → revision until no issue is found, at most `eval.rounds` proofs."""
        n, language, config = self._samples(samples), self.language, self.config
        items = [p for p in problems for _ in range(n)]
        task = SelfVerifyTask(language, None, max_turns=language.turns_per_proof * config.eval.rounds)
        seed, how = derive_seed("eval selfverify", config.seed), self._sampling(config.selfverify)
        asked = ("trajectories", task.max_turns, [i.problem for i in items])
        found = self._once(
            model, asked, how, seed, lambda: write_trajectories(model, task, items, how, seed, self.ranks)
        )
        columns, shown, finals = defaultdict(list), [], []
        for j, (item, (turns, last)) in enumerate(zip(items, found, strict=True)):
            trajectory = [(name, text or CUT) for name, text in turns]
            judged = judged_proofs(trajectory)
            truths = true_scores(self.truth, [item] * len(judged), [proof for proof, _ in judged])
            final, critique = judged[-1]
            claim = language.claimed_score(critique)
            finals.append(final)
            columns["draft_true_score"].append(truths[0])
            columns["final_true_score"].append(truths[-1])
            columns["revision_gain"].append(truths[-1] - truths[0])
            columns["final_full_proof_rate"].append(full(truths[-1]))
            columns["rounds"].append(float(len(judged)))
            columns["self_score_error"].append(math.nan if claim is None else abs(claim - truths[-1]))
            columns["self_score_mean"].append(math.nan if claim is None else claim)
            columns["self_false_accept_rate"] += false_accepts([claim], truths[-1:])
            if j % n == 0:
                shown.append(
                    {
                        "problem": item.problem,
                        "kind": item.kind,
                        "turns": [*trajectory[:-1], (trajectory[-1][0], last.answer or last.text or CUT)],
                        "turn_truth": turn_truths(trajectory, truths),
                    }
                    | ({"cut": "turns"} if last.cut else {})
                )
        if verifier:
            truth = columns["final_true_score"]
            paid = self._reward_beside_truth(columns, verifier, items, finals, truth)
            shown = [s | shown_judge(j) for s, j in zip(shown, paid[::n], strict=True)]
        return self._figures(columns, name, items), shown

    def _samples(self, samples: int | None) -> int:
        """Greedy answers to one question are all alike: one is enough."""
        return 1 if self.temperature == 0 else samples or self.config.eval.samples

    def _sampling(self, phase: GRPOConfig) -> Sampling:
        return Sampling(self.temperature, phase.max_tokens, phase.batch_rows)

    def answers(self, *args, **kwargs) -> list[str | None]:
        """The answers that `written` finds; None where cut off."""
        return [w.answer for w in self.written(*args, **kwargs)]

    def written(
        self, model: Model, questions: list, phase: GRPOConfig, what: str, proofs: bool = False
    ) -> list[Written]:
        """One answer to each question, or the proof in it. `what` seeds the draw."""
        seed, how = derive_seed(f"eval {what}", self.config.seed), self._sampling(phase)
        asked = ("proofs" if proofs else "answers", questions)
        return self._once(
            model,
            asked,
            how,
            seed,
            lambda: write_answers(model, self.language, questions, how, seed, self.ranks, proofs),
        )

    def _once(
        self, model: Model, asked: tuple, how: Sampling, seed: int, write: Callable[[], list[T]]
    ) -> list[T]:
        return self.memory.recall(model, asked, how, seed, write) if self.memory else write()

    def weighed(self, samples: list[dict], gate: Judge | None) -> list[dict]:
        """Samples of critiques with what a frozen meta-verifier says of each that has a score."""
        asked = [s for s in samples if gate and s["score"] is not None]
        questions = [self.language.meta(s["problem"], s["proof"], s["critique"]) for s in asked]
        looks = dict(zip(map(id, asked), gate.ask(questions) if asked else (), strict=True))
        return [s | shown_meta(looks.get(id(s))) for s in samples]

    def _reward_beside_truth(self, columns, verifier: Judge, items, proofs, truth) -> list[Judgement]:
        """What the verifier says of each proof, and its excess over the truth: the reward-hacking gap.

        And of the proofs that it gives full marks, how many do not deserve them.
        """
        mine = self.ranks.mine(list(zip(items, proofs, strict=True)))
        asked = judge_proofs(verifier, self.language, [i for i, _ in mine], [p for _, p in mine])
        judged = self.ranks.gather(asked)
        scores = [j.score for j in judged]
        columns["verifier_reward"] = scores
        columns["hacking_gap"] = [s - t for s, t in zip(scores, truth, strict=True)]
        columns["false_accept_rate"] = false_accepts(scores, truth)
        return judged

    def _figures(self, columns: dict[str, list[float]], name: str, items: list) -> Metrics:
        """Figures of items that have a problem; with `by_type` those of BY_TYPE for each type of problem too,
        as "name/figure@T0 [type]"."""
        clusters, types = [i.problem for i in items], [getattr(i, "kind", "").split(", ")[0] for i in items]
        found = {key + self.suffix: value for key, value in figures(columns, name, clusters).items()}
        for kind in sorted(set(types)) if self.by_type and 1 < len(set(types)) <= MOST_TYPES else ():
            at = [i for i, t in enumerate(types) if t == kind]
            part = {c: [values[i] for i in at] for c, values in columns.items() if c in BY_TYPE}
            of_type = figures(part, name, [clusters[i] for i in at])
            found |= {f"{key}{self.suffix} [{kind}]": value for key, value in of_type.items()}
        return found


def without_types(metrics: Metrics) -> Metrics:
    return {name: figure for name, figure in metrics.items() if not name.endswith("]")}


def type_table(before: Metrics, after: Metrics) -> dict | None:
    """The figures per type of problem, before → after; None where there is one type."""
    types = defaultdict(dict)
    for name, figure in after.items():
        if name.endswith("]"):
            title, _, kind = name.removesuffix("]").partition(" [")
            start = f"{before[name]['value']:.3f} → " if name in before else ""
            types[kind][title] = f"{start}{figure['value']:.3f} (n = {figure['n']})"
    columns = sorted({title for row in types.values() for title in row})
    rows = [[kind, *(types[kind].get(c, "") for c in columns)] for kind in sorted(types)]
    return {"title": "Per type of problem", "columns": ["type", *columns], "rows": rows} if types else None


def balanced(right: list[float], levels: list[float], clusters: list) -> Figure:
    """Mean over the levels of the share that was right, with the interval of that mean.

    The levels' intervals are independent (each item has one level), so their variances add up.
    """
    parts = []
    for level in sorted(set(levels)):
        at = [i for i, x in enumerate(levels) if x == level]
        parts.append(interval([right[i] for i in at], [clusters[i] for i in at]))
    if not parts:
        return interval([])
    mean = sum(p["value"] for p in parts) / len(parts)
    half = math.sqrt(sum(((p["high"] - p["low"]) / 2) ** 2 for p in parts)) / len(parts)
    low, high = max(mean - half, 0.0), min(mean + half, 1.0)
    return {"value": round(mean, 4), "n": len(right), "low": round(low, 4), "high": round(high, 4)}


def any_of(count: float) -> float:
    """Whether there is at least one; NaN where nobody knows."""
    return count if math.isnan(count) else float(count > 0)


GRADED = (
    "critique_quality",
    "critique_exact",
    "invented_issue_rate",
    "missed_issue_rate",
    "invented_in_failed_rate",
)


def graded_columns(grade: CritiqueGrade | None, failed: bool) -> dict[str, float]:
    """What the truth says of a critique; NaN where nobody knows. `failed`: of a proof that is worth 0."""
    if grade is None:
        return dict.fromkeys(GRADED, math.nan)
    return {
        "critique_quality": grade.quality,
        "critique_exact": full(grade.quality),
        "invented_issue_rate": float(grade.invented > 0),
        "missed_issue_rate": float(grade.missed > 0),
        "invented_in_failed_rate": float(grade.invented > 0) if failed else math.nan,
    }


def shown_grade(grade: CritiqueGrade | None) -> dict:
    """The expert's grade of a critique, as a sample in the report shows it."""
    if grade is None:
        return {}
    return {
        "marks": list(grade.marks),
        "invented": grade.invented,
        "missed": grade.missed,
        "quality": grade.quality,
    }


def shown_judge(judged: Judgement | None) -> dict:
    """A frozen verifier's verdict on a proof, as a sample shows it: its reward, and its lowest critique."""
    if judged is None:
        return {}
    reward = {"reward": judged.score if judged.score == judged.score else None}
    read = [(s, t) for s, t in zip(judged.scores, judged.answers, strict=True) if s is not None and t]
    if not read:
        return reward
    score, text = min(read, key=lambda look: look[0])
    return reward | {"judge_critique": text, "judge_score": score}


def shown_meta(judged: Judgement | None) -> dict:
    """A frozen meta-verifier's first look at a critique, as a sample shows it."""
    if judged is None or not judged.answers or not judged.answers[0]:
        return {}
    return {"judge_meta": judged.answers[0], "judge_meta_quality": judged.scores[0]}


def shown_truth(truth: float) -> dict:
    """A proof's truth, as a sample in the report shows it; nothing where nobody knows."""
    return {} if math.isnan(truth) else {"truth": truth}


def full(truth: float) -> float:
    """Whether a proof is worth full marks; NaN where nobody knows."""
    return truth if math.isnan(truth) else float(truth == 1)


def turn_truths(trajectory: list[tuple[str, str]], truths: list[float]) -> list[float | None]:
    """The truth of each turn that is a proof; None where nobody knows, and for the critiques."""
    left = iter(truths)
    known = [next(left) if name == "prove" else math.nan for name, _ in trajectory]
    return [None if math.isnan(t) else t for t in known]
