"""KaTeX within one page: its script, and its style with just the fonts that the page's formulas use."""

from __future__ import annotations

import base64
import re
from functools import cache
from pathlib import Path

KATEX = Path(__file__).parent / "judge_page"
ALWAYS = {"Main-Regular", "Math-Italic"}
FONTS = {  # what in a formula calls for further fonts
    r"\\(frac|dfrac|tfrac|binom|sqrt|sum|prod|int|left|right|[bB]igg?[lrm]?|begin|over|under|wide)": (
        "Size1-Regular", "Size2-Regular", "Size3-Regular", "Size4-Regular"),
    r"\\(mathbf|textbf|boldsymbol|bm|bf)": ("Main-Bold", "Math-BoldItalic", "Main-BoldItalic"),
    r"\\(textit|emph|it|mathit)": ("Main-Italic",),
    r"\\mathcal|\\cal": ("Caligraphic-Regular", "Caligraphic-Bold"),
    r"\\math(frak|scr)|\\frak": ("Fraktur-Regular", "Fraktur-Bold", "Script-Regular"),
    r"\\(mathsf|textsf|operatorname\*?\{\\sf)": ("SansSerif-Regular", "SansSerif-Bold", "SansSerif-Italic"),
    r"\\(mathtt|texttt|verb)": ("Typewriter-Regular",),
}  # fmt: skip
# Commands whose glyphs are in the fonts that are always there; any other may want the AMS symbols.
PLAIN = re.compile(
    r"\\(?:(?:le|ge|leq|geq|neq|ne|lt|gt|in|subset|subseteq|supset|mid|cdot|times|to|mapsto|implies|iff|land|lor"
    r"|neg|forall|exists|cup|cap|emptyset|equiv|pmod|bmod|pm|text|textbf|mathbf|mathcal|mathrm|boxed|frac|dfrac"
    r"|sqrt|sum|prod|int|left|right|ldots|cdots|dots|quad|qquad|infty|alpha|beta|gamma|delta|epsilon|varepsilon"
    r"|theta|lambda|mu|pi|rho|sigma|tau|phi|varphi|omega|Delta|Omega|binom|log|ln|exp|sin|cos|min|max|gcd"
    r"|begin|end)(?![a-zA-Z])|[^a-zA-Z])"
)


def fonts_of(formulas: str) -> set[str]:
    """The fonts that formulas use (at least; a few that they do not may be among them)."""
    fonts = set(ALWAYS)
    for pattern, names in FONTS.items():
        if re.search(pattern, formulas):
            fonts |= set(names)
    if "\\" in PLAIN.sub("", formulas):
        fonts.add("AMS-Regular")
    return fonts


def style(formulas: str) -> str:
    """KaTeX's style sheet with the fonts in it as data URIs; the other fonts' rules are left out."""
    wanted = fonts_of(formulas)

    def rule(m: re.Match) -> str:
        name = re.search(r"KaTeX_([\w-]+)\.woff2", m[0])
        if not name or name[1] not in wanted:
            return ""
        data = base64.b64encode((KATEX / f"fonts/KaTeX_{name[1]}.woff2").read_bytes()).decode()
        source = f'src:url(data:font/woff2;base64,{data}) format("woff2")'
        return re.sub(r"src:[^;}]+", lambda _: source, m[0])

    return re.sub(r"@font-face\s*\{[^}]*\}", rule, _read("katex.min.css"))


def script() -> str:
    return _read("katex.min.js")


@cache
def _read(name: str) -> str:
    return (KATEX / name).read_text(encoding="utf-8")
