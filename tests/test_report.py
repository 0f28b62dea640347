"""The report: self-contained, escaped, right about the bars, and useful for an unfinished run."""

import json
import re

from nanov2.report import build_report, headline, marked


def metric(value):
    return {"value": value, "n": 100, "low": value - 0.05, "high": value + 0.05}


def write_phase(run, name, before=None, after=None, samples=(), done=True):
    folder = run / name
    folder.mkdir(parents=True)
    figures = {"before": before or {}, "after": after or {}, "curve": [{"step": 0, **(before or {})}]}
    (folder / "eval.json").write_text(json.dumps(figures))
    (folder / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": i, "reward": i / 9, "truth": i / 10, "seconds": {"train": 1.0}}) + "\n"
            for i in range(9)
        )
    )
    (folder / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    if done:
        (folder / "phase.json").write_text(
            json.dumps({"title": name, "seconds": 3.0, "notes": [], "tables": []})
        )


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def test_hostile_text_is_shown_and_never_run(tmp_path):
    sample = {"problem": HOSTILE, "proof": HOSTILE, "critique": HOSTILE, "marks": [False], "invented": 1}
    write_phase(tmp_path, "verifier", samples=[sample, {"problem": "x", "turns": [["prove", HOSTILE]]}])
    page = build_report(tmp_path)[0].read_text()
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page


def test_the_page_asks_for_nothing_from_outside(tmp_path):
    write_phase(
        tmp_path,
        "verifier",
        {"labelled/score_accuracy": metric(0.6)},
        {"labelled/score_accuracy": metric(0.9)},
    )
    page = build_report(tmp_path)[0].read_text()
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page) and "@import" not in page
    assert "<svg" in page and "0.900" in page and len(page) < 5_000_000


def test_an_unfinished_or_empty_run_is_shown(tmp_path):
    assert "Settings" in build_report(tmp_path)[0].read_text()
    write_phase(tmp_path, "base", done=False)
    assert "unfinished" in build_report(tmp_path)[0].read_text()


def test_bars_are_judged_and_what_was_not_measured_is_neither(tmp_path):
    accuracy, quality = "labelled/score_accuracy", "labelled/critique_quality"
    write_phase(tmp_path, "verifier", {accuracy: metric(0.6)}, {accuracy: metric(0.85)})
    write_phase(
        tmp_path,
        "verifier2",
        {accuracy: metric(0.85), quality: metric(0.80)},
        {accuracy: metric(0.80), quality: metric(0.96)},
    )
    write_phase(tmp_path, "lap2/generator", after={"hard/true_score": metric(0.7)})
    data = json.loads(build_report(tmp_path)[1].read_text())
    met = [(r["step"].split()[0], r["metric"], r["met"]) for r in data["headline"]]
    assert ("1B", "score accuracy", True) in met
    assert ("1D", "critique quality", True) in met and ("1D", "score accuracy", False) in met
    assert ("2", "true score", None) in met
    assert [p["phase"] for p in data["phases"]] == ["verifier", "verifier2", "generator"]
    assert all(r["met"] is None for r in headline([]))


def test_wrong_findings_are_marked_in_words_not_by_colour_alone():
    critique = "c = f = ok f < q none gap ends strict \\boxed{0}"
    page = marked(critique, [True, False, True, True])
    assert "<mark>✗ f &lt; q none gap</mark>" in page and page.count("✗") == 1
    assert marked(critique, [True]) == critique.replace("<", "&lt;")
