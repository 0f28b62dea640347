"""What benchmarks/question.py measured, as claims that are decided, tables in Markdown, and a figure."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from html import escape

ENOUGH = 0.02  # a difference smaller than this is none
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t by degrees of freedom
MISSING = "not measured yet"

Seeds = list[dict[str, dict[str, float]]]  # of each seed: arm → figure → value


@dataclass(frozen=True)
class Claim:
    """What others say of a figure of arm `a` less that of arm `b` (without one: less `than`): that it is
    above 0; with `sign` = −1 below 0; with `none` that it is not above 0."""

    says: str
    source: str  # arXiv
    figure: str
    a: str
    b: str = ""
    than: float = 0.0
    sign: int = 1
    none: bool = False


FALSE, TRUE, FINAL = "labelled/false_accept_rate", "labelled/true_score", "final"
GAP, QUALITY, PASS = "labelled/hacking_gap", "labelled/critique_quality", "hard/pass_at_64"
MAXPROOF, PESSIMISTIC, STV, SEVA = "2606.13473", "2511.21522", "2605.30290", "2606.29713"
CLAIMS = (
    Claim("most perfect rewards of a weak verifier are wrong", MAXPROOF, FALSE, "mean-base", than=0.5),
    Claim(
        "the minimum lowers false accepts, base as judge", MAXPROOF, FALSE, "min-base", "mean-base", sign=-1
    ),
    Claim("the minimum raises the true score, base as judge", MAXPROOF, TRUE, "min-base", "mean-base"),
    Claim("the minimum raises the true score, v2 as judge", PESSIMISTIC, TRUE, "min-v2", "mean-v2"),
    Claim("and takes fewer tokens", PESSIMISTIC, "judge_share", "min-v2-stop", "mean-v2", sign=-1),
    Claim("a meta-verifier does not help refinement", STV, FINAL, "refine v2", "refine no-gate", none=True),
    Claim("a solution-aware critic does", STV, FINAL, "refine aware", "refine v1"),
    Claim("and not by rejection alone", STV, FINAL, "refine aware", "refine unaware"),
    Claim("credit per finding makes better critiques", SEVA, QUALITY, "finding", "v1"),
    Claim("and leaves more groups with variance", SEVA, "kept_share", "finding", "v1"),
    Claim("the gate narrows reward − truth, v2 as judge", "2511.22570", GAP, "gate-v2", "mean-v2", sign=-1),
    Claim("RL teaches nothing new: pass@64", "a debate", PASS, "run", "base", none=True),
    Claim("prompts by last variance raise the true score", "users", TRUE, "curriculum", "mean-v2"),
)

COLUMNS = {
    "true score": TRUE,
    "true score, T = 0": f"{TRUE}@T0",
    "reward − truth": "labelled/hacking_gap",
    "false accepts": FALSE,
    "tokens": "tokens",
}
DRAWN = ("true score", "reward − truth", "false accepts")


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and its 95% interval by Student's t; of one value the interval is everything."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return mean, -math.inf, math.inf
    half = T95[min(n - 2, len(T95) - 1)] * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


def column(seeds: Seeds, arm: str, figure: str) -> list[float]:
    """An arm's figure, of each seed that has it."""
    return [s[arm][figure] for s in seeds if figure in s.get(arm, {})]


def decide(claim: Claim, seeds: Seeds) -> dict:
    """The difference within seeds, with its interval, and the verdict: "confirmed", "refuted" where there is
    no more than ENOUGH of what is claimed, else "undecided"."""
    a, b = claim.a, claim.b
    both = [s for s in seeds if claim.figure in s.get(a, {}) and (not b or claim.figure in s.get(b, {}))]
    found = [s[a][claim.figure] - (s[b][claim.figure] if b else claim.than) for s in both]
    row = {"claim": claim.says, "source": claim.source, "figure": claim.figure, "seeds": len(found)}
    if not found:
        return row | {"verdict": MISSING}
    mean, low, high = interval(found)
    least, most = sorted((claim.sign * low, claim.sign * high))
    verdict = "confirmed" if least > 0 else "refuted" if most < ENOUGH else "undecided"
    if claim.none:
        verdict = {"confirmed": "refuted", "refuted": "confirmed"}.get(verdict, verdict)
    return row | {"difference": mean, "low": low, "high": high, "verdict": verdict}


def shown(values: list[float], digits: int = 3) -> str:
    """Mean and interval."""
    if not values:
        return MISSING
    mean, low, high = interval(values)
    around = f" [{low:,.{digits}f}, {high:,.{digits}f}]" if len(values) > 1 else ""
    return f"{mean:,.{digits}f}{around}"


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def arm_table(seeds: Seeds, arms: dict[str, str]) -> str:
    """A line an arm; `arms` are names and titles."""

    def cell(arm: str, figure: str) -> str:
        known = column(seeds, arm, figure)
        if not known and any(arm in s for s in seeds):
            return "none"  # such as no perfect reward at all
        return shown(known, 0 if figure == "tokens" else 3)

    rows = [[f"`{a}`: {title}", *(cell(a, f) for f in COLUMNS.values())] for a, title in arms.items()]
    return table(["arm", *COLUMNS], rows)


def critic_table(seeds: Seeds, critics: list[str]) -> str:
    """A line a critic of refinement."""
    figures = {"draft": 3, "final": 3, "proofs": 2, "tokens": 0}
    rows = [[c, *(shown(column(seeds, f"refine {c}", f), d) for f, d in figures.items())] for c in critics]
    return table(["critic", *figures], rows)


def claim_table(claims: list[dict]) -> str:
    """A line a claim, with its verdict."""
    rows = []
    for c in claims:
        known = "difference" in c and c["seeds"] > 1
        found = f"{c['difference']:+.3f} [{c['low']:+.3f}, {c['high']:+.3f}]" if known else "–"
        rows.append([c["claim"], c["source"], found, str(c["seeds"]), f"**{c['verdict']}**"])
    return table(["claim", "by", "difference, 95% interval", "seeds", "verdict"], rows)


def alarm_table(alarms: list[dict]) -> str:
    """A line an alarm."""
    rows = []
    for a in alarms:
        lead = "–" if a["lead"] is None else f"{a['lead']:g}"
        of = f"{a['in time']} of {a['hacked']}", f"{a['false']} of {a['not hacked']}"
        rows.append([a["alarm"], of[0], str(a["first"]), lead, of[1]])
    return table(["alarm", "in time, of hacked", "rang first", "lead, steps", "false, of not hacked"], rows)


def drawing(seeds: Seeds, arms: dict[str, str]) -> str:
    """A panel a figure, a line an arm: each seed a dot, the mean a bar with its interval. SVG."""
    row, left, width = 24, 300, 190
    height = 60 + row * len(arms)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width * len(DRAWN) + 20} {height}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for i, title in enumerate(arms.values()):
        out.append(f'<text x="{left - 12}" y="{54 + row * i}" text-anchor="end">{escape(title)}</text>')
    for p, title in enumerate(DRAWN):
        found = [column(seeds, arm, COLUMNS[title]) for arm in arms]
        out += panel(title, found, left + width * p + 10, width - 40, height, row)
    return "\n".join([*out, "</svg>"]) + "\n"


def panel(
    title: str, found: list[list[float]], left: float, width: float, height: int, row: int
) -> list[str]:
    """One figure's dots and bars, at the same heights in every panel."""
    known = [x for xs in found for x in xs]
    low, high = min([0.0, *known]), max([0.1, *known])

    def at(x: float) -> float:
        return left + width * (min(max(x, low), high) - low) / (high - low)

    out = [f'<text x="{left}" y="22" font-weight="bold">{escape(title)}</text>']
    for x in sorted({low, 0.0, high}):
        out.append(f'<line x1="{at(x):.1f}" x2="{at(x):.1f}" y1="34" y2="{height - 22}" stroke="#ddd"/>')
        out.append(f'<text x="{at(x):.1f}" y="{height - 8}" text-anchor="middle" fill="#666">{x:.2g}</text>')
    for i, xs in enumerate(found):
        y = 50 + row * i
        out += [f'<circle cx="{at(x):.1f}" cy="{y}" r="3" fill="#9bb8d8"/>' for x in xs]
        if xs:
            mean, a, b = interval(xs)
            ends = f'x1="{at(a):.1f}" x2="{at(b):.1f}" y1="{y}" y2="{y}"'
            if len(xs) > 1:
                out.append(f'<line {ends} stroke="#1f4e8c" stroke-width="2"/>')
            out.append(f'<rect x="{at(mean) - 2:.1f}" y="{y - 6}" width="4" height="12" fill="#1f4e8c"/>')
    return out
