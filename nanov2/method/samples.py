"""Samples for the report: what is wrong with one, and which of many are kept."""

from __future__ import annotations

from collections import defaultdict

CUT = "(cut off)"  # what stands for an answer of which nothing is left
FAILURES = {  # in the order of their weight: a sample counts as the first that it has
    "cut_off": "cut off",
    "malformed": "not in the form of a proof",
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


def failures(sample: dict) -> list[str]:
    """What is wrong with a sample, as keys of FAILURES."""
    found = set()
    texts = [sample.get("proof"), sample.get("critique"), *(text for _, text in sample.get("turns", []))]
    if CUT in texts or sample.get("cut"):
        found.add("cut_off")
    if sample.get("malformed"):
        found.add("malformed")
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


def pick(samples: list[dict], n: int) -> list[dict]:
    """n samples, in turn from every kind: rare failures are kept, right and wrong proofs are both seen."""
    kinds = defaultdict(list)
    for s in samples:
        for failure in failures(s):
            kinds[list(FAILURES).index(failure), str(final_truth(s))].append(s)
    out, taken, depth = [], set(), 0
    while len(out) < min(n, len(samples)):
        for kind in sorted(kinds):
            if depth < len(kinds[kind]) and id(kinds[kind][depth]) not in taken and len(out) < n:
                taken.add(id(kinds[kind][depth]))
                out.append(kinds[kind][depth])
        depth += 1
    return out
