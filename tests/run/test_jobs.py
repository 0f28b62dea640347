"""benchmarks/runs.py: jobs in parallel that go on where they were stopped, and tables that go into texts."""

import re
import sys
import time
from pathlib import Path

import pytest

from benchmarks import ablations, laps
from benchmarks.runs import Job, check_runs, difference, do_all, fill
from nanov2.errors import InputError
from nanov2.records import read_json

DOCS = Path(__file__).parents[2] / "docs"


def job(folder, name, code="", needs=()):
    done = folder / name
    command = (sys.executable, "-c", code or f"open({str(done)!r}, 'w').close()")
    return Job(name, command, done, folder / f"{name}.log", tuple(folder / need for need in needs))


def test_jobs_wait_for_what_they_need_and_finished_ones_are_not_done_again(tmp_path):
    asked = [job(tmp_path, "b", needs=["a"]), job(tmp_path, "a")]
    ended = []
    assert do_all(asked, 2, after=lambda: ended.append(sorted(p.name for p in tmp_path.glob("?")))) == []
    assert ended == [["a"], ["a", "b"]]
    assert do_all([job(tmp_path, "a", "raise SystemExit(1)")], 1) == []


def test_what_goes_wrong_is_told_and_the_rest_is_done(tmp_path):
    broken = job(tmp_path, "broken", "print('why'); raise SystemExit(1)")
    wrong = do_all([broken, job(tmp_path, "after", needs=["broken"]), job(tmp_path, "other")], 1)
    assert [line.split(":")[0] for line in wrong] == ["broken", "after"]
    assert (tmp_path / "other").is_file() and "why" in (tmp_path / "broken.log").read_text()


def test_when_the_time_is_up_what_runs_is_asked_to_end_and_no_more_is_begun(tmp_path):
    slow = job(tmp_path, "slow", "import time; time.sleep(60)")
    begin = time.monotonic()
    assert do_all([slow, job(tmp_path, "later")], 1, minutes=0.01) == []
    assert time.monotonic() - begin < 20 and not (tmp_path / "later").is_file()


def test_a_part_of_a_text_is_replaced_and_the_rest_stays(tmp_path):
    path = tmp_path / "text.md"
    path.write_text("before\n<!-- a -->\nold\n<!-- end a -->\nafter\n")
    fill(path, {"a": "new \\1\n", "b": "more"})
    text = "before\n<!-- a -->\nnew \\1\n<!-- end a -->\nafter\n"
    assert path.read_text() == text + "<!-- b -->\nmore\n<!-- end b -->\n"


def test_differences_say_their_signs():
    assert difference([0.1, 0.2, -0.1]).endswith("2 of 3 above 0")
    assert difference([0.1]) == "+0.100 (one seed)" and difference([]) == "not measured yet"


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not the folder of a run"):
        check_runs([tmp_path])
    (tmp_path / "config.json").touch()
    with pytest.raises(InputError, match="given twice"):
        check_runs([tmp_path, tmp_path / "."])


def test_docs_hold_the_tables_of_the_figures_that_are_there():
    found = {
        name: read_json(path) for name in ("laps", "ablations") if (path := DOCS / f"{name}.json").is_file()
    }
    known = {"laps": {"seeds": [], "laps": 4}, "ablations": {"variants": {}}} | found
    made = {
        "laps": laps.lap_table(known["laps"]["seeds"], known["laps"]["laps"]),
        "ablations": ablations.ablation_table(known["ablations"]["variants"]),
    }
    for name, part in made.items():
        held = re.search(
            f"<!-- {name} -->\n(.*?)\n<!-- end {name} -->", (DOCS / "results.md").read_text(), re.DOTALL
        )
        assert held and held[1] == part.strip(), f"write {name} anew: {name}.py … --out=docs"


def figures(*values):
    """Final true scores of phase 3 at temperature 1, lap by lap."""
    return {str(lap): {"final true score, phase 3, T = 1": v} for lap, v in enumerate(values, 1)}


def test_laps_are_compared_within_seeds_and_those_that_are_missing_are_left_out():
    one = {"with labels": figures(0.4, 0.6), "without": figures(0.4, 0.5)}
    two = {"with labels": figures(0.5, 0.7), "without": figures(0.5) | {"2": {}}}
    found = [row[1:] for row in laps.rows([one, two], 2) if row[0] == "final true score, phase 3, T = 1"]
    assert found[0] == ["with labels", "0.450 ± 0.071 (0.400, 0.500)", "0.650 ± 0.071 (0.600, 0.700)"]
    assert found[1][2] == "0.500" and found[2] == ["difference", "–", "+0.100 (one seed)"]


def test_an_ablation_does_the_phases_between_that_the_runs_settings_ask_for(tmp_path):
    run = tmp_path / "seed0"
    (run / "lap2" / "verifier2").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    assert ablations.jobs([run], ["hardest-labels"], []) == []  # not finished: left out
    (run / "lap2" / "verifier2" / "phase.json").touch()

    def phases(name):
        return [
            job.done.relative_to(tmp_path / f"seed0-{name}").parent
            for job in ablations.jobs([run], [name], [])
        ]

    lap2 = Path("lap2")
    assert phases("hardest-labels") == [Path("autolabel"), lap2 / "verifier2"]
    assert phases("renew-meta") == [lap2 / "renew_meta", lap2 / "verifier2"]
    (run / "config.json").write_text('{"lap_verifier2": {"init": "consolidated"}}')
    assert phases("hardest-labels") == [Path("autolabel"), lap2 / "consolidate", lap2 / "verifier2"]
