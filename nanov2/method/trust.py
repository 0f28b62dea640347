"""When can a judge be trusted? Any language model as verifier and meta-verifier, against the exact truth.

Proofs and critiques come from the world's demonstrations, as many of each score and, within a score, of each
kind of fault; so figures of two judges can be compared, and none is made up of the easy half. The prompts are
the paper's, with the world's rubric and the lines in which findings are written, so that the truth can read
them. A critique in other words still has its score measured; what it claims about the steps is then unknown,
and `legible` says how often it was not. docs/judges.md says what the figures mean for training.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from nanov2.distributed.ranks import derive_rng
from nanov2.domains.domain import Domain, View
from nanov2.domains.language import Language, read_score
from nanov2.domains.marks import grade_by_marks
from nanov2.errors import InputError
from nanov2.hub.author import Messages
from nanov2.method.consensus import Assessed, majority, wilson, worst
from nanov2.method.experts import MarksExpert, is_marked
from nanov2.method.figures import Figure, Metrics, any_of, balanced, interval
from nanov2.method.judges import Judge
from nanov2.records import LEVELS, CritiqueRecord, ProofRecord, group, in_turn

POOL = 16  # demonstrations drawn for each case that is kept: rare faults and qualities are among them
FAULTLESS, ERRORLESS = "no fault", "no error"


@dataclass(frozen=True)
class Case:
    """A proof and a critique of it whose truth is known."""

    problem: str
    proof: str
    critique: str
    score: float
    quality: float
    kind: tuple[str, ...]  # of the problem
    faults: tuple[str, ...]  # of the proof

    @property
    def proof_record(self) -> ProofRecord:
        return ProofRecord(self.problem, self.proof)


def draw_cases(domain: Domain, n: int, seed: int) -> tuple[list[Case], list[Case]]:
    """At most n proofs to verify and n critiques to meta-verify; the same for every judge."""
    if domain.truth is None:
        raise InputError(
            "nobody knows the truth of this domain: judges are measured on --domain=order, or one "
            "of your own with a truth; on graded proofs give --data=FILE"
        )
    language, pool = domain.language(None), {}
    for i in range(POOL * n):
        shown = domain.demonstration(derive_rng(seed, "judged", i), 1.0)
        turns = dict(reversed(shown.turns))  # the first of each task
        proof, critique = language.read_proof(turns.get("prove")), turns.get("verify")
        if not proof or not critique or (shown.problem, proof.text) in pool:
            continue
        grade = domain.truth.examine(shown.problem, proof.text, critique)
        view = domain.view(ProofRecord(shown.problem, proof.text))
        score = domain.truth.score(shown.problem, proof.text)
        if grade and score == score:
            case = Case(shown.problem, proof.text, critique, score, grade.quality, view.kind, view.faults)
            pool[case.problem, case.proof] = case
    cases = [*pool.values()]
    proofs = in_turn([in_turn(group(at, lambda c: c.faults)) for at in group(cases, lambda c: c.score)])
    return proofs[:n], in_turn(group(cases, lambda c: c.quality))[:n]


# --- asking ---------------------------------------------------------------------------------------


def guided(messages: Messages, view: View) -> Messages:
    """The paper's prompt with what the world adds: its own rubric, and the lines that its truth can read."""
    notes = [f"Here this means:\n{view.rubric}"] if view.rubric else []
    notes += [view.form] if view.form else []
    (message,) = messages
    return [message | {"content": "\n\n".join([message["content"], *notes])}]


def ask_verifier(judge: Judge, language: Language, domain: Domain, cases: list[Case]) -> list[dict]:
    """A row for each critique that the judge writes, with the truth beside it."""
    views = [domain.view(c.proof_record) for c in cases]
    questions = [guided(language.verify(c.problem, c.proof), v) for c, v in zip(cases, views, strict=True)]
    rows = []
    for case, view, found in zip(cases, views, judge.ask(questions), strict=True):
        for text, score in zip(found.answers, found.scores, strict=True):
            row = {"task": "verify", "problem": case.problem, "proof": case.proof, "truth": case.score}
            row |= {"kind": case.kind, "faults": case.faults, "critique": text, "score": score}
            rows.append(row | graded(domain, case, view, text, score))
    return rows


def graded(domain: Domain, case: Case, view: View, text: str | None, score: float | None) -> dict:
    """What the truth says of a critique, where it says something about each step."""
    if score is None:
        return {"legible": None}
    findings = domain.view(CritiqueRecord(case.problem, case.proof, text)).findings
    legible = {at for at, *_ in findings} >= set(range(len(view.steps)))
    grade = domain.truth.examine(case.problem, case.proof, text) if legible else None
    if grade is None:
        return {"legible": False}
    return {"legible": True, "quality": grade.quality, "invented": grade.invented, "missed": grade.missed}


def ask_meta(judge: Judge, language: Language, domain: Domain, cases: list[Case]) -> list[dict]:
    """A row for each meta-critique, with the true quality of the critique beside it."""
    views = [domain.view(CritiqueRecord(c.problem, c.proof, c.critique)) for c in cases]
    questions = [
        guided(language.meta(c.problem, c.proof, c.critique), v) for c, v in zip(cases, views, strict=True)
    ]
    rows = []
    for case, view, found in zip(cases, views, judge.ask(questions), strict=True):
        for text, claim in zip(found.answers, found.scores, strict=True):
            what: dict = {"problem": case.problem, "proof": case.proof, "critique": case.critique}
            truth = {"truth": case.quality, "kind": case.kind, "errors": view.errors}
            rows.append({"task": "meta"} | what | truth | {"meta": text, "score": claim})
    return rows


# --- figures --------------------------------------------------------------------------------------


def trust(rows: list[dict]) -> dict:
    """All figures of a judge: each task's, the verifier's by kind of fault and of problem, and those of the
    meta-verifier by kind of error and of problem."""
    verify, meta = ([r for r in rows if r["task"] == task] for task in ("verify", "meta"))
    return {
        "verifier": verifier_figures(verify),
        "meta": meta_figures(meta),
        "looks": looks(verify),
        "by fault": {name: verifier_figures(at) for name, at in by_names(verify, "faults", FAULTLESS)},
        "by kind": {name: verifier_figures(at) for name, at in by_names(verify, "kind")},
        "meta by error": {name: meta_figures(at) for name, at in by_names(meta, "errors", ERRORLESS)},
        "meta by kind": {name: meta_figures(at) for name, at in by_names(meta, "kind")},
    }


def by_names(rows: list[dict], field: str, otherwise: str = "") -> list[tuple[str, list[dict]]]:
    """(name, rows) for each name that the rows have in a field, in order; a row with several is with each.
    `otherwise`: the name of those with none."""
    found = defaultdict(list)
    for r in rows:
        for name in r[field] or filter(None, (otherwise,)):
            found[name].append(r)
    return sorted(found.items())


def verifier_figures(rows: list[dict]) -> Metrics:
    """Figures of critiques. Those of scores are over the answers that have one."""
    nan, clusters = math.nan, [r["problem"] for r in rows]

    def column(value: Callable[[dict], float], where: Callable[[dict], bool] = lambda r: True) -> Figure:
        known = [nan if r["score"] is None or not where(r) else float(value(r)) for r in rows]
        return interval(known, clusters)

    right = [float(r["score"] == r["truth"]) for r in rows if r["score"] is not None]
    read = [r for r in rows if r["score"] is not None]
    return {
        "read": interval([float(r["score"] is not None) for r in rows], clusters),
        "accuracy": column(lambda r: r["score"] == r["truth"]),
        "balanced": balanced(right, [r["truth"] for r in read], [r["problem"] for r in read]),
        "accepts": column(lambda r: r["score"] == 1),
        "accepts_wrong": column(lambda r: r["score"] == 1, lambda r: r["truth"] < 1),
        "refuses_right": column(lambda r: r["score"] < 1, lambda r: r["truth"] == 1),
        "accepted_are_wrong": column(lambda r: r["truth"] < 1, lambda r: r["score"] == 1),
        "legible": column(lambda r: r["legible"]),
        "invented": column(lambda r: any_of(r["invented"]), lambda r: r["legible"]),
        "missed": column(lambda r: any_of(r["missed"]), lambda r: r["legible"]),
        "quality": column(lambda r: r["quality"], lambda r: r["legible"]),
    }


def meta_figures(rows: list[dict]) -> Metrics:
    """Figures of meta-critiques."""
    read = [r for r in rows if r["score"] is not None]
    clusters, truth = [r["problem"] for r in read], [r["truth"] for r in read]
    right = [float(r["score"] == r["truth"]) for r in read]
    commonest = max(LEVELS, key=truth.count)

    def agrees(good: bool) -> Figure:
        return interval(
            [float(r["score"] == 1) if (r["truth"] == 1) == good else math.nan for r in read], clusters
        )

    return {
        "read": interval([float(r["score"] is not None) for r in rows], [r["problem"] for r in rows]),
        "accuracy": interval(right, clusters),
        "balanced": balanced(right, truth, clusters),
        "constant": interval([float(t == commonest) for t in truth], clusters),
        "confirms": interval([float(r["score"] == 1) for r in read], clusters),
        "confirms_right": agrees(True),
        "confirms_wrong": agrees(False),
    }


def looks(rows: list[dict]) -> dict[str, Metrics]:
    """A proof judged by all its critiques: by their majority, and by the worst of them.

    Empty where each proof had one look.
    """
    looked = defaultdict(list)
    for r in rows:
        looked[r["problem"], r["proof"], r["truth"]].append(Assessed("", r["score"], issue=False))
    if len(looked) == len(rows):
        return {}
    return {
        name: verifier_figures(
            [
                {"problem": problem, "truth": truth, "score": rule(critiques), "legible": False}
                for (problem, _, truth), critiques in looked.items()
            ]
        )
        for name, rule in (("majority", majority), ("worst", worst))
    }


# --- the table ------------------------------------------------------------------------------------

TITLES = {
    "read": "answers with a score",
    "accuracy": "score is the true one",
    "balanced": "the same, mean over the scores 0, 0.5 and 1",
    "accepts_wrong": "of faulty proofs given full marks",
    "refuses_right": "of right proofs refused full marks",
    "accepted_are_wrong": "of full marks that are wrong (false accepts)",
    "legible": "critiques whose findings can be graded",
    "invented": "of these, with an invented issue",
    "missed": "of these, with a missed issue",
    "quality": "of these, mean true quality",
}
META_TITLES = {
    "read": "answers with a quality",
    "accuracy": "quality is the true one",
    "constant": "(always the commonest one)",
    "balanced": "mean over the qualities that occur",
    "confirms_right": "of good critiques confirmed",
    "confirms_wrong": "of critiques with a false claim or score confirmed",
}
COLUMNS = {"accuracy": "score right", "accepts": "full marks", "invented": "invented", "missed": "missed"}
META_COLUMNS = {"accuracy": "quality right", "confirms": "confirmed"}


def table(found: dict) -> str:
    """The figures as text for a terminal."""
    lines = _block("verifier", found["verifier"], TITLES)
    for name, figures in found["looks"].items():
        said = f"the {name} of a proof's critiques"
        lines += _block(said, figures, {k: TITLES[k] for k in ("accuracy", "accepts_wrong", "refuses_right")})
    lines += _block("meta-verifier", found["meta"], META_TITLES)
    for title, columns in (
        ("by fault", COLUMNS),
        ("by kind", COLUMNS),
        ("meta by error", META_COLUMNS),
        ("meta by kind", META_COLUMNS),
    ):
        if found[title]:
            answers = "looks" if columns is META_COLUMNS else "critiques"
            lines += ["", f"{title:38} {answers:>9} " + "".join(f"{h:>14}" for h in columns.values())]
            for name, figures in found[title].items():
                shown = "".join(f"{_number(figures[c]):>14}" for c in columns)
                lines.append(f"{name:38} {figures['accuracy']['n']:9} {shown}")
    return "\n".join(lines[1:])


def _block(title: str, figures: Metrics, titles: dict[str, str]) -> list[str]:
    lines = ["", f"{title:52} value  95% interval       n"]
    for name, words in titles.items():
        f = figures[name]
        span = f"({f['low']:.3f}–{f['high']:.3f})" if f["n"] else ""
        lines.append(f"{words:50} {_number(f):>7}  {span:15} {f['n']:5}")
    return lines


def _number(figure: Figure) -> str:
    return f"{figure['value']:.3f}" if figure["n"] else "unknown"


# --- what a search's pass is worth


def of_passes(right: list[bool], one_critique: str = "") -> str:
    """How far the passes of a search can be trusted. `right`: of the passed proofs whose truth is known,
    which are; without any, all that can be told is of a single critique, and a pass takes several."""
    if right:
        n, rate = len(right), sum(right) / len(right)
        low, high = wilson(rate, n), 1 - wilson(1 - rate, n)
        whole = f"{sum(right)} of the {n} proofs that this search passed are right in truth"
        return f"{whole} ({rate:.1%}; 95% interval {low:.1%} to {high:.1%})"
    if one_critique:
        return f"not measured for a search; of a single critique: {one_critique}"
    return "not measured for these models"


# --- critiques of proofs whose first wrong step is marked ------------------------------------------


def marked_critiques(items: list[ProofRecord], found: list[list[Assessed]]) -> list[CritiqueRecord]:
    """The critiques that have a score, with the quality that the marks of first wrong steps give them; none
    of faulty proofs without a mark."""
    records = [
        CritiqueRecord(r.problem, r.proof, x.critique, None, r.score, r.source, wrong=r.wrong)
        for r, critiques in zip(items, found, strict=True)
        for x in critiques
        if x.score is not None and is_marked(r)
    ]
    return MarksExpert().score_critiques(records)


def by_marks(records: list[CritiqueRecord]) -> str:
    """How the claims of critiques lie to the first wrong steps, as text for a terminal."""
    nan, columns = math.nan, defaultdict(list)
    for r in records:
        grade, claims = grade_by_marks(r.proof, r.wrong, r.critique), read_score(r.critique) < 1
        columns["mean quality by marks"].append(grade.quality)
        columns["with an invented defect"].append(float(grade.invented > 0))
        columns["of wrong proofs: missing the first wrong step"].append(
            float(grade.missed > 0) if r.wrong else nan
        )
        columns["of wrong proofs, scored below 1: saying where"].append(
            float(bool(grade.marks)) if r.wrong and claims else nan
        )
    figures = {name: interval(values, [r.problem for r in records]) for name, values in columns.items()}
    return "\n".join(_block("critiques", figures, {name: name for name in figures})[1:])
