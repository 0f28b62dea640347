"""The report: self-contained, escaped, right about the bars, and useful for an unfinished run."""

import json
import re

import pytest
from browser import AXE, chromium  # noqa: F401

from nanov2.errors import InputError
from nanov2.pages.cards import difference, errors, marked
from nanov2.pages.report import build_report, headline


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
    assert page.count("<script") == 1 and "<img" not in page and "&lt;script&gt;" in page
    assert "script-src 'sha256-" in page  # and no other script may run


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


def test_a_revision_is_compared_word_by_word_and_escaped():
    assert difference("a < b = c qed", "a < b <= c qed") == "a &lt; b <del>=</del><ins>&lt;=</ins> c qed"
    assert difference("<b>x", "<b>x") == "&lt;b&gt;x" and difference("", "x") == "<ins>x</ins>"


def test_the_filter_knows_what_is_wrong():
    assert errors({"proof": "(cut off)", "truth": 0.0}) == ["cut_off"]
    assert errors({"proof": "p", "truth": 1.0}) == ["none"]
    assert errors({"critique": "c", "score": 1.0, "truth": 0.5}) == ["wrong_score", "missed_issue"]
    assert errors({"critique": "c", "score": None, "truth": 0.5}) == ["unparsed"]
    invented = {
        "critique": "c",
        "score": 0.5,
        "truth": 0.5,
        "invented": 1,
        "quality": 0.5,
        "meta_quality": 1.0,
    }
    assert errors(invented) == ["invented_issue", "wrong_quality"]


def two_runs(tmp_path):
    accuracy = "labelled/score_accuracy"
    shared = {"problem": "shared problem", "proof": "p", "truth": 1.0}
    wrong = {"problem": "other", "proof": "(cut off)", "truth": 0.0}
    turns = {
        "problem": "third",
        "turns": [["prove", "a < b qed"], ["prove", "a = b qed"]],
        "turn_truth": [0, 1],
    }
    for name, value in (("one", 0.9), ("two", 0.6)):
        run = tmp_path / name
        write_phase(run, "verifier", {accuracy: metric(0.5)}, {accuracy: metric(value)}, [shared, wrong])
        write_phase(run, "lap2/generator", samples=[shared, turns])
    return tmp_path / "one", tmp_path / "two"


def test_two_runs_are_compared_with_intervals(tmp_path):
    one, two = two_runs(tmp_path)
    page = build_report(one, two)[0].read_text()
    assert "Compared with two" in page and "-0.300" in page and "-0.371 – -0.229" in page
    assert "reward (other)" in page and "Compared with" not in build_report(one)[0].read_text()
    with pytest.raises(InputError, match="no folder"):
        build_report(one, tmp_path / "none")


def test_the_page_is_explored_in_a_browser(tmp_path, chromium):  # noqa: F811
    one, two = two_runs(tmp_path)
    page, outside = chromium.new_page(), []
    page.on("request", lambda r: outside.append(r.url) if r.url.startswith("http") else None)
    page.on("pageerror", lambda e: outside.append(str(e)))
    page.goto(build_report(one, two)[0].as_uri())

    def shown():
        return [c.get_attribute("data-problem") for c in page.locator(".sample:visible").all()]

    assert page.locator("#f-count").inner_text() == "4 of 4 samples" and not shown()
    page.select_option("#f-phase", "verifier")
    assert shown() == ["shared problem", "other"]
    page.select_option("#f-error", "cut_off")
    assert shown() == ["other"]
    page.click("#f-clear")
    page.select_option("#f-score", "1")
    assert shown() == ["shared problem", "shared problem", "third"]
    page.fill("#f-text", "shared")
    page.locator(".follow").first.click()
    assert shown() == ["shared problem"] * 2  # in lap 1 and in lap 2
    assert page.locator("#f-count").inner_text() == "2 of 4 samples of one problem"
    curve = page.locator("svg[data-series]").first
    curve.hover()
    assert (
        "step" in page.locator("#tip").inner_text() and "reward (other)" in page.locator("#tip").inner_text()
    )
    curve.focus()
    page.keyboard.press("Home")
    assert page.locator("#tip").inner_text().startswith("step 0")
    page.keyboard.press("ArrowRight")
    assert page.locator("#tip").inner_text().startswith("step 1")
    assert not outside


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_has_no_serious_accessibility_finding(tmp_path, chromium, scheme):  # noqa: F811
    one, two = two_runs(tmp_path)
    page = chromium.new_context(color_scheme=scheme, bypass_csp=True).new_page()
    page.goto(build_report(one, two)[0].as_uri())
    page.select_option("#f-phase", "verifier")
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run()")["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


def test_the_page_fits_a_phone(tmp_path, chromium):  # noqa: F811
    page = chromium.new_context(viewport={"width": 375, "height": 700}).new_page()
    page.goto(build_report(*two_runs(tmp_path))[0].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
