"""What benchmarks/question.py measured, as claims that are decided, tables in Markdown, and a figure."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from benchmarks.runs import MISSING, interval, table
from nanov2.method.consensus import RULES

ENOUGH = 0.02  # a difference smaller than this is none
SEEDS = 3  # fewer decide nothing
OFTEN, SELDOM = 0.75, 0.25  # of an alarm: in time in that share of hacked runs, false in that of the others

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

    @property
    def asks(self) -> str:
        """Which arms and which figure decide."""
        against = f"`{self.b}`" if self.b else f"{self.than:g}"
        return f"{TITLES[self.figure]}: `{self.a}` − {against}"


FALSE, TRUE, REWARD = "labelled/false_accept_rate", "labelled/true_score", "labelled/verifier_reward"
GAP, QUALITY, PASS, FINAL = "labelled/hacking_gap", "labelled/critique_quality", "hard/pass_at_64", "final"
COLD = f"{TRUE}@T0"


def harder(figure: str) -> str:
    """The same figure of harder problems."""
    return figure.replace("labelled/", "hard/")


HARD_GAP, HARD_TRUE = harder(GAP), harder(TRUE)
TITLES = {
    FALSE: "perfect rewards that are wrong",
    TRUE: "true score",
    COLD: "true score, T = 0",
    REWARD: "reward",
    GAP: "reward − truth",
    QUALITY: "critique quality",
    PASS: "pass@64, harder problems",
    HARD_GAP: "reward − truth, harder problems",
    HARD_TRUE: "true score, harder problems",
    FINAL: "final true score",
    "judge_share": "judge's tokens for each of the generator's",
    "kept_share": "share of groups with variance",
    "right": "proofs labelled rightly",
}
MAXPROOF, PESSIMISTIC, STV, SEVA = "2606.13473", "2511.21522", "2605.30290", "2606.29713"
V2, DEBATE, USERS, RUBRICS, OURS = "2511.22570", "a debate", "users", "2605.12474", "nanov2"
CLAIMS = (
    *(
        claim
        for judge, who in (("base", "the base"), ("weak", "a weak base"))
        for claim in (
            Claim(f"Most perfect rewards by {who} are wrong", MAXPROOF, FALSE, f"mean-{judge}", than=0.5),
            Claim("Rewards rise", MAXPROOF, REWARD, f"mean-{judge}", f"mean-{judge} start"),
            Claim(
                "and proofs do not get better",
                MAXPROOF,
                TRUE,
                f"mean-{judge}",
                f"mean-{judge} start",
                none=True,
            ),
            Claim(
                "The minimum lowers false accepts", MAXPROOF, FALSE, f"min-{judge}", f"mean-{judge}", sign=-1
            ),
            Claim("and raises the true score", MAXPROOF, TRUE, f"min-{judge}", f"mean-{judge}"),
        )
    ),
    Claim(
        "Half the tokens on the verifier narrow the gap", OURS, HARD_GAP, "trained-weak", "mean-weak", sign=-1
    ),
    Claim("and raise the true score", OURS, HARD_TRUE, "trained-weak", "mean-weak"),
    Claim("A verifier with fewer false accepts mends it", MAXPROOF, TRUE, "mean-v2", "mean-base"),
    Claim("Rejecting if any look does is better, in training", PESSIMISTIC, TRUE, "min-v2", "mean-v2"),
    Claim("at fewer tokens", PESSIMISTIC, "judge_share", "min-v2-stop", "mean-v2", sign=-1),
    Claim("and in labels, against majority", PESSIMISTIC, "right", "label worst", "label majority"),
    Claim("RL on scores does not help refinement", STV, FINAL, "base by v1", "base by base", none=True),
    Claim("nor do meta-verifiers", STV, FINAL, "base by v2", "base by no-gate", none=True),
    Claim("A solution-aware critic does", STV, FINAL, "base by aware", "base by v1"),
    Claim("and not by rejection alone", STV, FINAL, "base by aware", "base by unaware"),
    Claim("Credit per finding makes better critiques", SEVA, QUALITY, "finding", "v1"),
    Claim("and leaves more groups with variance", SEVA, "kept_share", "finding", "v1"),
    Claim(
        "R_meta in the verifier's training narrows reward − truth",
        V2,
        GAP,
        "mean-v2",
        "mean-no-gate",
        sign=-1,
    ),
    Claim("and on harder problems", V2, HARD_GAP, "mean-v2", "mean-no-gate", sign=-1),
    Claim(
        "A gate that sees misses narrows it, harder problems",
        OURS,
        HARD_GAP,
        "mean-misses",
        "mean-v2",
        sign=-1,
    ),
    Claim("v2 as judge makes better generators than v1", V2, TRUE, "mean-v2", "mean-v1"),
    Claim("The gate as judge rule narrows reward − truth", V2, GAP, "gate-v2", "mean-v2", sign=-1),
    Claim("RL teaches nothing new: pass@64", DEBATE, PASS, "run", "base", none=True),
    Claim("The base at temperature 0 is as good", DEBATE, COLD, "run", "base", none=True),
    Claim("Prompts by last variance raise the true score", USERS, TRUE, "curriculum", "mean-v2"),
)
ALARM = "self-internalisation gap"  # the one that is claimed to tell when a verifier stops helping

HARDER = {f"{TITLES[name]}, harder": harder(name) for name in (TRUE, GAP, FALSE)}
COLUMNS = {TITLES[name]: name for name in (TRUE, COLD, GAP, FALSE)} | HARDER | {"tokens": "tokens"}
DRAWN = {title: COLUMNS[title] for title in (TITLES[TRUE], *HARDER)} | {"tokens, thousands": "tokens"}
THOUSANDS = ("tokens",)  # figures that are drawn in thousands
KEPT = {*TITLES, *COLUMNS.values()}  # the figures of phases that question.json holds, on harder problems too
KEPT |= {harder(name) for name in KEPT}


def column(seeds: Seeds, arm: str, figure: str) -> list[float]:
    """An arm's figure, of each seed that has it."""
    return [s[arm][figure] for s in seeds if figure in s.get(arm, {})]


def decide(claim: Claim, seeds: Seeds) -> dict:
    """The differences within seeds, with their interval and signs, and the verdict.

    "confirmed": the interval lies on the claimed side of 0, and so does every seed. "refuted": the interval
    holds no more than ENOUGH of what is claimed. Else, and with fewer than SEEDS seeds, "undecided".
    """
    a, b = claim.a, claim.b
    both = [s for s in seeds if claim.figure in s.get(a, {}) and (not b or claim.figure in s.get(b, {}))]
    found = [s[a][claim.figure] - (s[b][claim.figure] if b else claim.than) for s in both]
    row = {"claim": claim.says, "source": claim.source, "asks": claim.asks, "seeds": len(found)}
    if not found:
        return row | {"verdict": MISSING}
    mean, low, high = interval(found)
    least, most = sorted((claim.sign * low, claim.sign * high))
    alike = sum(claim.sign * x > 0 for x in found)
    verdict = "undecided"
    if len(found) >= SEEDS and least > 0 and alike == len(found):
        verdict = "confirmed"
    elif len(found) >= SEEDS and most < ENOUGH:
        verdict = "refuted"
    if claim.none:
        verdict = {"confirmed": "refuted", "refuted": "confirmed"}.get(verdict, verdict)
    return (
        row
        | {"difference": mean, "low": low, "high": high, "above": sum(x > 0 for x in found)}
        | {"verdict": verdict}
    )


def decide_alarm(alarms: list[dict]) -> dict:
    """Whether ALARM tells when a weak verifier stops helping: in time in most of the runs that were hacked,
    and seldom false in the others; of each kind at least SEEDS."""
    row = {
        "claim": "An alarm without truth tells when a weak verifier stops helping",
        "source": RUBRICS,
        "asks": f"{ALARM} against the onset of hacking, all generator arms",
    }
    found = next((a for a in alarms if a["alarm"] == ALARM), None)
    if not found or not found["hacked"] + found["not hacked"]:
        return row | {"found": "–", "seeds": 0, "verdict": MISSING}
    hacked, calm = found["hacked"], found["not hacked"]
    told = (
        f"in time in {found['in time']} of {hacked} hacked runs, false in {found['false']} of {calm} others"
    )
    verdict = "undecided"
    if min(hacked, calm) >= SEEDS:
        useful = found["in time"] >= OFTEN * hacked and found["false"] <= SELDOM * calm
        useless = found["in time"] < 0.5 * hacked or found["false"] > 0.5 * calm
        verdict = "confirmed" if useful else "refuted" if useless else verdict
    return row | {"found": told, "seeds": hacked + calm, "verdict": verdict}


def shown(values: list[float], digits: int = 3) -> str:
    """Mean and interval."""
    if not values:
        return MISSING
    mean, low, high = interval(values)
    around = f" [{low:,.{digits}f}, {high:,.{digits}f}]" if len(values) > 1 else ""
    return f"{mean:,.{digits}f}{around}"


def known_table(columns: list[str], rows: list[list[str]]) -> str:
    """A table of the rows of which a seed is there; the column "seeds" says how many."""
    at = columns.index("seeds")
    known = [row for row in rows if row[at] != "0"]
    return table(columns, known) if known else f"{MISSING.capitalize()}.\n"


def counted(seeds: Seeds, arm: str) -> str:
    """How many seeds have an arm."""
    return str(sum(arm in s for s in seeds))


def arm_table(seeds: Seeds, arms: dict[str, str]) -> str:
    """A line an arm; `arms` are names and titles."""

    def cell(arm: str, figure: str) -> str:
        known = column(seeds, arm, figure)
        if not known and any(arm in s for s in seeds):
            return "none"  # such as no perfect reward at all
        return shown(known, 0 if figure == "tokens" else 3)

    rows = [
        [f"`{a}`: {title}", counted(seeds, a), *(cell(a, f) for f in COLUMNS.values())]
        for a, title in arms.items()
    ]
    drawn = "\n![The arms, a dot a seed](question.svg)\n" if any(row[1] != "0" for row in rows) else ""
    return known_table(["arm", "seeds", *COLUMNS], rows) + drawn


def critic_table(seeds: Seeds, revisers: tuple[str, ...], critics: tuple[str, ...]) -> str:
    """A line a reviser and critic of refinement."""
    figures = {"draft": 3, "final": 3, "hard/draft": 3, "hard/final": 3, "proofs": 2, "tokens": 0}
    rows = []
    for reviser in revisers:
        for critic in critics:
            arm = f"{reviser} by {critic}"
            cells = [shown(column(seeds, arm, f), d) for f, d in figures.items()]
            rows.append([reviser, critic, counted(seeds, arm), *cells])
    return known_table(["reviser", "critic", "seeds", *figures], rows)


def label_table(seeds: Seeds) -> str:
    """A line a rule of labels, on the same critiques of the same proofs."""
    figures = ("precision", "coverage", "right")
    rows = []
    for rule in RULES:
        arm = f"label {rule}"
        rows.append([rule, counted(seeds, arm), *(shown(column(seeds, arm, f)) for f in figures)])
    return known_table(["rule", "seeds", "precision", "coverage", TITLES["right"]], rows)


def claim_table(claims: list[dict], alarms: list[dict]) -> str:
    """A line a claim, with its verdict."""
    rows = []
    for c in claims:
        found = "–"
        if "difference" in c:
            around = f" [{c['low']:+.3f}, {c['high']:+.3f}]" if c["seeds"] > 1 else ""
            found = f"{c['difference']:+.3f}{around}, above 0 in {c['above']} of {c['seeds']}"
        rows.append([c["claim"], c["source"], c["asks"], found, f"**{c['verdict']}**"])
    a = decide_alarm(alarms)
    rows.append([a["claim"], a["source"], a["asks"], a["found"], f"**{a['verdict']}**"])
    return table(["claim", "by", "what decides it", "difference, 95% interval, seeds", "verdict"], rows)


def alarm_table(alarms: list[dict]) -> str:
    """A line an alarm."""
    if not any(a["hacked"] + a["not hacked"] for a in alarms):
        return f"{MISSING.capitalize()}.\n"
    rows = []
    for a in alarms:
        lead = "–" if a["lead"] is None else f"{a['lead']:g}"
        of = f"{a['in time']} of {a['hacked']}", f"{a['false']} of {a['not hacked']}"
        rows.append([a["alarm"], of[0], str(a["first"]), lead, of[1]])
    return table(["alarm", "in time, of hacked", "rang first", "lead, steps", "false, of not hacked"], rows)


def drawing(seeds: Seeds, arms: dict[str, str]) -> str:
    """SVG: a panel a figure, a line an arm that has figures; seeds as dots, means as bars, intervals."""
    arms = {name: title for name, title in arms.items() if any(name in s for s in seeds)}
    row, left, width = 24, 300, 230
    height = 60 + row * len(arms)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width * len(DRAWN) + 20} {height}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for i, title in enumerate(arms.values()):
        out.append(f'<text x="{left - 12}" y="{54 + row * i}" text-anchor="end">{escape(title)}</text>')
    for p, (title, figure) in enumerate(DRAWN.items()):
        unit = 1000 if figure in THOUSANDS else 1
        found = [[x / unit for x in column(seeds, arm, figure)] for arm in arms]
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
        if x == 0 or abs(at(x) - at(0)) > 24:  # room for both numbers
            out.append(
                f'<text x="{at(x):.1f}" y="{height - 8}" text-anchor="middle" fill="#666">{x:.3g}</text>'
            )
    for i, xs in enumerate(found):
        y = 50 + row * i
        if not xs:
            continue
        mean, a, b = interval(xs)
        if len(xs) > 1:
            ends = f'x1="{at(a):.1f}" x2="{at(b):.1f}" y1="{y}" y2="{y}"'
            out.append(f'<line {ends} stroke="#1f4e8c" stroke-width="2"/>')
        out.append(f'<rect x="{at(mean) - 2:.1f}" y="{y - 6}" width="4" height="12" fill="#1f4e8c"/>')
        out += [f'<circle cx="{at(x):.1f}" cy="{y}" r="3" fill="#d9822b"/>' for x in xs]
    return out
