"""Samples of the report as HTML: wrong findings and revised words marked, with what the filters look for."""

from __future__ import annotations

import difflib
import re
from html import escape


def marked(critique: str, marks: list[bool]) -> str:
    """A critique as HTML, every wrong finding marked (✗ and a colour); as it is where marks do not fit."""
    words = critique.split()
    parts = [" ".join(words[i : i + 5]) for i in range(0, len(words) - 3, 5)] + words[-3:-1]
    if len(parts) != len(marks):
        return escape(critique)
    shown = (escape(p) if ok else f"<mark>✗ {escape(p)}</mark>" for p, ok in zip(parts, marks, strict=True))
    return "  ".join(shown) + "  " + escape(words[-1])


def difference(before: str, after: str) -> str:
    """The later text as HTML, word by word against the earlier: what went in <del>, what came in <ins>."""
    a, b = (re.findall(r"\s+|[^\s]+", text) for text in (before, after))
    out = []
    for tag, i, j, k, l in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        old, new = escape("".join(a[i:j])), escape("".join(b[k:l]))
        if tag == "equal":
            out.append(new)
        else:
            out.append((f"<del>{old}</del>" if old else "") + (f"<ins>{new}</ins>" if new else ""))
    return "".join(out)


def errors(sample: dict) -> list[str]:
    """What is wrong with a sample, in the words of the filter."""
    found = []
    texts = [sample.get("proof"), sample.get("critique"), *(text for _, text in sample.get("turns", []))]
    if "(cut off)" in texts:
        found.append("cut_off")
    if sample.get("invented"):
        found.append("invented_issue")
    if "critique" in sample and "score" in sample:
        if sample["score"] is None:
            found.append("unparsed")
        elif sample.get("truth") is not None and sample["score"] != sample["truth"]:
            found.append("wrong_score")
            if sample["score"] > sample["truth"]:
                found.append("missed_issue")
    if sample.get("meta_quality", sample.get("quality")) != sample.get("quality"):
        found.append("wrong_quality")
    if sample.get("label") in (0, 0.5, 1) and sample["label"] != sample.get("truth", sample["label"]):
        found.append("wrong_label")
    return found or ["none"]


def final_truth(sample: dict) -> float | None:
    """The expert's score of the sample's last proof."""
    truths = [t for t in sample.get("turn_truth") or [] if t is not None]
    return truths[-1] if truths else sample.get("truth")


def sample_card(sample: dict, phase: str) -> str:
    """One sample: problem, proof, critique and meta-critique, what is wrong marked, revisions compared."""
    cells = []  # name, note, HTML of the text
    if "proof" in sample:
        cells.append(("proof", f"expert: {sample.get('truth')}", escape(str(sample["proof"]))))
    if "critique" in sample:
        note = [f"says {sample['score']}"] if sample.get("score") is not None else []
        if "quality" in sample:
            note.append(f"expert: quality {sample['quality']}")
        if sample.get("invented"):
            note.append(f"⚠ invents {sample['invented']} issue(s)")
        text, marks = str(sample["critique"]), sample.get("marks")
        cells.append(("critique", ", ".join(note), marked(text, marks) if marks else escape(text)))
    if "meta" in sample:
        note = f"says quality {sample.get('meta_quality')}"
        cells.append(("meta-critique", note, escape(str(sample["meta"]))))
    truths, last = sample.get("turn_truth") or [], {}
    for i, (task, text) in enumerate(sample.get("turns", [])):
        truth = truths[i] if i < len(truths) else None
        revised = task == "prove" and task in last
        whole = "(cut off)" not in (text, last.get(task))
        shown = difference(last[task], text) if revised and whole else escape(text)
        name = "revision" if revised else task
        cells.append((name, f"expert: {truth}" if truth is not None else "", shown))
        last[task] = text
    for key in ("reward", "label", "note"):
        if sample.get(key) is not None:
            cells.append((key, "", escape(str(sample[key]))))
    body = "".join(
        f'<div class="cell{" bad" if "⚠" in note else ""}"><b>{escape(name)}</b> '
        f"<i>{escape(note)}</i><pre>{shown}</pre></div>"
        for name, note, shown in cells
    )
    truth = final_truth(sample)
    facts = {
        "phase": phase,
        "score": "" if truth is None else f"{truth:g}",
        "error": " ".join(errors(sample)),
        "problem": str(sample.get("problem", "")),
    }
    data = " ".join(f'data-{k}="{escape(v)}"' for k, v in facts.items())
    return f'<div class="sample" {data}><pre class="x">{escape(facts["problem"])}</pre>{body}</div>'
