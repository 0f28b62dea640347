"""report.html and report.json of a run folder: what each step gained, measured against the truth.

    python -m nanov2 report runs/proofworld [picture.svg]
    python -m nanov2 report runs/proofworld --compare runs/other     # both in the first one's page

One self-contained page that opens from disk: a first screen with the headline figures, then a section
per phase with curves, tables and real samples, which explore.js filters, follows through phases and laps,
and reads values off. Everything shown is escaped, and the page may run no script but that one. An
unfinished run shows what is there.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import sys
from html import escape
from pathlib import Path

from nanov2.errors import InputError, as_written
from nanov2.pages.cards import sample_card
from nanov2.pages.charts import chart, dumbbells
from nanov2.records import write_atomically
from nanov2.run.folder import PHASES

MAX_SAMPLES = 60  # of a phase
CURVES = {  # what is drawn of metrics.jsonl, if it is there
    "reward and truth": ("reward", "truth", "truth_quality", "truth_draft", "meta"),
    "entropy": ("entropy",),
    "loss": ("loss",),
}


def read_json(path: Path, default):
    try:
        return json.loads(path.read_bytes()) if path.is_file() else default
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path}: not valid JSON: {e}") from e


def read_lines(path: Path) -> list[dict]:
    """JSON lines; a last one that is still being written is left out."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    try:
        return [json.loads(line) for line in lines if line.endswith(b"\n")]
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path}: not lines of JSON: {e}") from e


def collect(run: Path) -> list[dict]:
    """Every phase that has a folder, in the order of the cycle."""
    laps = [(1, run)] + [
        (int(p.name[3:]), p)
        for p in sorted(run.glob("lap*"), key=lambda p: int(p.name[3:]) if p.name[3:].isdigit() else 0)
        if p.name[3:].isdigit()
    ]
    phases = []
    for lap, folder in laps:
        for name in PHASES:
            here = folder / name
            if here.is_dir():
                done = read_json(here / "phase.json", {})
                figures = read_json(here / "eval.json", {"before": {}, "after": {}, "curve": []})
                phases.append(
                    {
                        "phase": name,
                        "lap": lap,
                        "folder": str(here.relative_to(run)),
                        "title": done.get("title", name),
                        "seconds": done.get("seconds"),
                    }
                    | {k: done.get(k, []) for k in ("notes", "tables")}
                    | figures
                    | {
                        "metrics": read_lines(here / "metrics.jsonl"),
                        "samples": read_lines(here / "samples.jsonl"),
                    }
                )
    return phases


def headline(phases: list[dict]) -> list[dict]:
    """The one figure of each step that the method promises, and whether the promise is kept."""
    at = {(p["phase"], p["lap"]): p for p in phases}

    def value(phase: str, lap: int, metric: str, when: str = "after") -> float | None:
        return at.get((phase, lap), {}).get(when, {}).get(metric, {}).get("value")

    rows = []

    def row(step: str, metric: str, before, after, expectation: str, met) -> None:
        missing = before is None or after is None
        rows.append(
            {
                "step": step,
                "metric": metric,
                "before": before,
                "after": after,
                "expectation": expectation,
                "met": None if missing else met(before, after),
            }
        )

    def pair(phase: str, lap: int, metric: str) -> tuple:
        return value(phase, lap, metric, "before"), value(phase, lap, metric)

    def two(phase: str, first: str, last: str) -> tuple:
        return value(phase, 1, first), value(phase, 1, last)

    accuracy, quality = "labelled/score_accuracy", "labelled/critique_quality"
    better = "better than in the lap before"
    row(
        "1B verifier v1", "score accuracy", *pair("verifier", 1, accuracy),
        "+0.20 over the base", lambda b, a: a - b >= 0.2,
    )  # fmt: skip
    row(
        "1C meta-verifier", "quality accuracy", *pair("meta", 1, "labelled/meta_accuracy"),
        "≥ 0.90", lambda b, a: a >= 0.9,
    )  # fmt: skip
    row(
        "1D verifier v1 → v2", "critique quality", *pair("verifier2", 1, quality),
        "≥ 0.95 and +0.08 (the paper: 0.85 → 0.96)", lambda b, a: a >= 0.95 and a - b >= 0.08,
    )  # fmt: skip
    row(
        "1D verifier v1 → v2", "score accuracy", *pair("verifier2", 1, accuracy),
        "not lower (0.01)", lambda b, a: a - b >= -0.01,
    )  # fmt: skip
    row(
        "2 base → generator", "true score", *pair("generator", 1, "labelled/true_score"),
        "≥ 0.80 from < 0.45", lambda b, a: a >= 0.8 and b < 0.45,
    )  # fmt: skip
    row(
        "2 base → generator", "reward − truth", *pair("generator", 1, "labelled/hacking_gap"),
        "< 0.05", lambda b, a: a < 0.05,
    )  # fmt: skip
    row(
        "3 draft → final proof", "true score, harder problems",
        *two("selfverify", "hard/draft_true_score", "hard/final_true_score"),
        "+0.05", lambda b, a: a - b >= 0.05,
    )  # fmt: skip
    row(
        "4 one critique → consensus", "agreement with the expert",
        *two("autolabel", "hard/single_critique_agreement", "hard/label_agreement"),
        "≥ 0.97 at coverage ≥ 0.80",
        lambda b, a: a >= 0.97 and a > b and (value("autolabel", 1, "hard/label_coverage") or 0) >= 0.8,
    )  # fmt: skip
    for lap in sorted({p["lap"] for p in phases if p["lap"] > 1}):
        row(
            f"lap {lap} verifier", "score accuracy, harder proofs",
            *pair("verifier2", lap, "hard/score_accuracy"), better, lambda b, a: a > b,
        )  # fmt: skip
        for phase, metric in (("generator", "hard/true_score"), ("selfverify", "hard/final_true_score")):
            row(
                f"lap {lap} {phase}", "true score, harder problems",
                value(phase, lap - 1, metric), value(phase, lap, metric), better, lambda b, a: a > b,
            )  # fmt: skip
    return rows


def curves(phase: dict) -> dict[str, dict[str, list]]:
    """Title → name → points (step, value) of what is drawn of a phase."""
    out = {
        title: {n: [(m["step"], m[n]) for m in phase["metrics"] if n in m] for n in names}
        for title, names in CURVES.items()
    }
    names = ("score_accuracy", "critique_quality", "invented_issue_rate", "meta_accuracy", "true_score",
             "verifier_reward", "draft_true_score", "final_true_score")  # fmt: skip
    out["held-out validation"] = {
        n: [(c["step"], m["value"]) for c in phase["curve"] for k, m in c.items() if k.endswith("/" + n)]
        for n in names
    }
    return out


def charts(phase: dict, other: dict | None = None) -> str:
    """A phase's curves, with those of the other run's same phase in them where one is given."""
    theirs = curves(other) if other else {}
    drawn = []
    for title, lines in curves(phase).items():
        more = {f"{n} (other)": line for n, line in theirs.get(title, {}).items()}
        drawn.append(chart(title, lines | more))
    return f'<div class="charts">{"".join(drawn)}</div>'


def comparison(phases: list[dict], others: dict, name: str) -> str:
    """Every held-out figure after training, of both runs, with the difference and whether it is clear."""
    rows = []
    for p in phases:
        for metric, a in p["after"].items():
            b = others.get((p["phase"], p["lap"]), {}).get("after", {}).get(metric)
            if b:
                # independent samples: the half widths of the two intervals add in quadrature
                half = math.hypot(*((x["high"] - x["low"]) / 2 for x in (a, b)))
                delta = b["value"] - a["value"]
                rows.append(
                    [
                        p["folder"],
                        metric,
                        f"{a['value']:.3f}",
                        f"{b['value']:.3f}",
                        f"{delta:+.3f}",
                        f"{delta - half:+.3f} – {delta + half:+.3f}",
                        "yes" if abs(delta) > half else "",
                    ]
                )
    head = ["phase", "held-out figure", "this run", name, "difference", "95% interval", "outside chance"]
    return f'<h2 id="comparison">Compared with {escape(name)}</h2>' + table(head, rows)


def table(columns: list, rows: list[list]) -> str:
    head = "".join(f"<th>{escape(str(c))}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in r) + "</tr>" for r in rows)
    return f'<div class="scroll" tabindex="0"><table><tr>{head}</tr>{body}</table></div>'


def figures_table(phase: dict) -> str:
    rows = []
    for name, a in phase["after"].items():
        b = phase["before"].get(name)
        rows.append(
            [
                name,
                f"{b['value']:.3f}" if b else "",
                f"{a['value']:.3f}",
                f"{a['low']:.3f} – {a['high']:.3f}",
                a["n"],
            ]
        )
    return table(["held-out figure", "before", "after", "95% interval", "items"], rows) if rows else ""


def time_split(phase: dict) -> str:
    total: dict[str, float] = {}
    for m in phase["metrics"]:
        for kind, seconds in m.get("seconds", {}).items():
            total[kind] = total.get(kind, 0.0) + seconds
    everything = sum(total.values())
    if not everything:
        return ""
    parts = ", ".join(
        f"{k} {v:.0f} s ({v / everything:.0%})" for k, v in sorted(total.items(), key=lambda x: -x[1])
    )
    rates: dict[str, list[float]] = {}
    for m in phase["metrics"]:
        for kind, rate in m.get("tokens_per_second", {}).items():
            rates.setdefault(kind, []).append(rate)
    speed = "".join(f"; {k} {sum(v) / len(v):,.0f} tokens/s" for k, v in rates.items())
    return f"<p>Time of the steps: {escape(parts + speed)}</p>"


def compute_curves(run: Path) -> str:
    """What verification compute buys, where benchmarks/compute.py has measured it for this run."""
    found = read_json(run / "compute.json", {})
    drawn = "".join(
        chart(f"true score over {x}", {name: [tuple(p) for p in points] for name, points in curves.items()})
        for x, curves in found.items()
    )
    return f'<h2>Verification compute, harder problems</h2><div class="charts">{drawn}</div>' if drawn else ""


FILTERS = """<form id="filters" hidden aria-label="Filter the samples">
<label>phase <select id="f-phase"><option value="">all</option></select></label>
<label>expert's score <select id="f-score"><option value="">all</option></select></label>
<label>what is wrong <select id="f-error"><option value="">anything</option></select></label>
<label>text <input id="f-text" type="search" size="14"></label>
<button type="button" id="f-clear" hidden>clear</button> <span id="f-count" role="status"></span></form>
<div id="tip" role="status" hidden></div>"""


def build_report(run: str | Path, compare: str | Path | None = None) -> tuple[Path, Path]:
    """Write report.html and report.json into the run folder; returns their paths.

    `compare`: another run folder, whose figures and curves are put beside this one's.
    """
    others = {}
    if compare is not None:
        if not Path(compare).is_dir():
            raise InputError(f"{compare} is no folder: give the folder of a run to compare with")
        with as_written(Path(compare)):
            others = {(p["phase"], p["lap"]): p for p in collect(Path(compare))}
    with as_written(Path(run)):
        return _build_report(Path(run), others, Path(compare).name if compare else "")


def section(p: dict, other: dict | None) -> str:
    """One phase: figures, curves, tables, notes, time, samples."""
    title = p["title"] + (f" · lap {p['lap']}" if p["lap"] > 1 else "")
    tables = "".join(f"<h3>{escape(t['title'])}</h3>{table(t['columns'], t['rows'])}" for t in p["tables"])
    cards = "".join(sample_card(s, p["folder"]) for s in p["samples"][:MAX_SAMPLES])
    return (
        f'<section><h2 id="{p["phase"]}-{p["lap"]}">{escape(title)}</h2>'
        + (f"<p>{p['seconds']:.0f} s</p>" if p["seconds"] is not None else "<p>unfinished</p>")
        + figures_table(p)
        + charts(p, other)
        + tables
        + "".join(f"<p>{escape(n)}</p>" for n in p["notes"])
        + time_split(p)
        + (f'<details class="samples"><summary>Samples</summary>{cards}</details>' if cards else "")
        + "</section>"
    )


def top_table(rows: list[dict]) -> str:
    said = {
        True: '<span class="yes">✓ reached</span>',
        False: '<span class="no">✗ not reached</span>',
        None: "–",
    }

    def number(x) -> str:
        return "" if x is None else f"{x:.3f}"

    body = "".join(
        f"<tr><td>{escape(r['step'])}</td><td>{escape(r['metric'])}</td><td>{number(r['before'])}</td>"
        f"<td><b>{number(r['after'])}</b></td><td>{escape(r['expectation'])}</td><td>{said[r['met']]}</td></tr>"
        for r in rows
    )
    head = "<tr><th>step</th><th>on held-out items</th><th>before</th><th>after</th><th>wanted</th>"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="What was gained"><table>{head}'
        f"<th>result</th></tr>{body}</table></div>"
    )


def _build_report(run: Path, others: dict, other_name: str) -> tuple[Path, Path]:
    facts, phases = read_json(run / "run.json", {}), collect(run)
    rows = headline(phases)
    page, data = run / "report.html", run / "report.json"
    slim = [{k: v for k, v in p.items() if k not in ("metrics", "samples")} for p in phases]
    write_atomically(data, json.dumps({"run": facts, "headline": rows, "phases": slim}, indent=1))

    seconds = sum(p["seconds"] or 0 for p in phases)
    intro = (
        f"{facts.get('ranks', '?')} rank(s), seed {facts.get('seed', '?')}, {seconds / 60:.1f} minutes, "
        f"commit {str(facts.get('commit', '?'))[:12]}, started {facts.get('started', '?')}"
    )
    links = "".join(
        f'<a href="#{p["phase"]}-{p["lap"]}">{escape(p["phase"])}{p["lap"] if p["lap"] > 1 else ""}</a> '
        for p in phases
    )
    settings = escape(json.dumps(facts.get("config", {}), indent=1))
    style, script = ((Path(__file__).parent / f"explore.{kind}").read_text() for kind in ("css", "js"))
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{allowed}'"
    write_atomically(
        page,
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>nanov2: {escape(run.name)}</title><style>{style}</style></head><body><main>"
        f"<h1>What the cycle gained</h1><p>{escape(intro)}</p>{top_table(rows)}{dumbbells(rows)}"
        f'<nav aria-label="Phases">{links}</nav>{FILTERS}'
        + (comparison(phases, others, other_name) if others else "")
        + "".join(section(p, others.get((p["phase"], p["lap"]))) for p in phases)
        + compute_curves(run)
        + f"<details><summary>Settings</summary><pre>{settings}</pre></details></main>"
        f"<script>{script}</script></body></html>",
    )
    return page, data


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", nargs="?", help="SVG file for the headline as a picture")
    parser.add_argument("--compare", type=Path, help="another run, put beside this one")
    args = parser.parse_args()
    try:
        print(*build_report(args.run, args.compare), sep="\n")
        if args.picture:
            write_atomically(args.picture, dumbbells(headline(collect(args.run))))
    except InputError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
