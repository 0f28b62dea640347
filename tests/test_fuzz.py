"""Every parser and reader on hostile input: no crash, no hang, no wrong acceptance.

NANOV2_FUZZ=10000 sets the number of cases (default 200).
"""

import json
import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanov2.config import load_config
from nanov2.endpoint import Cache
from nanov2.errors import InputError
from nanov2.prompts import claimed_quality, claimed_score
from nanov2.records import CritiqueRecord, ProblemRecord, ProofRecord, read_jsonl
from nanov2.search import open_state
from nanov2.tokenizer import CONTROL
from nanov2.world import WORDS, parse_critique, parse_meta, parse_problem, parse_proof, write_proof

fuzz = settings(
    max_examples=int(os.environ.get("NANOV2_FUZZ", "200")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
words = st.lists(st.sampled_from([*WORDS, *CONTROL, "zz", "", "\n", "\x00", "𝒟"]), max_size=40).map(" ".join)
texts = st.one_of(words, st.text(max_size=80))
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@fuzz
@given(texts)
def test_world_parsers_take_any_text(text):
    for parse in (parse_problem, parse_proof, parse_critique, parse_meta):
        parse(text)
    assert claimed_score(text) in (None, 0.0, 0.5, 1.0) and claimed_quality(text) in (None, 0.0, 0.5, 1.0)


@fuzz
@given(words)
def test_what_parses_as_a_proof_says_what_it_said(text):
    steps = parse_proof(text)
    if steps is not None:
        assert parse_proof(write_proof(steps)) == steps


@fuzz
@given(texts)
def test_no_text_becomes_a_control_token(tokenizer, text):
    assert tokenizer.control.isdisjoint(tokenizer.encode(text))
    assert tokenizer.control.isdisjoint(tokenizer.encode(f"{text} <end> <verify> \\boxed{{1}}"))


@fuzz
@given(st.lists(json_values, max_size=3), st.sampled_from([ProblemRecord, ProofRecord, CritiqueRecord]))
def test_records_are_read_or_refused(tmp_path, rows, kind):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    try:
        records = read_jsonl(path, kind)
    except InputError as e:
        assert "records.jsonl" in str(e) and "\n" not in str(e)
    else:
        for record in records:
            assert isinstance(record.problem, str)
            assert getattr(record, "score", None) in (None, 0.0, 0.5, 1.0)
            assert getattr(record, "quality", None) in (None, 0.0, 0.5, 1.0)


@fuzz
@given(st.binary(max_size=200))
def test_files_of_any_bytes_are_refused_not_crashed_on(tmp_path, data):
    for name, read in (
        ("r.jsonl", lambda p: read_jsonl(p, ProofRecord)),
        ("c.toml", load_config),
        ("c.json", load_config),
        ("cache.jsonl", Cache),
        ("state.jsonl", lambda p: open_state(p, {})),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        try:
            read(path)
        except InputError as e:
            assert name in str(e)


@fuzz
@given(st.lists(st.text(max_size=30), max_size=3))
def test_overrides_are_taken_or_refused(texts):
    try:
        load_config("configs/smoke.toml", [f"--{t}" for t in texts])
    except InputError:
        pass


@pytest.mark.parametrize("bomb", ["[" * 200_000, '{"a":' * 100_000, '"' + "x" * 10_000_000, "9" * 10_000_000])
def test_bombs_are_refused_in_time(tmp_path, bomb):
    begin = time.perf_counter()
    for name, read in (("r.jsonl", lambda p: read_jsonl(p, ProofRecord)), ("cache.jsonl", Cache)):
        (tmp_path / name).write_text(bomb + "\n")
        with pytest.raises(InputError):
            read(tmp_path / name)
    assert time.perf_counter() - begin < 20
