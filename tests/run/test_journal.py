"""Journals: what was written whole is never lost, and what was torn is never read."""

import errno
import json
import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanov2 import journal
from nanov2.errors import InputError
from nanov2.records import read_json

values = st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x), max_leaves=4)
rows = st.lists(st.dictionaries(st.text(max_size=5), values, max_size=3), max_size=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows, rows, st.integers(0, 200))
def test_a_journal_cut_anywhere_keeps_its_whole_lines_and_goes_on(tmp_path, first, second, cut):
    path = tmp_path / "j.jsonl"
    path.unlink(missing_ok=True)
    journal.append(path, first)
    data = path.read_bytes()
    path.write_bytes(data[: min(cut, len(data))])
    kept = journal.read(path)
    assert kept == first[: len(kept)] and len(kept) == data[:cut].count(b"\n")
    journal.append(path, second)
    assert journal.read(path) == kept + second


def test_a_line_torn_in_the_middle_is_named_or_left_out(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"a": 1}\n{"a": {"a": 2}\n[3]\n{"a": 4}\n')
    with pytest.raises(InputError, match="j.jsonl, line 2: not valid JSON"):
        journal.read(path)
    assert journal.read(path, lenient=True) == [{"a": 1}, {"a": 4}]
    assert journal.read(tmp_path / "none.jsonl") == []


WRITE = """
import resource, sys
from nanov2 import journal
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for i in range(100):
    journal.append(sys.argv[1], [{"number": i}])
"""


def test_a_full_disk_leaves_the_lines_that_were_confirmed(tmp_path):
    path = tmp_path / "j.jsonl"
    end = subprocess.run([sys.executable, "-c", WRITE, str(path)], capture_output=True, text=True)
    assert "cannot write" in end.stderr and "j.jsonl" in end.stderr
    numbers = [row["number"] for row in journal.read(path)]
    assert numbers == list(range(len(numbers))) and numbers and path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])  # a full disk; a folder that became read-only
def test_a_failed_sync_takes_the_line_back(tmp_path, monkeypatch, number):
    def full(fd):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "j.jsonl"
    journal.append(path, [{"a": 1}], sync=True)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=os.strerror(number)):
        journal.append(path, [{"a": 2}], sync=True)
    assert journal.read(path) == [{"a": 1}]


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff{}", b"[" * 100_000])
def test_a_json_file_that_is_cut_is_named(tmp_path, data):
    (tmp_path / "eval.json").write_bytes(data)
    with pytest.raises(InputError, match="eval.json"):
        read_json(tmp_path / "eval.json")
    (tmp_path / "eval.json").write_text(json.dumps({"a": 1}))
    assert read_json(tmp_path / "eval.json") == {"a": 1}
