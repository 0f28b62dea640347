"""benchmarks/runs.py: jobs in parallel that go on where they were stopped, and tables that go into texts."""

import sys
import time

import pytest

from benchmarks.runs import Job, check_runs, difference, do_all, fill
from nanov2.errors import InputError


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
