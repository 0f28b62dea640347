"""Samples of a phase as the report shows them: the parts of one, what is wrong with it, which are kept."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from nanov2.pages.prose import Block, blocks, findings, numbered, revision

CUT = "(cut off)"  # what stands for an answer that has none
MOST_SAMPLES = 60  # of a phase
FAILURES = {  # what the filter offers, in this order
    "cut_off": "cut off",
    "unparsed": "no readable score",
    "invented_issue": "invented issue",
    "missed_issue": "missed issue",
    "wrong_score": "wrong score",
    "wrong_quality": "wrong quality",
    "wrong_label": "wrong label",
    "fooled_judge": "reward above truth",
    "worse_revision": "revised for the worse",
    "none": "nothing",
}


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


def failures(sample: dict) -> list[str]:
    """What is wrong with a sample, as keys of FAILURES."""
    found = set()
    texts = [sample.get("proof"), sample.get("critique"), *(text for _, text in sample.get("turns", []))]
    if CUT in texts or sample.get("cut"):
        found.add("cut_off")
    if sample.get("invented"):
        found.add("invented_issue")
    if sample.get("missed"):
        found.add("missed_issue")
    if "critique" in sample and "score" in sample:
        if sample["score"] is None:
            found.add("unparsed")
        elif sample.get("truth") is not None and sample["score"] != sample["truth"]:
            found.add("wrong_score")
            if sample["score"] > sample["truth"]:
                found.add("missed_issue")
    if sample.get("meta_quality", sample.get("quality")) != sample.get("quality"):
        found.add("wrong_quality")
    if sample.get("label") in (0, 0.5, 1) and sample["label"] != sample.get("truth", sample["label"]):
        found.add("wrong_label")
    truth, reward = final_truth(sample), sample.get("reward")
    if truth is not None and reward is not None and reward - truth >= 0.5:
        found.add("fooled_judge")
    truths = [t for t in sample.get("turn_truth") or [] if t is not None]
    if truths and truths[-1] < truths[0]:
        found.add("worse_revision")
    return [f for f in FAILURES if f in found] or ["none"]


def final_truth(sample: dict) -> float | None:
    """The expert's score of the sample's last proof."""
    truths = [t for t in sample.get("turn_truth") or [] if t is not None]
    return truths[-1] if truths else sample.get("truth")


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


def proof_part(text: str, truth, name: str = "proof", before: str | None = None, cut: bool = False) -> Part:
    """A proof with its steps numbered, against the one that it revises where `before` is given."""
    shown = revision(before, text) if before is not None else blocks(text)
    warning = "cut off at the token limit" if cut or text == CUT else ""
    return Part(name, said("expert", truth), numbered(shown), warning, "proof")


def critique_part(sample: dict, text: str, name: str = "critique") -> Part:
    """A critique with its findings marked, where the expert graded it."""
    score, marks = sample.get("score"), sample.get("marks")
    note = [said("says", score), said("expert: quality", sample.get("quality"))]
    warning = f"invents {sample['invented']} issue(s)" if sample.get("invented") else ""
    lines = text.replace("\n", "\n\n") if marks else text  # each line is a finding
    shown = findings(blocks(lines), marks, score)
    return Part(name, ", ".join(n for n in note if n), shown, warning, "critique")


def meta_part(text: str, quality) -> Part:
    return Part("meta-critique", said("says quality", quality), blocks(text), "", "meta")


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
            rows.append([proof_part(text, truth, name, last if whole else None)])
            last = text
        else:
            part = Part("own critique", "", findings(blocks(text), None, None), "", "critique")
            rows.append([*(rows.pop() if rows else []), part])
    return rows


def sample_view(sample: dict, phase: str) -> Sample:
    """One sample: problem, proof, critique beside meta-critique, or the turns of a trajectory."""
    rows: list[list[Part]] = []
    if "proof" in sample:
        cut_off = bool(sample.get("cut"))
        rows.append([proof_part(str(sample["proof"]), sample.get("truth"), cut=cut_off)])
    if "critique" in sample:
        rows.append([critique_part(sample, str(sample["critique"]))])
    if "meta" in sample:
        meta = meta_part(str(sample["meta"]), sample.get("meta_quality"))
        rows.append([*(rows.pop() if "critique" in sample else []), meta])
    if sample.get("judge_critique"):  # of the frozen verifier whose score is the reward
        text, score = str(sample["judge_critique"]), sample.get("judge_score", sample.get("reward"))
        said_ = Part(
            "judge's critique", said("says", score), findings(blocks(text), None, score), "", "critique"
        )
        meta = sample.get("judge_meta")
        rows.append([said_, *([meta_part(str(meta), sample.get("judge_meta_quality"))] if meta else [])])
    rows += turn_rows(sample)
    truth, step = final_truth(sample), sample.get("step")
    problem = str(sample.get("problem", ""))
    score = "" if truth is None else f"{truth:g}"
    facts = [said(key, sample.get(key)) for key in ("reward", "label", "note") if sample.get(key) is not None]
    facts += [f"step {step}"] if step is not None else []
    return Sample(
        blocks(problem), rows, facts, phase, score, failures(sample), said("", step).strip(), problem
    )
