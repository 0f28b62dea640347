"""Texts that models wrote, as blocks that a template shows: Markdown, mathematics, steps, changes.

Nothing here makes HTML. A text is cut into tokens (formulas whole), lines, and blocks; a template shows the
pieces of a block as text, so whatever a text holds is inert. All of it takes time linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

MOST = 12_000  # characters shown of one text
MOST_EDITS = 400  # words that differ; beyond, a revision is shown as all new
FORMULA = (
    r"\$\$[^$]{1,2000}\$\$|\\\[[^$]{1,2000}?\\\]|\\\([^$\n]{1,500}?\\\)|\$[^$\n]{1,500}\$"
    r"|\\boxed\{[^{}$\n]{0,40}\}"
)
TOKEN = re.compile(rf"({FORMULA})|\n|[^\S\n]+|[^\s$\\]+|[$\\]")
HEADING = re.compile(r"#{1,6}")
BULLET = re.compile(r"[-*+]|\d{1,3}[.)]")
STRONG = re.compile(r"\*\*([^*\n]{1,200})\*\*")
# What a finding says of a step that it does not object to.
CONTENT = re.compile(
    r"\b(justified|correct|right|valid|holds|fine|strong enough|has the ends|no (issue|error|gap|fault)s?)\b",
    re.I,
)
OBJECTION = re.compile(
    r"\b(not|never|no step|cannot|can't|isn't|doesn't|unjustified|incorrect|invalid|wrong|missing|gap|fails?"
    r"|but|however|too (weak|strong))\b",
    re.I,
)


@dataclass(frozen=True)
class Piece:
    """A run of a line. kind: text, strong, math or display; change: "", ins or del."""

    kind: str
    text: str
    change: str = ""


@dataclass(frozen=True)
class Block:
    """A paragraph, heading or list item. number: of a step; mark: "", fine, issue, invented or wrong."""

    kind: str  # text, heading, item
    pieces: tuple[Piece, ...]
    number: int | None = None
    mark: str = ""

    @property
    def text(self) -> str:
        """The text as it stands, without what was deleted."""
        return "".join(p.text for p in self.pieces if p.change != "del")


Token = tuple[str, str]  # change, text


def tokens(text: str) -> list[str]:
    """A text in words, blanks, line feeds and whole formulas; joined they are the text."""
    return [m[0] for m in TOKEN.finditer(text)]


def cut(text: str) -> str:
    """The part of a text that is shown."""
    return text if len(text) <= MOST else f"{text[:MOST]} … ({len(text) - MOST:,} more characters)"


def blocks(text: str) -> list[Block]:
    """A text's blocks."""
    return assemble(("", t) for t in tokens(cut(text)))


def revision(before: str, after: str) -> list[Block]:
    """The blocks of the later text, what went and what came marked word by word."""
    return assemble(compare(tokens(cut(before)), tokens(cut(after))))


def compare(a: list[str], b: list[str], most: int = MOST_EDITS) -> list[Token]:
    """A shortest edit from a to b (Myers 1986), at most `most` long; beyond, the middle is replaced whole.

    Time and memory are bounded by len(a) + len(b) and most².
    """
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    end = 0
    while end < min(len(a), len(b)) - start and a[-1 - end] == b[-1 - end]:
        end += 1
    x, y = a[start : len(a) - end], b[start : len(b) - end]
    edit = _shortest_edit(x, y, most)
    if edit is None:
        edit = [("del", t) for t in x] + [("ins", t) for t in y]
    return [("", t) for t in a[:start]] + edit + [("", t) for t in b[len(b) - end :]]


def _shortest_edit(a: list[str], b: list[str], most: int) -> list[Token] | None:
    """Myers' greedy search over diagonals k = i − j; None where the edit is longer than `most`."""
    reach = {1: 0}  # diagonal → how far in a
    trace = []
    for d in range(min(most, len(a) + len(b)) + 1):
        trace.append(dict(reach) if d else reach.copy())
        for k in range(-d, d + 1, 2):
            down = k == -d or (k != d and reach[k - 1] < reach[k + 1])
            i = reach[k + 1] if down else reach[k - 1] + 1
            while i < len(a) and i - k < len(b) and a[i] == b[i - k]:
                i += 1
            reach[k] = i
            if i >= len(a) and i - k >= len(b):
                return _walk_back(a, b, trace)
    return None


def _walk_back(a: list[str], b: list[str], trace: list[dict[int, int]]) -> list[Token]:
    i, j, out = len(a), len(b), []
    for d in range(len(trace) - 1, -1, -1):
        reach, k = trace[d], i - j
        down = k == -d or (k != d and reach.get(k - 1, -1) < reach.get(k + 1, -1))
        was = k + 1 if down else k - 1
        i0 = reach.get(was, 0) if d else 0
        j0 = i0 - was if d else 0
        while i > i0 and j > j0:
            i, j = i - 1, j - 1
            out.append(("", a[i]))
        if d:
            if down:
                j -= 1
                out.append(("ins", b[j]))
            else:
                i -= 1
                out.append(("del", a[i]))
    return _grouped(out[::-1])


def _grouped(edit: list[Token]) -> list[Token]:
    """Within each run of changes, first what went and then what came; a blank between two joins them."""
    out: list[Token] = []
    gone: list[Token] = []
    come: list[Token] = []
    for n, (change, text) in enumerate(edit):
        following = edit[n + 1][0] if n + 1 < len(edit) else ""
        if change == "del":
            gone.append((change, text))
        elif change == "ins":
            come.append((change, text))
        elif text == " " and gone and come and following:
            gone.append(("del", text))
            come.append(("ins", text))
        else:
            out += [*gone, *come, (change, text)]
            gone, come = [], []
    return [*out, *gone, *come]


def assemble(stream: Iterable[Token]) -> list[Block]:
    """Blocks from tokens. A blank line, a heading and a list item begin a new one; so does a line after one
    that ended its sentence, or that is not indented after a list item."""
    out: list[Block] = []
    open_: list[Token] = []  # of the paragraph or item under way
    kind = "text"

    def close() -> None:
        nonlocal open_, kind
        pieces = tuple(_pieces(open_))
        if any(p.text.strip() for p in pieces):
            out.append(Block(kind, pieces))
        open_, kind = [], "text"

    for line in _lines(stream):
        words = [n for n, (change, t) in enumerate(line) if change != "del" and not t.isspace()]
        first = line[words[0]][1] if words else ""
        if not words and not any(t.strip() for _, t in line):
            close()
        elif HEADING.fullmatch(first) or (BULLET.fullmatch(first) and len(words) > 1):
            close()
            kind = "heading" if first[0] == "#" else "item"
            after = words[1] if len(words) > 1 else len(line)
            open_ = [t for n, t in enumerate(line) if n != words[0] and (n >= after or t[0] == "del")]
            if kind == "heading":
                close()
        else:
            last = next((t for change, t in reversed(open_) if change != "del" and not t.isspace()), "")
            if last.endswith((".", ":", "}")) or (kind == "item" and not line[0][1].isspace()):
                close()
            open_ += [("", "\n"), *line] if open_ else line
    close()
    return out


def _lines(stream: Iterable[Token]) -> Iterable[list[Token]]:
    line: list[Token] = []
    for change, text in stream:
        if text == "\n" and change != "del":
            yield line
            line = []
        else:
            line.append((change, " " if text == "\n" else text))
    yield line


def _pieces(stream: list[Token]) -> Iterable[Piece]:
    """Neighbouring words of one change joined; formulas apart."""
    change, words = "", []

    def joined() -> Iterable[Piece]:
        for n, part in enumerate(STRONG.split("".join(words))):
            if part:
                yield Piece("strong" if n % 2 else "text", part, change)

    for now, text in stream:
        formula = len(text) > 1 and re.fullmatch(FORMULA, text)
        if formula or now != change:
            yield from joined()
            change, words = now, []
        if formula:
            display = text.startswith(("$$", "\\["))
            yield Piece("display" if display else "math", inner(text), now)
        else:
            words.append(text)
    yield from joined()


def inner(formula: str) -> str:
    """A formula without what marks it as one."""
    if formula.startswith("\\boxed"):
        return formula
    return formula[1:-1].strip("$") if formula[0] == "$" else formula[2:-2]


def numbered(proof: list[Block]) -> list[Block]:
    """A proof's blocks with its steps numbered."""
    n, out = 0, []
    for b in proof:
        n += b.kind != "heading"
        out.append(b if b.kind == "heading" else replace(b, number=n))
    return out


def claims_issue(finding: str, score: float | None = None) -> bool:
    """Whether a finding of a critique objects to something; `score`: the critique's own."""
    return bool(OBJECTION.search(finding)) or (score != 1 and not CONTENT.search(finding))


def _is_form(block: Block) -> bool:
    """Whether a block is the first or the last line that the paper's form asks for."""
    return "\\boxed" in block.text or (block.kind == "text" and block.text.rstrip().endswith(":"))


def findings(critique: list[Block], marks: list[bool] | None, score: float | None) -> list[Block]:
    """A critique's blocks with its findings numbered and marked.

    `marks` says of each finding whether it is right, in order: of each line between the two that the form
    asks for, or of the list items and then of what follows the list. `score`: the critique's own.
    """
    items = [n for n, b in enumerate(critique) if b.kind == "item"]
    between = [n for n, b in enumerate(critique) if b.kind != "heading" and not _is_form(b)]
    said: dict[int, list[bool]] = {}
    if marks and len(marks) == len(between):
        said = {n: [mark] for n, mark in zip(between, marks, strict=True)}
    elif marks and items and len(marks) >= len(items):
        said = {n: [mark] for n, mark in zip(items, marks, strict=False)}
        if len(marks) > len(items) and items[-1] + 1 < len(critique):
            said[items[-1] + 1] = marks[len(items) :]
    out = list(critique)
    for i, n in enumerate(items):
        out[n] = replace(out[n], number=i + 1)
    for n in {*items, *said}:
        right = all(said.get(n) or [True])
        objects = claims_issue(out[n].text, score)
        mark = ("issue" if right else "invented") if objects else ("fine" if right else "wrong")
        out[n] = replace(out[n], mark=mark)
    return out
