"""What the report shows, as plain values: each view is made by one small function from a run's files."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import shlex
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from nanov2.errors import InputError
from nanov2.pages import legend
from nanov2.pages.cards import Sample, keep, sample_view
from nanov2.pages.charts import Chart, Range, Series, draw
from nanov2.pages.read import Figure, Phase, number
from nanov2.run.cli import DEFAULT_CONFIG
from nanov2.run.config import load_config

# --- figures and changes -----------------------------------------------------------------------------


def show(x: float | None, signed: bool = False) -> str:
    """A figure with three decimals and a true minus sign."""
    return "" if x is None else f"{x:{'+' if signed else ''}.3f}".replace("-", "−")


@dataclass(frozen=True)
class Change:
    """A figure before and after, at one temperature, and whether their difference is more than chance."""

    temperature: str
    before: Figure | None
    after: Figure | None
    difference: float | None
    half: float | None  # half the width of the difference's 95% interval
    verdict: str  # gained, lost, chance, moved (neither way is better), or empty where nothing is compared

    @property
    def gain(self) -> str:
        if self.difference is None:
            return ""
        return f"{show(self.difference, True)} ± {show(self.half)}"


SAID = {
    "gained": "✓ better",
    "lost": "✗ worse",
    "chance": "within chance",
    "moved": "moved",
    "": "–",
}


def change(
    before: Figure | None,
    after: Figure | None,
    better: int,
    temperature: str = "1",
    paired: Figure | None = None,
) -> Change:
    """The change between two figures. `paired`: the difference item by item, where it was measured.

    Otherwise the half widths of the two intervals add in quadrature, as for independent samples; both
    measurements are of the same items, so the true interval is narrower as a rule.
    """
    if before is None or after is None:
        return Change(temperature, before, after, None, None, "")
    if paired:
        difference, half = paired.value, paired.half
    else:
        difference, half = after.value - before.value, math.hypot(before.half, after.half)
    if abs(difference) <= half:
        verdict = "chance"
    elif better == legend.NEITHER:
        verdict = "moved"
    else:
        verdict = "gained" if difference * better > 0 else "lost"
    return Change(temperature, before, after, difference, half, verdict)


@dataclass(frozen=True)
class FigureRow:
    """A held-out figure with what was measured of it at each temperature."""

    name: str
    title: str
    sentence: str
    changes: list[Change]


def temperatures(*found: dict[str, Figure]) -> list[str]:
    """The temperatures that figures were measured at, 1 first."""
    seen = {legend.parse_name(name).temperature for figures in found for name in figures}
    return sorted(seen, key=lambda t: (t != "1", -float(t))) or ["1"]


def at(figures: dict[str, Figure], plain: str, temperature: str) -> Figure | None:
    """A figure at a temperature; the evaluation's own is written without one, or as @T1."""
    if temperature == "1" and plain in figures:
        return figures[plain]
    return figures.get(f"{plain}@T{temperature}")


def figure_rows(phase: Phase) -> list[FigureRow]:
    """All figures of a phase, each once, its temperatures side by side."""
    rows = []
    for plain in dict.fromkeys(legend.parse_name(n).plain for n in (*phase.after, *phase.before)):
        said = legend.explain(plain)
        changes = [
            change(at(phase.before, plain, t), at(phase.after, plain, t), said.better, t)
            for t in temperatures(phase.before, phase.after)
        ]
        rows.append(FigureRow(plain, said.title, said.sentence, changes))
    return rows


@dataclass(frozen=True)
class Headline:
    """One row of the first table: a step of the cycle and the figure that it is there for."""

    step: str
    figure: str
    sentence: str
    changes: list[Change]


USUAL, HARD = ("labelled", "held_out"), ("hard", "held_out_hard", "labelled", "held_out")
STEPS = (  # step, phase, sets in order of preference, figure
    ("1B verifier v1", "verifier", USUAL, "score_accuracy"),
    ("1B verifier v1", "verifier", USUAL, "critique_quality"),
    ("1C meta-verifier", "meta", USUAL, "meta_accuracy"),
    ("1D verifier v1 → v2", "verifier2", USUAL, "critique_quality"),
    ("1D verifier v1 → v2", "verifier2", USUAL, "invented_issue_rate"),
    ("1D verifier v1 → v2", "verifier2", USUAL, "score_accuracy"),
    ("2 generator", "generator", USUAL, "true_score"),
    ("2 generator", "generator", HARD, "true_score"),
    ("2 generator", "generator", HARD, "hacking_gap"),
    ("3 self-verifying generator", "selfverify", HARD, "final_true_score"),
)
WITHIN = (  # step, phase, first figure, last figure, difference item by item: of one measurement
    ("3 draft → final proof", "selfverify", "draft_true_score", "final_true_score", "revision_gain"),
    ("4 one critique → label", "autolabel", "single_critique_agreement", "label_agreement", ""),
)
LATER = (  # phase, figure, what is compared, and whether with the lap before: its verifier had other proofs
    ("verifier2", "score_accuracy", "verifier v{new}, start → end", False),
    ("generator", "true_score", "generator of lap {before} → lap {lap}", True),
    ("selfverify", "final_true_score", "self-verification of lap {before} → lap {lap}", True),
)


def in_set(figures: dict[str, Figure], sets: tuple[str, ...], figure: str) -> str | None:
    """The full name of a figure in the first of the sets that has it."""
    return next((f"{s}/{figure}" for s in sets if any(n.startswith(f"{s}/{figure}") for n in figures)), None)


def headline(phases: list[Phase]) -> list[Headline]:
    """What each step changed, with intervals; rows of what is not measured yet are left out."""
    by_key = {p.key: p for p in phases}
    rows: list[Headline] = []

    def add(step: str, name: str, changes: list[Change]) -> None:
        said = legend.explain(name)
        rows.append(Headline(step, said.title, said.sentence, [c for c in changes if c.after]))

    def steps_of(lap: int) -> None:
        for step, phase, sets, figure in STEPS:
            p = by_key.get((phase, lap))
            name = p and in_set(p.after, sets, figure)
            if name and lap == 1:
                # v2 is compared with v1, not with the base that its training starts from
                before = p.beside.get("verifier v1", p.before)
                better, at_each = legend.explain(name).better, temperatures(before, p.after)
                changes = [change(at(before, name, t), at(p.after, name, t), better, t) for t in at_each]
                add(step, name, changes)
        for step, phase, first, last, gain in WITHIN:
            p = by_key.get((phase, lap))
            start, end = (p and in_set(p.after, HARD, f) for f in (first, last))
            if start and end and lap == 1:
                paired = in_set(p.after, HARD, gain) if gain else None
                changes = [
                    change(at(p.after, start, t), at(p.after, end, t), 1, t, at(p.after, paired or "", t))
                    for t in temperatures(p.after)
                ]
                add(step, end, changes)

    steps_of(1)
    for lap in sorted({p.lap for p in phases if p.lap > 1}):
        for phase, figure, compared, with_last in LATER:
            p, q = by_key.get((phase, lap)), by_key.get((phase, lap - 1))
            name = p and in_set(p.after, HARD, figure)
            if name and q:
                before = q.after if with_last else p.before
                add(
                    compared.format(before=lap - 1, lap=lap, new=lap + 1),
                    name,
                    [
                        change(at(before, name, t), at(p.after, name, t), 1, t)
                        for t in temperatures(p.after, before)
                    ],
                )
    return [r for r in rows if r.changes]


def ranges(rows: list[Headline]) -> list[Range]:
    """The headline at temperature 1 as a picture's rows."""
    return [
        Range(f"{r.step}: {r.figure}", c.before.value, c.after.value, c.after.low, c.after.high)
        for r in rows
        for c in r.changes[:1]
        if c.before and c.after
    ]


# --- curves ------------------------------------------------------------------------------------------


def line(metrics: list[dict], name: str) -> list[tuple[float, float]]:
    return [(m["step"], m[name]) for m in metrics if number(m.get(name)) is not None]


def reward_and_truth(metrics: list[dict]) -> tuple[list[Series], bool]:
    """Reward, truth and their gap; whether the first two lines are those whose gap is to be shaded."""
    rewards, truths = line(metrics, "reward"), dict(line(metrics, "truth"))
    both = [(x, y - truths[x]) for x, y in rewards if x in truths]
    out = [Series("reward", rewards)]
    if both:
        out += [Series("true score", list(truths.items())), Series("reward − truth", both)]
    for name in ("truth_quality", "truth_draft", "meta"):
        out.append(Series(legend.entry(name).title, line(metrics, name)))
    return [s for s in out if s.points], bool(both)


VALIDATION = (
    (
        "reward and truth on validation problems",
        ("verifier_reward", "true_score", "final_true_score", "hacking_gap", "false_accept_rate"),
    ),
    (
        "validation",
        ("score_accuracy", "critique_quality", "invented_issue_rate", "missed_issue_rate", "meta_accuracy",
         "draft_true_score", "final_true_score"),
    ),
)  # fmt: skip


def validation(phase: Phase, figures: tuple[str, ...]) -> list[Series]:
    """Validation figures over the steps of training, each with the band of its 95% intervals."""
    found: dict[str, list[tuple[float, Figure]]] = defaultdict(list)
    for step, measured in phase.curve:
        for name, f in measured.items():
            parts = legend.parse_name(name)
            if parts.figure in figures and not parts.rest:
                at_t = "" if parts.temperature == "1" else f", T = {parts.temperature}"
                found[legend.entry(parts.figure).title + at_t].append((step, f))
    return [
        Series(title, [(x, f.value) for x, f in points], [(x, f.low, f.high) for x, f in points])
        for title, points in sorted(found.items())
    ]


def curves(phase: Phase) -> list[tuple[str, str, list[Series], bool]]:
    """Title, sentence, lines and whether to shade between the first two, for each chart of a phase."""
    series, gap = reward_and_truth(phase.metrics)
    drawn = [
        (
            "reward and truth in training" if gap else "reward in training",
            "The shaded area is what the reward gives beyond the truth." if gap else "",
            series,
            gap,
        )
    ]
    reward = legend.entry("verifier_reward").title
    rewarded = any(s.name == reward for s in validation(phase, ("verifier_reward",)))
    for title, figures in VALIDATION if rewarded else VALIDATION[1:]:
        more = () if rewarded else ("false_accept_rate",)  # else it is in the first of the two charts
        drawn.append((title, "Bands are 95% intervals.", validation(phase, (*figures, *more)), False))
    for name in (
        "false_accept",
        "self_false_accept",
        "entropy",
        "judge_spread",
        "self_gap",
        "length",
        "loss",
    ):
        said = legend.entry(name)
        drawn.append((said.title, said.sentence, [Series(said.title, line(phase.metrics, name))], False))
    return drawn


def phase_charts(phase: Phase, other: Phase | None = None, other_name: str = "") -> list[Chart]:
    """A phase's charts; with those of the other run's same phase in them where one is given."""
    theirs = {title: lines for title, _, lines, _ in curves(other)} if other else {}
    charts = []
    for title, sentence, lines, shaded in curves(phase):
        more = [Series(f"{s.name} ({other_name})", s.points) for s in theirs.get(title, [])]
        charts.append(draw(title, lines + more, sentence, shaded and not more))
    return [c for c in charts if c]


# --- costs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a phase took; None where the files do not say."""

    label: str
    anchor: str
    seconds: float | None
    steps: int
    tokens: float | None  # trained on or sampled, over all steps; of a phase without steps, all sampled
    memory_mb: float | None
    memory_is: str  # of what
    split: str  # where the time of the steps went


def cost(phase: Phase) -> Cost:
    total: dict[str, float] = defaultdict(float)
    rates: dict[str, list[float]] = defaultdict(list)
    for m in phase.metrics:
        for kind, value in m.get("seconds", {}).items():
            total[kind] += number(value) or 0
        for kind, value in m.get("tokens_per_second", {}).items():
            if number(value) is not None:
                rates[kind].append(value)
    everything = sum(total.values())
    parts = [
        f"{k} {v:,.0f} s ({v / everything:.0%})" for k, v in sorted(total.items(), key=lambda x: -x[1]) if v
    ]
    parts += [f"{k} {statistics.mean(v):,.0f} tokens/s" for k, v in rates.items()]
    tokens = [m["tokens"] for m in phase.metrics if number(m.get("tokens")) is not None]
    return Cost(
        phase.label,
        phase.anchor,
        phase.seconds,
        len(phase.metrics),
        sum(tokens) if tokens else phase.sampled or None,
        phase.memory_mb,
        "" if phase.memory_of == "phase" else "of the process so far",
        ", ".join(parts),
    )


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "unfinished"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def thousands(x: float | None) -> str:
    """A count in thousands or millions."""
    if x is None:
        return ""
    return f"{x / 1e6:.1f} M" if x >= 1e6 else f"{x / 1e3:.1f} k" if x >= 1e3 else f"{x:.0f}"


# --- phases ------------------------------------------------------------------------------------------


MOST_STEPS = 8  # of a phase, whose samples are shown


@dataclass(frozen=True)
class PhaseView:
    """A section of the report."""

    phase: Phase
    title: str
    cost: Cost
    temperatures: list[str]
    rows: list[FigureRow]
    charts: list[Chart]
    samples: list[Sample]
    left_out: int  # samples of the file that are not shown
    groups: list[tuple[int, str]]  # a prompt's completions by step


def phase_view(phase: Phase, other: Phase | None = None, other_name: str = "") -> PhaseView:
    kept = keep(phase.samples)
    steps = evenly(sorted({s["step"] for s in phase.by_step}), MOST_STEPS)
    shown = kept + [s for s in phase.by_step if s["step"] in steps]
    return PhaseView(
        phase,
        phase.title + (f" · lap {phase.lap}" if phase.lap > 1 else ""),
        cost(phase),
        temperatures(phase.before, phase.after),
        figure_rows(phase),
        phase_charts(phase, other, other_name),
        [sample_view(s, phase.folder) for s in shown],
        len(phase.samples) - len(kept),
        evenly(phase.groups, MOST_STEPS),
    )


def evenly(items: list, most: int) -> list:
    """At most so many of them, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


# --- settings ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    name: str
    value: str
    usual: str


def flat(tree: dict, prefix: str = "") -> dict[str, object]:
    """Nested settings as "section.field" → value."""
    out = {}
    for name, value in tree.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def settings_of(path: Path) -> dict[str, object]:
    return flat(json.loads(json.dumps(load_config(path).to_dict())))


def differing(settings: dict[str, object], usual: dict[str, object]) -> list[Setting]:
    """The settings that are not the usual ones; one that this version does not know is left out."""
    return [
        Setting(name, json.dumps(value, ensure_ascii=False), json.dumps(usual[name], ensure_ascii=False))
        for name, value in settings.items()
        if name in usual and usual[name] != value
    ]


@dataclass(frozen=True)
class Settings:
    differing: list[Setting]  # from the default run's
    command: str  # that makes the run again
    all: str  # every setting, as JSON


def settings_view(facts: dict) -> Settings:
    """What differs from the default run's settings, and a command that makes the run again."""
    tree = facts.get("config", {})
    mine, usual = flat(tree), settings_of(DEFAULT_CONFIG)
    known = {DEFAULT_CONFIG: usual}
    for path in sorted(DEFAULT_CONFIG.parent.glob("*.toml")):
        try:
            known.setdefault(path, settings_of(path))
        except InputError:
            continue
    nearest = min(known, key=lambda p: len(differing(mine, known[p])))
    flags = [] if nearest == DEFAULT_CONFIG else [f"--config=configs/{nearest.name}"]
    for s in differing(mine, known[nearest]):
        if s.value != "null":
            flags.append(shlex.quote(f"--{s.name}={s.value}"))
    ranks = number(facts.get("ranks")) or 1
    start = f"torchrun --nproc-per-node={ranks:.0f} train.py" if ranks > 1 else "python train.py"
    name = shlex.quote(f"--dir=runs/{facts.get('name', 'again')}-again")
    command = " ".join([start, "--phase=flywheel", *flags, name])
    return Settings(differing(mine, usual), command, json.dumps(tree, indent=1, ensure_ascii=False))


# --- downloads ---------------------------------------------------------------------------------------


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def figures_csv(runs: dict[str, list[Phase]]) -> str:
    """Every held-out figure of the runs as a CSV file in a data URI."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["run", "phase", "lap", "when", "step", "set", "figure", "rest", "temperature",
                  "value", "low", "high", "n"])  # fmt: skip
    for run, phases in runs.items():
        for p in phases:
            measured = [("before", "", p.before), ("after", "", p.after)]
            measured += [("validation", str(step), figures) for step, figures in p.curve]
            for when, step, figures in measured:
                for name, f in figures.items():
                    at_ = legend.parse_name(name)
                    where = [at_.set, at_.figure, at_.rest, at_.temperature]
                    out.writerow([run, p.name, p.lap, when, step, *where, f.value, f.low, f.high, f.n])
    return data_uri("text/csv", text.getvalue().encode())


def legend_rows(phases: list[Phase]) -> list[legend.Entry]:
    """The entries of all figures that these phases have, each once."""
    names = {legend.parse_name(n).figure for p in phases for n in (*p.before, *p.after)}
    names |= {n for p in phases for m in p.metrics[:1] for n in m if n in legend.FIGURES}
    order = {name: i for i, name in enumerate(legend.FIGURES)}
    return [
        legend.entry(n)
        for n in sorted(names, key=lambda n: (order.get(n, len(order)), n))
        if legend.entry(n).sentence
    ]


# --- several runs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """A held-out figure after training in two runs."""

    phase: str
    title: str
    here: Figure
    there: Figure
    change: Change


def comparison(phases: list[Phase], others: dict[tuple[str, int], Phase]) -> list[Compared]:
    """Every figure that both runs have, with the difference and whether it is clear."""
    return [
        Compared(p.label, said.title, f, theirs[name], change(f, theirs[name], said.better))
        for p in phases
        for theirs in [others[p.key].after if p.key in others else {}]
        for name, f in p.after.items()
        if name in theirs
        for said in [legend.explain(name)]
    ]


@dataclass(frozen=True)
class SeedRow:
    """A figure over several runs."""

    phase: str
    title: str
    sentence: str
    mean: str
    sd: str
    values: list[str]


def seed_rows(runs: list[list[Phase]]) -> list[SeedRow]:
    """Each figure after training: mean and standard deviation over the runs that have it, and each run."""
    by_run = [{p.key: p for p in phases} for phases in runs]
    rows = []
    for key in dict.fromkeys(p.key for phases in runs for p in phases):
        found = [r[key].after if key in r else {} for r in by_run]
        label = next(r[key].label for r in by_run if key in r)
        for name in dict.fromkeys(n for f in found for n in f):
            values = [f[name].value if name in f else None for f in found]
            there = [v for v in values if v is not None]
            sd = show(statistics.stdev(there)) if len(there) > 1 else ""
            said = legend.explain(name)
            rows.append(
                SeedRow(
                    label,
                    said.title,
                    said.sentence,
                    show(statistics.mean(there)),
                    sd,
                    [show(v) for v in values],
                )
            )
    return rows


def seed_headline(runs: list[list[Phase]]) -> list[SeedRow]:
    """The change of each headline figure: mean and standard deviation over the runs, and each run."""
    changes: dict[tuple[str, str], list[float | None]] = {}
    sentences = {}
    for n, phases in enumerate(runs):
        for row in headline(phases):
            for c in row.changes:
                if c.difference is not None:
                    figure = row.figure + ("" if c.temperature == "1" else f", T = {c.temperature}")
                    sentences[figure] = row.sentence
                    changes.setdefault((row.step, figure), [None] * len(runs))[n] = c.difference
    rows = []
    for (step, figure), values in changes.items():
        there = [v for v in values if v is not None]
        sd = show(statistics.stdev(there)) if len(there) > 1 else ""
        mean = show(statistics.mean(there), True)
        rows.append(SeedRow(step, figure, sentences[figure], mean, sd, [show(v, True) for v in values]))
    return rows


def mean_series(lines: list[list[tuple[float, float]]]) -> Series:
    """The mean of several lines at the steps that all have, with a band of one standard deviation."""
    at_step: dict[float, list[float]] = defaultdict(list)
    for points in lines:
        for x, y in points:
            at_step[x].append(y)
    points, band = [], []
    for x, ys in sorted(at_step.items()):
        if len(ys) == len(lines):
            mean, sd = statistics.mean(ys), statistics.stdev(ys) if len(ys) > 1 else 0.0
            points.append((x, mean))
            band.append((x, mean - sd, mean + sd))
    return Series("", points, band)


def seed_charts(runs: list[list[Phase]]) -> list[tuple[str, list[Chart]]]:
    """Phase → charts of means over the runs with bands of one standard deviation."""
    by_run = [{p.key: p for p in phases} for phases in runs]
    out = []
    for key in dict.fromkeys(p.key for phases in runs for p in phases):
        here = [r[key] for r in by_run if key in r]
        lines: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
        for p in here:
            for title, _, series, _ in curves(p):
                for s in series:
                    lines[title][s.name].append(s.points)
        charts = []
        for title, named in lines.items():
            means = [(name, mean_series(ls)) for name, ls in named.items() if len(ls) == len(here)]
            series = [Series(name, m.points, m.band) for name, m in means]
            charts.append(draw(title, series, "Means over the runs; bands are one standard deviation."))
        out.append((here[0].label, [c for c in charts if c]))
    return [(label, charts) for label, charts in out if charts]
