"""Samples of a phase as the report shows them: the parts of one, what is wrong with it, which are kept."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from nanov2.method.samples import CUT, failures, final_truth
from nanov2.pages.prose import Block, blocks, findings, numbered, revision

MOST_SAMPLES = 60  # of a phase


@dataclass(frozen=True)
class Part:
    """One text of a sample, with who says what of it."""

    name: str
    note: str
    blocks: list[Block]
    warning: str = ""  # what is wrong with it, in words
    kind: str = "other"  # proof, critique, meta or other


@dataclass(frozen=True)
class Sample:
    """A sample as a card: `rows` of parts that stand side by side (a critique and what was said of it)."""

    problem: list[Block]
    rows: list[list[Part]]
    facts: list[str]  # such as its reward
    phase: str
    score: str  # the expert's score of its last proof; empty where nobody knows
    failures: list[str]
    step: str  # training step; empty where the file does not say
    key: str  # the problem's text, by which it is followed through phases and laps


def keep(samples: list[dict], most: int = MOST_SAMPLES) -> list[dict]:
    """At most so many samples, in their order: in turn from each kind of failure, so that rare ones stay."""
    queues: dict[str, list[int]] = defaultdict(list)
    for n, s in enumerate(samples):
        queues[failures(s)[0]].append(n)
    kept: list[int] = []
    for depth in range(max(map(len, queues.values()), default=0)):
        kept += [q[depth] for q in queues.values() if depth < len(q)]
        if len(kept) >= most:
            break
    return [samples[n] for n in sorted(kept[:most])]


def proof_part(text: str, truth, name: str = "proof", before: str | None = None, warning: str = "") -> Part:
    """A proof with its steps numbered, against the one that it revises where `before` is given."""
    shown = revision(before, text) if before is not None else blocks(text)
    return Part(name, said("expert", truth), numbered(shown), warning, "proof")


def cut_off(sample: dict, field: str) -> str:
    """A warning where this field of the sample was cut off, or is no proof."""
    if sample.get(field) == CUT or sample.get("cut") in (field, True):
        return "cut off at the token limit"
    return "not in the form of a proof" if sample.get("malformed") == field == "proof" else ""


def critique_part(sample: dict, text: str, name: str = "critique") -> Part:
    """A critique with its findings marked, where the expert graded it."""
    score, marks = sample.get("score"), sample.get("marks")
    note = [said("says", score), said("expert: quality", sample.get("quality"))]
    warning = f"invents {sample['invented']} issue(s)" if sample.get("invented") else ""
    warning = cut_off(sample, "critique") or warning
    lines = text.replace("\n", "\n\n") if marks else text  # each line is a finding
    shown = findings(blocks(lines), marks, score)
    return Part(name, ", ".join(n for n in note if n), shown, warning, "critique")


def meta_part(text: str, quality, warning: str = "", name: str = "meta-critique") -> Part:
    return Part(name, said("says quality", quality), blocks(text), warning, "meta")


def said(who: str, value) -> str:
    return (
        "" if value is None else f"{who} {value:g}" if isinstance(value, (int, float)) else f"{who} {value}"
    )


def turn_rows(sample: dict) -> list[list[Part]]:
    """A self-verifying trajectory: each proof, compared with the one before, with its critique beside it."""
    truths, rows, last = sample.get("turn_truth") or [], [], None
    for i, (task, text) in enumerate(sample.get("turns", [])):
        truth = truths[i] if i < len(truths) else None
        if task == "prove":
            whole = last is not None and CUT not in (text, last)
            name = "draft" if last is None else "revision"
            cut = i == len(sample["turns"]) - 1 and bool(sample.get("cut")) or text == CUT
            warning = "cut off at the token limit" if cut else ""
            rows.append([proof_part(text, truth, name, last if whole else None, warning)])
            last = text
        else:
            part = Part("own critique", "", findings(blocks(text), None, None), "", "critique")
            rows.append([*(rows.pop() if rows else []), part])
    return rows


def sample_view(sample: dict, phase: str) -> Sample:
    """One sample: problem, proof, critique beside meta-critique, or the turns of a trajectory."""
    rows: list[list[Part]] = []
    if "proof" in sample:
        rows.append([proof_part(str(sample["proof"]), sample.get("truth"), warning=cut_off(sample, "proof"))])
    if "critique" in sample:
        rows.append([critique_part(sample, str(sample["critique"]))])
    if "meta" in sample:
        meta = meta_part(str(sample["meta"]), sample.get("meta_quality"), cut_off(sample, "meta"))
        rows.append([*(rows.pop() if "critique" in sample else []), meta])
    judged = bool(sample.get("judge_critique"))
    if (
        "critique" in sample and sample.get("judge_meta") and not judged
    ):  # of the frozen meta-verifier that gates the reward
        text, quality = str(sample["judge_meta"]), sample.get("judge_meta_quality")
        rows.append([*(rows.pop()), meta_part(text, quality, name="the gate's meta-critique")])
    rows += turn_rows(sample)
    if judged:  # of the frozen verifier whose score is the reward
        text, score = str(sample["judge_critique"]), sample.get("judge_score", sample.get("reward"))
        said_ = Part(
            "judge's critique", said("says", score), findings(blocks(text), None, score), "", "critique"
        )
        meta = sample.get("judge_meta")
        rows.append([said_, *([meta_part(str(meta), sample.get("judge_meta_quality"))] if meta else [])])
    truth, step = final_truth(sample), sample.get("step")
    problem = str(sample.get("problem", ""))
    score = "" if truth is None else f"{truth:g}"
    facts = [said(key, sample.get(key)) for key in ("reward", "label", "note") if sample.get(key) is not None]
    facts += [f"step {step}"] if step is not None else []
    return Sample(
        blocks(problem), rows, facts, phase, score, failures(sample), said("", step).strip(), problem
    )
