"""report.html and report.json of a run folder: what each step gained, measured against the truth.

    python -m nanov2.report runs/proofworld [picture.svg]

One self-contained page that opens from disk: a first screen with the headline figures, then a section
per phase with curves, tables and real samples. Everything shown is escaped. An unfinished run shows what
is there.
"""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path

from nanov2.charts import chart, dumbbells
from nanov2.errors import InputError, as_written
from nanov2.records import write_atomically
from nanov2.run import PHASES

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


def charts(phase: dict) -> str:
    out = []
    for title, names in CURVES.items():
        out.append(chart(title, {n: [(m["step"], m[n]) for m in phase["metrics"] if n in m] for n in names}))
    names = ("score_accuracy", "critique_quality", "invented_issue_rate", "meta_accuracy", "true_score",
             "verifier_reward", "draft_true_score", "final_true_score")  # fmt: skip
    held_out = {
        n: [(c["step"], m["value"]) for c in phase["curve"] for k, m in c.items() if k.endswith("/" + n)]
        for n in names
    }
    return '<div class="charts">' + "".join([*out, chart("held-out validation", held_out)]) + "</div>"


def table(columns: list, rows: list[list]) -> str:
    head = "".join(f"<th>{escape(str(c))}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in r) + "</tr>" for r in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


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


def marked(critique: str, marks: list[bool]) -> str:
    """A critique as HTML, every wrong finding marked (✗ and a colour); as it is where marks do not fit."""
    words = critique.split()
    parts = [" ".join(words[i : i + 5]) for i in range(0, len(words) - 3, 5)] + words[-3:-1]
    if len(parts) != len(marks):
        return escape(critique)
    shown = (escape(p) if ok else f"<mark>✗ {escape(p)}</mark>" for p, ok in zip(parts, marks, strict=True))
    return "  ".join(shown) + "  " + escape(words[-1])


def sample_card(sample: dict) -> str:
    """One sample: problem, proof, critique and meta-critique side by side, invented issues marked."""
    cells = []
    if "proof" in sample:
        cells.append(("proof", sample["proof"], f"expert: {sample.get('truth')}"))
    if "critique" in sample:
        note = [f"says {sample['score']}"] if sample.get("score") is not None else []
        if "quality" in sample:
            note.append(f"expert: quality {sample['quality']}")
        if sample.get("invented"):
            note.append(f"⚠ invents {sample['invented']} issue(s)")
        cells.append(("critique", sample["critique"], ", ".join(note)))
    if "meta" in sample:
        cells.append(("meta-critique", sample["meta"], f"says quality {sample.get('meta_quality')}"))
    truths = sample.get("turn_truth") or []
    for i, (task, text) in enumerate(sample.get("turns", [])):
        truth = truths[i] if i < len(truths) else None
        cells.append((task, text, f"expert: {truth}" if truth is not None else ""))
    for key in ("reward", "label", "note"):
        if sample.get(key) is not None:
            cells.append((key, str(sample[key]), ""))

    def show(name: str, text: str) -> str:
        return marked(text, sample["marks"]) if name == "critique" and sample.get("marks") else escape(text)

    body = "".join(
        f'<div class="cell{" bad" if "⚠" in note else ""}"><b>{escape(name)}</b> '
        f"<i>{escape(note)}</i><pre>{show(name, str(text))}</pre></div>"
        for name, text, note in cells
    )
    return f'<div class="sample"><pre class="x">{escape(sample.get("problem", ""))}</pre>{body}</div>'


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


STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b2433;--soft:#f3f5f9;--line:#ccd3df}
:root{--bad:#b3261e;--good:#00705a;--mark:#ffe3e0}
@media(prefers-color-scheme:dark){:root{--bg:#141a23;--fg:#e6ecf5;--soft:#1e2733;--line:#3a4657}
:root{--bad:#ff8a80;--good:#5fd3b3;--mark:#5a2320}}
body{background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
body{max-width:1100px;margin:0 auto;padding:16px}
table{border-collapse:collapse;font-size:14px}
td,th{border:1px solid var(--line);padding:3px 9px;text-align:left}
.scroll{overflow-x:auto;margin:8px 0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(330px,1fr));gap:10px}
svg{background:var(--soft);border-radius:6px;width:100%}.charts svg{max-width:520px}
svg text{font-size:11px;fill:var(--fg)}
.ct{font-weight:600}.grid{stroke:var(--line);stroke-width:.6}
.sample{background:var(--soft);border-radius:6px;padding:8px;margin:8px 0}
pre{white-space:pre-wrap;margin:2px 0;font-size:13px}.x{font-weight:600}
.cell{border-left:3px solid var(--line);padding-left:8px;margin:5px 0}
.bad{border-color:var(--bad)}mark{background:var(--mark);color:inherit;border-radius:3px}
.no{color:var(--bad);font-weight:600}.yes{color:var(--good);font-weight:600}
nav a{margin-right:10px}
"""


def build_report(run: str | Path) -> tuple[Path, Path]:
    """Write report.html and report.json into the run folder; returns their paths."""
    with as_written(Path(run)):
        return _build_report(Path(run))


def _build_report(run: Path) -> tuple[Path, Path]:
    facts, phases = read_json(run / "run.json", {}), collect(run)
    rows = headline(phases)
    page, data = run / "report.html", run / "report.json"
    slim = [{k: v for k, v in p.items() if k not in ("metrics", "samples")} for p in phases]
    write_atomically(data, json.dumps({"run": facts, "headline": rows, "phases": slim}, indent=1))

    def number(x) -> str:
        return "" if x is None else f"{x:.3f}"

    said = {
        True: '<span class="yes">✓ reached</span>',
        False: '<span class="no">✗ not reached</span>',
        None: "–",
    }
    top = "".join(
        f"<tr><td>{escape(r['step'])}</td><td>{escape(r['metric'])}</td><td>{number(r['before'])}</td>"
        f"<td><b>{number(r['after'])}</b></td><td>{escape(r['expectation'])}</td><td>{said[r['met']]}</td></tr>"
        for r in rows
    )
    seconds = sum(p["seconds"] or 0 for p in phases)
    intro = (
        f"{facts.get('ranks', '?')} rank(s), seed {facts.get('seed', '?')}, {seconds / 60:.1f} minutes, "
        f"commit {str(facts.get('commit', '?'))[:12]}, started {facts.get('started', '?')}"
    )
    sections, links = [], []
    for p in phases:
        anchor = f"{p['phase']}-{p['lap']}"
        title = p["title"] + (f" · lap {p['lap']}" if p["lap"] > 1 else "")
        links.append(f'<a href="#{anchor}">{escape(p["phase"])}{p["lap"] if p["lap"] > 1 else ""}</a>')
        sections.append(
            f'<h2 id="{anchor}">{escape(title)}</h2>'
            + (f"<p>{p['seconds']:.0f} s</p>" if p["seconds"] else "<p>unfinished</p>")
            + figures_table(p)
            + charts(p)
            + "".join(f"<h4>{escape(t['title'])}</h4>{table(t['columns'], t['rows'])}" for t in p["tables"])
            + "".join(f"<p>{escape(n)}</p>" for n in p["notes"])
            + time_split(p)
            + "<details><summary>Samples</summary>"
            + "".join(sample_card(s) for s in p["samples"][:16])
            + "</details>"
        )
    settings = escape(json.dumps(facts.get("config", {}), indent=1))
    write_atomically(
        page,
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>nanov2: {escape(run.name)}</title>'
        f"<style>{STYLE}</style><h1>What the cycle gained</h1><p>{escape(intro)}</p>"
        f'<div class="scroll"><table><tr><th>step</th><th>on held-out items</th><th>before</th><th>after</th>'
        f"<th>wanted</th><th></th></tr>{top}</table></div>{dumbbells(rows)}<nav>{''.join(links)}</nav>{''.join(sections)}"
        f"{compute_curves(run)}<details><summary>Settings</summary><pre>{settings}</pre></details></html>",
    )
    return page, data


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(*build_report(sys.argv[1]), sep="\n")
    if len(sys.argv) > 2:  # the headline as a picture
        write_atomically(sys.argv[2], dumbbells(headline(collect(Path(sys.argv[1])))))
