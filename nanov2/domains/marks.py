"""Critiques graded by where people marked the first wrong step of a proof, in whatever domain.

A critique's claims are found by what it quotes: a line that begins with `Issue:` and quotes the proof claims
a defect at that place; in a critique without such lines every quotation of the proof is a claim, since the
prompt asks for issues alone. A defect that is claimed before the first wrong step, or in a proof without one,
is invented. What comes after that step nobody has marked; it rests on the wrong step, and claims about it
count as real.
"""

from __future__ import annotations

import re

from nanov2.domains.domain import CritiqueGrade
from nanov2.domains.language import V_END, V_START, Language, read, without_thinking
from nanov2.hub.author import Messages

SHORTEST = 8  # characters of a quotation that says where it is from
ISSUE = re.compile(r"^[\s*_>#\-\d.()]{0,12}Issue\b", re.M | re.I)
QUOTATION = re.compile(r"\"([^\"\n]+)\"|“([^”\n]+)”|``?([^`\n]+)``?|\$([^$\n]+)\$")
ASKED = (
    'Write each issue on a line of its own that begins with "Issue:" and quotes its place word for word from '
    "the proof, in double quotation marks."
)


class MarkedLanguage(Language):
    """Asks for issues that say where they are."""

    def verify(self, problem: str, proof: str) -> Messages:
        (message,) = super().verify(problem, proof)
        return [message | {"content": f"{message['content']}\n\n{ASKED}"}]


def spoken(expert: str) -> type[Language]:
    """The language in which critiques are asked for, so that this expert can grade them."""
    return MarkedLanguage if expert == "marks" else Language


def squeezed(text: str) -> tuple[str, list[int]]:
    """The text without spaces and marks of emphasis, in small letters, and where each character was."""
    kept = [(c.lower(), i) for i, c in enumerate(text) if not c.isspace() and c not in "*_`$\\{}"]
    return "".join(c for c, _ in kept if len(c) == 1), [i for c, i in kept if len(c) == 1]


def claimed_places(proof: str, critique: str) -> list[tuple[int, int] | None]:
    """Where in the proof each claimed defect is, first character and last; None: the claim does not say."""
    body = without_thinking(critique) or ""
    starts = [m.end() for m in re.finditer(re.escape(V_START), body, re.I)]
    body = re.split(re.escape(V_END), body[starts[0] if starts else 0 :], flags=re.I)[0]
    lines = [line for line in body.split("\n") if line.strip()]
    issues = [line for line in lines if ISSUE.match(line)]
    whole, at = squeezed(proof)
    places = []
    for line in issues or lines:
        quotations = [next(filter(None, m.groups())) for m in QUOTATION.finditer(line)]
        found = [place for q in quotations if (place := _place(q, whole, at))]
        if found:
            places.append(min(found))
        elif issues:
            places.append(None)
    return places


def _place(quotation: str, whole: str, at: list[int]) -> tuple[int, int] | None:
    """The first place of a quotation; of one that stops short (…), of its longest part."""
    part, _ = squeezed(max(re.split(r"\.\.\.|…", quotation), key=len))
    begin = whole.find(part) if len(part) >= SHORTEST else -1
    return None if begin < 0 else (at[begin], at[begin + len(part) - 1])


def grade_by_marks(proof: str, wrong: str, critique: str) -> CritiqueGrade:
    """ms from the place of the first wrong step; `wrong` is its text, "" in a proof without one.

    1: every claimed defect is real, and the score follows (to claim none is reasonable); 0: all are invented;
    0.5: some are, or the score does not follow from what is claimed: full marks in spite of a real defect, or
    fewer without one that says where it is. No score: 0.
    """
    score = read(critique).score
    if score is None:
        return CritiqueGrade(0.0, (), 0, 0)
    places = claimed_places(proof, critique)
    if not wrong:
        invented = len(places) or int(score < 1)
        return CritiqueGrade(0.0 if invented else 1.0, (False,) * len(places), invented, 0)
    begin = proof.find(wrong)
    known = [place for place in places if place]
    marks = [end >= begin for _, end in known]
    hit = any(first < begin + len(wrong) and end >= begin for first, end in known)
    if known and not any(marks):
        quality = 0.0
    else:
        quality = 1.0 if all(marks) and bool(known) == (score < 1) else 0.5
    return CritiqueGrade(quality, tuple(marks), marks.count(False), int(not hit))
