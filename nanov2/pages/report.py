"""report.html and report.json of a run folder: what each step gained, measured against the truth.

    python -m nanov2 report runs/proofworld [picture.svg]
    python -m nanov2 report runs/proofworld --compare runs/other   # a page of its own, report-vs-other.html
    python -m nanov2 report runs/seed0 runs/seed1 runs/seed2       # several seeds: mean, spread, each

Each page is one file that opens from disk and asks for nothing: formulas are set by KaTeX, which is in it.
views.py makes what is shown, templates/ shows it, escaped; report.js filters samples, follows a problem
through phases and laps, and reads values off curves. The page may run and style by nothing but what is in
it, by hash. An unfinished run shows what is there.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jinja2
from markupsafe import Markup

from nanov2.errors import InputError, as_written
from nanov2.method.samples import FAILURES
from nanov2.pages import katex, views
from nanov2.pages.cards import Sample
from nanov2.pages.charts import Chart, Series, draw, picture
from nanov2.pages.legend import explain
from nanov2.pages.read import Phase, read_json, read_phases
from nanov2.records import write_atomically
from nanov2.run.cli import Parser

TEMPLATES = Path(__file__).parent / "templates"


def environment() -> jinja2.Environment:
    """Templates that escape whatever they show."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    env.filters |= {
        "figure": views.show,
        "duration": views.duration,
        "thousands": views.thousands,
        "explain": explain,
    }
    env.globals |= {"SAID": views.SAID, "FAILURES": FAILURES}
    return env


def page_html(template: str, formulas: str, **shown: object) -> str:
    """A page with its style, its scripts and the policy that allows just these."""
    styles = [_file("report.css")]
    scripts = [_file("report.js")]
    if formulas:
        styles.insert(0, katex.style(formulas))
        scripts.insert(0, katex.script())
    policy = {
        "default-src": ["'none'"],
        "style-src": [hashed(s) for s in styles],
        "script-src": [hashed(s) for s in scripts],
        "img-src": ["data:"],
        "font-src": ["data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    said = "; ".join(f"{name} {' '.join(values)}" for name, values in policy.items())
    raw = {"styles": [Markup(s) for s in styles], "scripts": [Markup(s) for s in scripts]}
    return environment().get_template(template).render(policy=said, **raw, **shown)


def _file(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def formulas_of(samples: Iterator[Sample]) -> str:
    """All formulas of the samples; they say which fonts a page needs."""
    found = {
        p.text
        for s in samples
        for blocks in (s.problem, *(part.blocks for row in s.rows for part in row))
        for b in blocks
        for p in b.pieces
        if p.kind in ("math", "display")
    }
    return "\n".join(found)


def build_report(run: str | Path, compare: str | Path | None = None) -> tuple[Path, Path]:
    """Write report.html and report.json into the run folder; returns their paths.

    `compare`: another run folder. Its figures and curves are put beside this one's in a page of its own,
    report-vs-NAME.html; report.html stays as it is.
    """
    run = folder_of_run(run)
    other = folder_of_run(compare) if compare is not None else None
    name = other.resolve().name if other else ""
    with as_written(run):
        facts, phases = read_json(run / "run.json"), read_phases(run)
    others: dict[tuple[str, int], Phase] = {}
    if other:
        with as_written(other):
            others = {p.key: p for p in read_phases(other)}
    with as_written(run):
        shown = [views.phase_view(p, others.get(p.key), name) for p in phases]
        rows = views.headline(phases)
        page = page_html(
            "report.html",
            formulas_of(s for v in shown for s in v.samples),
            run=run.resolve().name,
            facts=facts,
            seconds=sum(p.seconds or 0 for p in phases),
            headline=rows,
            temperatures=views.temperatures(*(p.after for p in phases)),
            phases=shown,
            legend=views.legend_rows(phases),
            settings=views.settings_view(facts),
            compute=compute_charts(run),
            other=name,
            compared=views.comparison(phases, others),
            csv=views.figures_csv({run.resolve().name: phases}),
            json=views.data_uri("application/json", data_json(facts, rows, phases).encode()),
        )
    stem = f"report-vs-{name}" if other else "report"
    paths = run / f"{stem}.html", run / f"{stem}.json"
    write_atomically(paths[1], data_json(facts, rows, phases))
    write_atomically(paths[0], page)
    return paths


def folder_of_run(path: str | Path) -> Path:
    """A run folder that is there; nothing is made for a name that is mistyped."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path} is no folder: give the folder of a run, such as runs/proofworld")
    return path


def data_json(facts: dict, rows: list[views.Headline], phases: list[Phase]) -> str:
    """What report.json holds: all but the samples and the steps' metrics. Numbers are finite."""
    left_out = ("metrics", "samples", "groups", "by_step")
    slim = [{k: v for k, v in dataclasses.asdict(p).items() if k not in left_out} for p in phases]
    for p in slim:
        p["curve"] = [{"step": step} | figures for step, figures in p["curve"]]
    found = {"run": facts, "headline": [dataclasses.asdict(r) for r in rows], "phases": slim}
    return json.dumps(without_nan(found), indent=1)


def without_nan(x: object) -> object:
    """A JSON value in which NaN and the infinities, which JSON cannot say, are null."""
    if isinstance(x, dict):
        return {k: without_nan(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [without_nan(v) for v in x]
    return None if isinstance(x, float) and x - x != 0 else x


def compute_charts(run: Path) -> list[Chart]:
    """What verification compute buys, where benchmarks/compute.py has measured it for this run."""
    drawn = [
        draw(f"true score over {x}", [Series(name, [tuple(p) for p in line]) for name, line in lines.items()])
        for x, lines in read_json(run / "compute.json").items()
    ]
    return [c for c in drawn if c]


def build_seeds(runs: list[Path], page: Path | None = None) -> Path:
    """One page over several runs, such as seeds: mean, standard deviation, each run. Returns its path.

    Without `page` it is written beside the first run's report, which stays as it is.
    """
    folders = [folder_of_run(r) for r in runs]
    names = [f.resolve().name for f in folders]
    labels = [n if names.count(n) == 1 else str(f) for n, f in zip(names, folders, strict=True)]
    read, facts = [], []
    for folder in folders:
        with as_written(folder):
            facts.append(read_json(folder / "run.json"))
            read.append(read_phases(folder))
    with as_written(folders[0]):
        text = page_html(
            "seeds.html",
            "",
            names=labels,
            facts=facts,
            headline=views.seed_headline(read),
            rows=views.seed_rows(read),
            charts=views.seed_charts(read),
            legend=views.legend_rows([p for phases in read for p in phases]),
            csv=views.figures_csv(dict(zip(labels, read, strict=True))),
        )
    page = page or folders[0] / f"report-of-{len(runs)}-runs.html"
    write_atomically(page, text)
    return page


def headline_text(run: Path) -> str:
    """The headline as lines for a terminal: each step's start → end, with the end's interval."""
    lines = []
    for row in views.headline(read_phases(run)):
        for c in row.changes:
            start = f"{c.before.value:8.3f} →" if c.before else " " * 10
            end = f"{c.after.value:.3f}  [{c.after.low:.3f}, {c.after.high:.3f}]"
            name = f"{row.step}: {row.figure}" + (f", T = {c.temperature}" if c.temperature != "1" else "")
            lines.append(f"  {name:84} {start} {end}")
    return "\n".join(lines)


def headline_picture(run: Path) -> str:
    """The headline as an SVG picture."""
    with as_written(run):
        shown = picture(views.ranges(views.headline(read_phases(run))))
        return environment().get_template("picture.svg").render(picture=shown)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders; last of all a file .svg may stand"
    )
    parser.add_argument("--compare", type=Path, metavar="RUN", help="another run, put beside this one")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the page of several runs is written")
    try:
        args = parser.parse_args()
        svg = args.runs.pop() if len(args.runs) > 1 and args.runs[-1].endswith(".svg") else None
        runs = [Path(r) for r in args.runs]
        if len(runs) > 1 and (args.compare or svg):
            raise InputError("--compare and a picture are for one run, several were given")
        if len(runs) > 1:
            print(build_seeds(runs, args.out))
            return
        print(*build_report(runs[0], args.compare), sep="\n")
        if svg:
            write_atomically(svg, headline_picture(runs[0]))
    except InputError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
