"""The report: self-contained, escaped, right about what is chance, and useful for an unfinished run."""

import csv
import io
import json
import math
import random
import re
import sys
import time
from base64 import b64decode

import pytest
from browser import AXE, chromium  # noqa: F401

from nanov2.errors import InputError
from nanov2.pages import katex, legend
from nanov2.pages.cards import failures, keep, sample_view
from nanov2.pages.charts import Series, draw, number, round_ticks
from nanov2.pages.prose import blocks, compare, findings, numbered, revision, tokens
from nanov2.pages.read import Figure, read_phases
from nanov2.pages.report import build_report, build_seeds, headline_text, main
from nanov2.pages.views import change, curves, headline


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


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> $\\href{javascript:alert(3)}{x}$"
PROBLEM = r"Suppose that real numbers satisfy $c < t$, $c = f$ and $f < q$. Show that $c < q$."
PROOF = "## Solution\nIndeed, $c = f < q$."
CRITIQUE = r"""Here is my evaluation of the solution:
- $c = f$: given as $=$, so this step is justified.
- $f < q$: the facts do not give it, so this step is a gap.
The chain runs from $c$ to $q$ and is strong enough.
Based on my evaluation, the final overall score should be: \boxed{0}"""


def no_script_but_its_own(page, outside):
    """What a page asks for, throws, or has refused by its policy, from now on."""
    page.on("request", lambda r: outside.append(r.url) if r.url.startswith("http") else None)
    page.on("pageerror", lambda e: outside.append(str(e)))
    page.on("dialog", lambda d: (outside.append(d.message), d.dismiss()))
    page.on("console", lambda m: outside.append(m.text) if m.type == "error" else None)


def test_hostile_text_is_shown_and_never_run(tmp_path, chromium):  # noqa: F811
    sample = {"problem": HOSTILE, "proof": HOSTILE, "critique": HOSTILE, "marks": [False], "invented": 1}
    samples = [sample, {"problem": HOSTILE, "turns": [["prove", HOSTILE], ["prove", HOSTILE + " x"]]}]
    write_phase(tmp_path, "verifier", {HOSTILE: metric(0.1)}, {HOSTILE: metric(0.2)}, samples=samples)
    facts = {"name": HOSTILE, "config": {HOSTILE: HOSTILE}, "ranks": HOSTILE, "seed": HOSTILE}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    path = build_report(tmp_path)[0]
    page = path.read_text()
    assert page.count("<script") == 2 and "<img src=x" not in page and "&lt;script&gt;" in page
    assert "script-src &#39;sha256-" in page and "unsafe" not in page.split("<style>")[0]
    shown, outside = chromium.new_page(), []
    no_script_but_its_own(shown, outside)
    shown.goto(path.as_uri())
    shown.select_option("#f-phase", "verifier")
    shown.wait_for_selector(".katex")
    assert shown.locator("img, a[href^=javascript]").count() == 0 and not outside


def test_the_page_asks_for_nothing_from_outside(tmp_path):
    write_phase(
        tmp_path,
        "verifier",
        {"labelled/score_accuracy": metric(0.6)},
        {"labelled/score_accuracy": metric(0.9)},
        [{"problem": PROBLEM, "proof": PROOF, "truth": 1.0}],
    )
    page = build_report(tmp_path)[0].read_text()
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page) and "@import" not in page
    assert not re.search(r"url\((?!data:)", page)
    assert "<svg" in page and "0.900" in page and len(page) < 1_500_000


def test_formulas_are_set_without_a_refusal_by_the_policy(tmp_path, chromium):  # noqa: F811
    hard = (
        r"$$\sum_{i=1}^n \frac{i}{\sqrt{2}} \ge \left(\mathbb{E}X\right)^{2}$$ $\mathbf{x} \nmid \text{it}$"
    )
    samples = [
        {"problem": PROBLEM, "proof": PROOF, "truth": 1.0, "critique": CRITIQUE, "score": 0.0},
        {"problem": hard, "proof": hard, "truth": 0.0},
        {"problem": "broken $\\frac{$ and $5 of it", "proof": "p", "truth": 0.0},
    ]
    write_phase(tmp_path, "verifier", samples=samples)
    page, outside = chromium.new_page(), []
    no_script_but_its_own(page, outside)
    page.goto(build_report(tmp_path)[0].as_uri())
    page.select_option("#f-phase", "verifier")
    page.wait_for_selector(".katex")
    assert not outside
    formulas = page.locator(".sample").first.locator("[role=math]")
    assert formulas.first.get_attribute("aria-label") == "c < t" and "0" in formulas.last.inner_text()
    page.evaluate("document.fonts.ready")
    loaded = page.evaluate("[...document.fonts].filter(f => f.status === 'error').length")
    assert loaded == 0 and page.locator(".sample").nth(2).inner_text().count("$") >= 1


def test_a_page_holds_just_the_fonts_that_its_formulas_use():
    few, more = katex.style("c < t"), katex.style(r"\mathbb{R} \subsetneq \sum")
    assert few.count("font/woff2") == 2 and more.count("font/woff2") == 7
    assert "KaTeX_AMS" in more and katex.fonts_of(r"a \le b") == katex.ALWAYS


def test_an_unfinished_or_empty_run_is_shown(tmp_path):
    assert "Settings" in build_report(tmp_path)[0].read_text()
    write_phase(tmp_path, "base", done=False)
    assert "unfinished" in build_report(tmp_path)[0].read_text()


def test_a_mistyped_run_makes_no_folder_and_is_one_line(tmp_path, monkeypatch, capsys):
    for args in (["typo"], ["typo", "other"], [str(tmp_path), "--compare", "typo"]):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["report", *args])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert str(stopped.value).startswith("error: typo is no folder") and "\n" not in str(stopped.value)
    assert list(tmp_path.iterdir()) == []


def figure(value, half, n=100):
    return Figure(value, value - half, value + half, n)


def test_a_change_within_its_interval_is_chance_and_neither_gain_nor_loss():
    assert change(figure(0.5, 0.05), figure(0.6, 0.05), legend.HIGHER).verdict == "gained"
    assert change(figure(0.5, 0.05), figure(0.55, 0.05), legend.HIGHER).verdict == "chance"
    assert change(figure(0.5, 0.05), figure(0.6, 0.05), legend.LOWER).verdict == "lost"
    assert change(None, figure(0.6, 0.05), legend.HIGHER).verdict == ""
    paired = change(figure(0.5, 0.05), figure(0.55, 0.05), legend.HIGHER, paired=figure(0.05, 0.02))
    assert paired.verdict == "gained" and paired.half == pytest.approx(0.02)


def test_the_headline_has_intervals_and_holds_no_exam(tmp_path):
    accuracy, quality = "labelled/score_accuracy", "labelled/critique_quality"
    write_phase(tmp_path, "verifier", {accuracy: metric(0.6)}, {accuracy: metric(0.85)})
    write_phase(
        tmp_path,
        "verifier2",
        {accuracy: metric(0.85), quality: metric(0.80)},
        {accuracy: metric(0.83), quality: metric(0.96)},
    )
    write_phase(tmp_path, "generator", after={"hard/true_score": metric(0.3)})
    write_phase(tmp_path, "lap2/generator", after={"hard/true_score": metric(0.7)})
    page, data = build_report(tmp_path)
    data = json.loads(data.read_text())
    got = {(r["step"], r["figure"]): r["changes"][0]["verdict"] for r in data["headline"]}
    assert got["1B verifier v1", "score accuracy (labelled difficulty)"] == "gained"
    assert got["1D verifier v1 → v2", "critique quality (labelled difficulty)"] == "gained"
    assert got["1D verifier v1 → v2", "score accuracy (labelled difficulty)"] == "chance"
    assert got["2 generator", "true score (harder problems)"] == ""  # nothing to compare with
    assert got["generator of lap 1 → lap 2", "true score (harder problems)"] == "gained"
    assert [p["name"] for p in data["phases"]] == ["verifier", "verifier2", "generator", "generator"]
    text = page.read_text()
    assert "+0.250 ± 0.071" in text and "within chance" in text
    assert "reached" not in text and "wanted" not in text and headline([]) == []


def test_temperatures_stand_side_by_side(tmp_path):
    name = "held_out/score_accuracy"
    before = {name: metric(0.6), f"{name}@T0": metric(0.9)}
    after = {name: metric(0.8), f"{name}@T0": metric(0.91)}
    write_phase(tmp_path, "verifier", before, after)
    (phase,) = read_phases(tmp_path)
    (row,) = headline([phase])
    assert [(c.temperature, c.verdict) for c in row.changes] == [("1", "gained"), ("0", "chance")]
    page = build_report(tmp_path)[0].read_text()
    assert "change, T = 1" in page and "change, T = 0" in page and "T0" not in page.split("<style>")[0]


def test_every_figure_is_said_in_plain_words():
    assert legend.explain("hard/true_score@T0").title == "true score (harder problems, T = 0)"
    assert legend.explain("labelled/true_score/sets").title == "true score (labelled difficulty, sets)"
    assert legend.explain("hard/pass@4@T1").title == "pass@4 (harder problems)"
    assert legend.explain("mine/new_thing").title == "new thing (mine)"
    assert all(e.title and e.sentence.endswith(".") for e in legend.FIGURES.values())


def test_steps_are_numbered_and_headings_and_lists_shown():
    proof = "# Idea\n\nWe use **two** facts:\n- first $a$\n- second\n  goes on\n\n$$x\n= y$$\n2. last"
    shown = numbered(blocks(proof))
    assert [(b.kind, b.number) for b in shown] == [
        ("heading", None), ("text", 1), ("item", 2), ("item", 3), ("text", 4), ("item", 5)]  # fmt: skip
    assert shown[1].pieces[1].kind == "strong" and shown[4].pieces[0].kind == "display"
    assert shown[3].text == "second\n  goes on" and [b.kind for b in blocks(PROOF)] == ["heading", "text"]


def test_claimed_issues_are_marked_and_invented_ones_otherwise():
    def marks(found):
        return [b.mark for b in findings(blocks(CRITIQUE), found, 0.0)]

    assert marks([True, True, True, True]) == ["", "fine", "issue", "fine", ""]
    assert marks([True, False, True, True]) == ["", "fine", "invented", "fine", ""]
    assert marks([False, True, True, True]) == ["", "wrong", "issue", "fine", ""]
    assert marks(None) == ["", "fine", "issue", "", ""]


def test_a_revision_is_compared_word_by_word():
    before, after = PROOF, "## Solution\nIndeed, $c = f \\le q$, as was shown."
    (line,) = (b for b in revision(before, after) if b.kind == "text")
    changed = [(p.change, p.text) for p in line.pieces]
    assert ("del", "c = f < q") in changed and ("ins", "c = f \\le q") in changed
    assert ("", "Indeed, ") in changed
    rng = random.Random(0)
    for _ in range(300):
        a, b = ([rng.choice("abc ") for _ in range(rng.randrange(12))] for _ in range(2))
        edit = compare(a, b)
        assert [t for c, t in edit if c != "ins"] == a and [t for c, t in edit if c != "del"] == b


def test_texts_of_a_looping_model_take_a_moment():
    words = ["so"] * 8000
    rng = random.Random(0)
    other = [rng.choice(["so", "it", "is"]) for _ in words]
    texts = [
        " ".join(words),
        " ".join(other),
        "$" * 12000,
        "\\[" * 6000,
        "a. \n" * 3000,
        "**" * 6000,
        "- " * 6000,
    ]
    begin = time.perf_counter()
    for text in texts:
        revision(texts[0], text)
        compare(tokens(texts[0]), tokens(text))
        findings(blocks(text), [False], None)
    assert time.perf_counter() - begin < 5
    assert len(sample_view({"problem": "p", "proof": "x" * 10**6}, "base").rows[0][0].blocks[0].text) < 13_000


def test_the_filter_knows_what_is_wrong():
    assert failures({"proof": "(cut off)", "truth": 0.0}) == ["cut_off"]
    assert failures({"proof": "as far as it went", "cut": True}) == ["cut_off"]
    assert failures({"proof": "p", "truth": 1.0}) == ["none"]
    assert failures({"critique": "c", "score": 1.0, "truth": 0.5}) == ["missed_issue", "wrong_score"]
    assert failures({"critique": "c", "score": None, "truth": 0.5}) == ["unparsed"]
    assert failures({"proof": "p", "truth": 0.0, "reward": 0.75}) == ["fooled_judge"]
    assert failures({"turns": [["prove", "a"], ["prove", "b"]], "turn_truth": [1.0, 0.5]}) == [
        "worse_revision"
    ]
    invented = {
        "critique": "c",
        "score": 0.5,
        "truth": 0.5,
        "invented": 1,
        "quality": 0.5,
        "meta_quality": 1.0,
    }
    assert failures(invented) == ["invented_issue", "wrong_quality"]


def test_rare_failures_are_kept_among_the_samples():
    common = [{"problem": f"{i}", "proof": "p", "truth": 1.0} for i in range(500)]
    rare = {"problem": "rare", "critique": "c", "score": 1.0, "truth": 0.0}
    kept = keep([*common, rare, {"problem": "cut", "proof": "(cut off)"}], 10)
    assert len(kept) == 10 and [s["problem"] for s in kept[-2:]] == ["rare", "cut"]


def test_critique_and_meta_critique_stand_side_by_side():
    sample = {"problem": "x", "proof": PROOF, "truth": 1.0, "critique": CRITIQUE, "score": 0.0, "meta": "m"}
    judged = {"judge_critique": CRITIQUE, "judge_score": 0.0, "judge_meta": "m", "judge_meta_quality": 1.0}
    rows = sample_view(sample | judged, "meta").rows
    assert [[p.name for p in row] for row in rows] == [
        ["proof"], ["critique", "meta-critique"], ["judge's critique", "meta-critique"]]  # fmt: skip
    turns = {"problem": "x", "turns": [["prove", "a"], ["verify", "c"], ["prove", "b"]]}
    rows = sample_view(turns, "selfverify").rows
    assert [[p.name for p in row] for row in rows] == [["draft", "own critique"], ["revision"]]
    rows = sample_view({"critique": CRITIQUE, "judge_meta": "m", "judge_meta_quality": 0.5}, "verifier2").rows
    assert [[p.name for p in row] for row in rows] == [["critique", "the gate's meta-critique"]]


def test_what_was_cut_off_is_shown_with_its_text_and_called_so():
    for field, task in (("proof", "generator"), ("critique", "verifier"), ("meta", "meta")):
        (part,) = (p for row in sample_view({field: "half a", "cut": field}, task).rows for p in row)
        assert part.warning == "cut off at the token limit" and part.blocks
    other = sample_view({"proof": "hello", "malformed": "proof", "truth": 0.0}, "generator")
    assert other.rows[0][0].warning == "not in the form of a proof" and "malformed" in other.failures
    turns = {"turns": [["prove", "a"], ["verify", "c"], ["prove", "b c"]], "cut": "turns"}
    parts = [p for row in sample_view(turns, "selfverify").rows for p in row]
    assert [bool(p.warning) for p in parts] == [False, False, True]


def test_a_prompts_completions_are_shown_by_training_step(tmp_path):
    write_phase(tmp_path, "generator")
    rows = [{"step": i, "text": f"prompt\n+1.00 proof of step {i} <b>"} for i in range(1, 41)]
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    (tmp_path / "generator" / "groups.jsonl").write_text(lines + '{"step": 41, "te')
    page = build_report(tmp_path)[0].read_text()
    assert page.count("proof of step") == 8 and "proof of step 1 &lt;b&gt;" in page
    assert "proof of step 40 &lt;b&gt;" in page


def test_samples_of_validation_items_are_shown_by_training_step(tmp_path):
    write_phase(tmp_path, "generator", samples=[{"problem": PROBLEM, "proof": "the last", "truth": 1.0}])
    rows = [
        {"step": i, "problem": PROBLEM, "proof": f"proof of step {i} <b>", "truth": 0.5} for i in range(41)
    ]
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    (tmp_path / "generator" / "samples_by_step.jsonl").write_text(lines + '{"step": 41, "pr')
    html, data = (path.read_text() for path in build_report(tmp_path))
    assert html.count('data-step="') == 1 + 8 and 'data-step=""' in html  # the last has no step
    assert 'data-step="0"' in html and 'data-step="40"' in html and "proof of step 40 &lt;b&gt;" in html
    assert "proof of step" not in data


def test_the_costs_say_whose_memory_it_is_and_what_a_phase_without_steps_sampled(tmp_path):
    for name, facts in (
        ("coldstart", {"peak_memory_mb": 700, "memory_of": "phase", "sampled_tokens": 12_345}),
        ("verifier", {"peak_memory_mb": 800}),  # of an older version
    ):
        write_phase(tmp_path, name)
        (tmp_path / name / "phase.json").write_text(json.dumps({"title": name, "seconds": 3.0} | facts))
    (tmp_path / "coldstart" / "metrics.jsonl").unlink()
    costs = build_report(tmp_path)[0].read_text().split('id="costs"')[1].split("</details>")[0]
    assert ">700 MB<" in costs and ">800 MB of the process so far<" in costs and ">12.3 k<" in costs


@pytest.mark.parametrize(
    "ys", [[0, 0.000531], [-0.23, 0.41], [0, 3e-7], [5, 5], [-1e-9, 0], [1e8, 2e9], [0, 0]]
)
def test_ticks_are_round_and_cover_what_is_drawn(ys):
    ticks = round_ticks(min(0, *ys), max(0, *ys))
    assert 2 <= len(ticks) <= 8 and ticks[0] <= min(ys) + 1e-12 and ticks[-1] >= max(ys) - 1e-12 * ticks[-1]
    labels = [number(t, ticks[1] - ticks[0]) for t in ticks]
    assert len(set(labels)) == len(labels) and all(len(x) <= 9 for x in labels) and "-" not in "".join(labels)


def test_axis_labels_lie_within_the_picture(tmp_path, chromium):  # noqa: F811
    write_phase(tmp_path, "generator")
    rows = [
        {"step": i, "reward": -0.0531 + i / 1e4, "truth": 0.01, "loss": 5.31e-7, "entropy": 9e5}
        for i in range(5)
    ]
    (tmp_path / "generator" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    page = chromium.new_page()
    page.goto(build_report(tmp_path)[0].as_uri())
    clipped = page.evaluate(
        """[...document.querySelectorAll("svg[data-series] text")].filter(t => {
            const b = t.getBBox(), v = t.ownerSVGElement.viewBox.baseVal;
            return b.x < 0 || b.x + b.width > v.width || b.y < 0 || b.y + b.height > v.height;
        }).map(t => t.textContent)"""
    )
    assert clipped == [] and page.locator("svg[data-series]").count() == 3


def test_values_that_are_not_finite_stop_no_curve(tmp_path, chromium):  # noqa: F811
    for phase in ("verifier", "generator"):
        write_phase(
            tmp_path, phase, after={"labelled/true_score": metric(math.nan), "labelled/rounds": metric(2)}
        )
    rows = [
        {"step": i, "loss": x, "reward": 0.5} for i, x in enumerate([1.0, math.nan, math.inf, -math.inf, 2.0])
    ]
    (tmp_path / "verifier" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    page, outside = chromium.new_page(), []
    no_script_but_its_own(page, outside)
    html, data = build_report(tmp_path)
    json.loads(data.read_text(), parse_constant=pytest.fail)
    page.goto(html.as_uri())
    assert page.locator("svg[data-series][tabindex]").count() == 3 and not outside
    assert "nan" not in html.read_text().split("<section>")[1].lower()
    assert draw("a", [Series("x", [(0, math.nan)])]) is None
    one = draw("a", [Series("x", [(0, math.nan), (1, 2.0)])])
    assert json.loads(one.data) == [["x", [[1, 2.0]]]]


def two_runs(tmp_path):
    accuracy = "labelled/score_accuracy"
    shared = {"problem": "shared problem", "proof": PROOF, "truth": 1.0}
    wrong = {"problem": "other", "proof": "(cut off)", "truth": 0.0}
    turns = {
        "problem": "third",
        "turns": [["prove", "$a < b$"], ["verify", CRITIQUE], ["prove", "$a = b$"]],
        "turn_truth": [0, None, 1],
    }
    judged = {"problem": PROBLEM, "proof": PROOF, "truth": 1.0, "critique": CRITIQUE, "score": 0.0}
    judged |= {"marks": [True, False, True, True], "invented": 1, "quality": 0.0}
    for name, value in (("one", 0.9), ("two", 0.6)):
        run = tmp_path / name
        write_phase(run, "verifier", {accuracy: metric(0.5)}, {accuracy: metric(value)}, [shared, wrong])
        write_phase(run, "lap2/generator", samples=[shared, turns])
        write_phase(run, "lap2/selfverify", samples=[judged | {"step": 40}])
        (run / "run.json").write_text(json.dumps({"name": name, "seed": 3, "config": {"seed": 3}}))
    return tmp_path / "one", tmp_path / "two"


def test_a_comparison_comes_first_and_overwrites_nothing(tmp_path):
    one, two = two_runs(tmp_path)
    first = build_report(one)[0].read_text()
    paths = build_report(one, two)
    page = paths[0].read_text()
    assert [p.name for p in paths] == ["report-vs-two.html", "report-vs-two.json"]
    assert (one / "report.html").read_text() == first and not (two / "report.html").exists()
    assert page.index("one against two") < page.index("What the cycle gained")
    assert "−0.300 ± 0.071" in page and "✗ worse" in page and "reward (two)" in page
    assert "against" not in first
    with pytest.raises(InputError, match="no folder"):
        build_report(one, tmp_path / "none")


def test_several_seeds_are_one_page_with_mean_spread_and_each(tmp_path):
    one, two = two_runs(tmp_path)
    page = build_seeds([one, two])
    text = page.read_text()
    assert page.name == "report-of-2-runs.html" and not (one / "report.html").exists()
    assert "0.750" in text and "± 0.212" in text and ">0.900<" in text and ">0.600<" in text
    assert "+0.250" in text and "<svg" in text


def test_wrong_full_marks_are_a_validation_curve_of_verifiers_and_stay_beside_a_generators_reward(tmp_path):
    wrong = {"validation/false_accept_rate": metric(0.3)}
    write_phase(tmp_path, "verifier", wrong | {"validation/score_accuracy": metric(0.5)})
    write_phase(tmp_path, "generator", wrong | {"validation/verifier_reward": metric(0.5)})
    title, found = legend.entry("false_accept_rate").title, {}
    for phase in read_phases(tmp_path):
        found[phase.name] = {chart: [s.name for s in lines] for chart, _, lines, _ in curves(phase)}
    assert title in found["verifier"]["validation"] and title not in found["generator"]["validation"]
    assert title in found["generator"]["reward and truth on validation problems"]
    assert "reward and truth on validation problems" not in found["verifier"]


def test_figures_can_be_downloaded(tmp_path):
    one, _ = two_runs(tmp_path)
    page = build_report(one)[0].read_text()
    data = re.search(r'href="data:text/csv;base64,([^"]+)"', page)[1]
    rows = list(csv.DictReader(io.StringIO(b64decode(data).decode())))
    after = [r for r in rows if r["when"] == "after"]
    assert after[0]["figure"] == "score_accuracy" and after[0]["value"] == "0.9" and after[0]["n"] == "100"


def test_the_settings_that_differ_and_the_command_are_shown(tmp_path):
    settings = {"seed": 4, "laps": 2, "generator": {"lr": 1.0}, "unknown": 1}
    (tmp_path / "run.json").write_text(json.dumps({"name": "mine", "ranks": 2, "config": settings}))
    page = build_report(tmp_path)[0].read_text()
    assert "torchrun --nproc-per-node=2 train.py --phase=flywheel" in page
    assert "--seed=4" in page and "--generator.lr=1.0" in page and "<td>generator.lr</td>" in page
    assert "--unknown" not in page


def test_the_page_is_explored_in_a_browser(tmp_path, chromium):  # noqa: F811
    one, two = two_runs(tmp_path)
    page, outside = chromium.new_page(), []
    no_script_but_its_own(page, outside)
    path = build_report(one, two)[0].as_uri()
    page.goto(path)

    def shown():
        return [c.get_attribute("data-problem") for c in page.locator(".sample:visible").all()]

    assert page.locator("#f-count").inner_text() == "5 of 5 samples" and not shown()
    page.select_option("#f-phase", "verifier")
    assert shown() == ["shared problem", "other"]
    page.select_option("#f-error", "cut_off")
    assert shown() == ["other"]
    page.click("#f-clear")
    page.select_option("#f-score", "1")
    assert shown() == ["shared problem", "shared problem", "third", PROBLEM]
    page.fill("#f-text", "shared")
    page.locator(".follow").first.click()
    assert shown() == ["shared problem"] * 2  # in lap 1 and in lap 2
    assert page.locator("#f-count").inner_text() == "2 of 5 samples of one problem"
    link = page.url
    page.click("#f-clear")
    assert "#" not in page.url
    page.select_option("#f-step", "40")
    assert shown() == [PROBLEM]
    again = chromium.new_page()
    again.goto(link)  # a link keeps the filter
    assert again.locator("#f-count").inner_text() == "2 of 5 samples of one problem"
    assert again.locator("#f-text").input_value() == "shared"
    again.close()
    page.click("#f-clear")
    curve = page.locator("svg[data-series]").first
    curve.hover()
    tip = page.locator("#tip").inner_text()
    assert "step" in tip and "reward (two)" in tip
    curve.focus()
    page.keyboard.press("Home")
    assert page.locator("#tip").inner_text().startswith("step 0")
    page.keyboard.press("ArrowRight")
    assert page.locator("#tip").inner_text().startswith("step 1")
    assert not outside


def test_a_heading_that_a_link_leads_to_is_not_hidden_by_the_bar(tmp_path, chromium):  # noqa: F811
    page = chromium.new_page(viewport={"width": 900, "height": 500})
    page.goto(build_report(*two_runs(tmp_path))[0].as_uri())
    page.click("nav a[href='#generator-2']")
    page.wait_for_timeout(100)
    bar, heading = (page.locator(x).bounding_box() for x in ("#filters", "#generator-2"))
    assert heading["y"] >= bar["y"] + bar["height"] - 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_has_no_serious_accessibility_finding(tmp_path, chromium, scheme):  # noqa: F811
    one, two = two_runs(tmp_path)
    for path in (build_report(one, two)[0], build_seeds([one, two])):
        page = chromium.new_context(color_scheme=scheme, bypass_csp=True).new_page()
        page.goto(path.as_uri())
        if page.locator("#f-text").count():
            page.fill("#f-text", "e")
            page.wait_for_selector(".katex")
        page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        page.evaluate(AXE.read_text())
        found = page.evaluate("axe.run()")["violations"]
        assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


def test_the_page_fits_a_phone_with_the_result_in_view(tmp_path, chromium):  # noqa: F811
    one, two = two_runs(tmp_path)
    page = chromium.new_context(viewport={"width": 390, "height": 700}).new_page()
    for path in (build_report(one, two)[0], build_report(one)[0], build_seeds([one, two])):
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for cell in page.locator(".cards td:not(:empty):visible").all():
            box = cell.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_the_headline_is_also_lines_for_a_terminal(tmp_path):
    start, end = ({f"labelled/score_accuracy{t}": metric(v) for t in ("", "@T0")} for v in (0.7, 0.9))
    write_phase(tmp_path, "verifier", start, end)
    first, greedy = headline_text(tmp_path).splitlines()
    assert re.fullmatch(r"  1B verifier v1: score accuracy.* 0\.700 → 0\.900  \[0\.850, 0\.950\]", first)
    assert ", T = 0 " in greedy
