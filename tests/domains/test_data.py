"""Files of problems, proofs and critiques: columns, grades, duplicates, splits, errors that name a place."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanov2.domains.data import DataConfig, load, split
from nanov2.errors import InputError
from nanov2.records import CritiqueRecord, ProblemRecord, ProofRecord
from nanov2.run.config import load_config

ROOT = Path(__file__).parents[2]
SAMPLE = str(ROOT / "tests" / "data" / "open-proof-corpus-sample.jsonl")


def write(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def proofs(path, **settings):
    return load(DataConfig(path, **settings), ProofRecord)


def test_the_sample_of_the_open_proof_corpus_is_read():
    loaded = proofs(SAMPLE)
    assert loaded.counts == {"kept": 8} and loaded.levels == {("0", 0.0): 4, ("1", 1.0): 4}


def test_columns_and_scales_are_mapped_and_told(tmp_path):
    text = '\ufeffid,question,solution,points\n1,P1,"line\nbreak",7\n2,P2,b,5\n3,P2,c,1\n3,P2, C ,1\n'
    path = write(tmp_path, "grades.csv", text)
    loaded = proofs(path, problem="question", proof="solution", score="points", full=7, half=4)
    assert [r.score for r in loaded.records] == [1.0, 0.5, 0.0]
    assert loaded.records[0].proof == "line\nbreak"
    assert loaded.report() == "3 kept, 1 duplicate; grades 1 → 0 (1), 5 → 0.5 (1), 7 → 1 (1)"


@pytest.mark.parametrize(
    "grade, level",
    [
        ("Correct", 1.0),
        (True, 1.0),
        (False, 0.0),
        ("incorrect", 0.0),
        ("partial", 0.5),
        ("7", 1.0),
        (3.9, 0.5),
    ],
)
def test_grades_in_words_are_shares_of_full(tmp_path, grade, level):
    path = write(tmp_path, "a.jsonl", json.dumps({"problem": "p", "proof": "q", "score": grade}))
    assert proofs(path, full=7, half=3.5).records[0].score == level


def test_points_out_of_a_maximum_of_each_row(tmp_path):
    rows = [("a", 21, 21), ("b", 5, 7), ("c", 6, 10)]
    text = "".join(json.dumps({"problem": "p", "proof": a, "score": s, "of": m}) + "\n" for a, s, m in rows)
    loaded = proofs(write(tmp_path, "a.jsonl", text), maximum="of", half=0.7)
    assert [r.score for r in loaded.records] == [1.0, 0.5, 0.0]
    assert ("5/7", 0.5) in loaded.levels


def test_a_scale_that_was_not_stated_is_an_error_not_all_ones(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"problem": "p", "proof": "q", "score": 6}')
    with pytest.raises(InputError, match="line 1, column 'score': grade 6 is not from 0 to 1; set data.full"):
        proofs(path)
    assert proofs(path, full=6, half=3, top=7).records[0].score == 1.0
    for wrong in ({"half": 0}, {"half": 2}, {"full": 7, "top": 6}, {"held_out": 1}):
        with pytest.raises(ValueError):
            DataConfig(path, **wrong)
    with pytest.raises(InputError, match="half <= full"):
        load_config(None, ["--data.half=2"])


def test_a_pair_with_two_grades_is_told_apart_from_a_plain_duplicate(tmp_path):
    rows = [{"problem": "p", "proof": "q", "score": s} for s in (1, 1, 0)]
    loaded = proofs(write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows))))
    assert loaded.counts == {"kept": 1, "duplicate": 1, "duplicate with another grade": 1}


def test_long_items_are_left_out_and_counted(tmp_path):
    rows = [{"problem": "p", "proof": "q" * n, "score": 1} for n in (3, 300)]
    loaded = proofs(write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows))), max_chars=100)
    assert loaded.counts == {"kept": 1, "too long": 1}


def test_grades_may_be_missing_but_a_named_column_may_not(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"problem": "p", "proof": "q"}')
    loaded = proofs(path)
    assert loaded.records[0].score is None and loaded.counts["ungraded"] == 1
    with pytest.raises(InputError, match="line 1: no column 'points'"):
        proofs(path, score="points")


def test_problems_and_critiques_are_read_too(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"problem": "p", "proof": "q", "critique": "c", "quality": 0.5}')
    assert load(DataConfig(path), ProblemRecord).records == [ProblemRecord("p")]
    assert load(DataConfig(path), CritiqueRecord).records[0].quality == 0.5


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.jsonl", '{"problem": "p"}', "line 1: no column 'proof'"),
        ("a.jsonl", '{"problem": "p", "proof": "q", "score": 1}\n{"prob', "line 2: not valid JSON"),
        ("a.jsonl", '\n{"problem": "p", "proof": "q", "score": "good"}', "line 2, column 'score': 'good' is"),
        ("a.jsonl", '{"problem": "p", "proof": "q", "score": NaN}', "line 1, column 'score': nan is not"),
        ("a.jsonl", '{"problem": "p", "proof": "q", "score": [1]}', "line 1, column 'score'"),
        ("a.jsonl", '{"problem": "p", "proof": 3, "score": 1}', "line 1, column 'proof': must be text"),
        ("a.jsonl", '{"problem": "p", "proof": " ", "score": 1}', "line 1, column 'proof': must be text"),
        ("a.jsonl", '{"problem": "p", "proof": "\\ud800", "score": 1}', "column 'proof': not Unicode"),
        ("a.jsonl", "[1]", "line 1: must be a JSON object"),
        ("a.jsonl", "[" * 100_000, "line 1: not valid JSON"),
        ("a.jsonl", "", "nothing in it"),
        ("a.csv", "", "nothing in it"),
        ("a.csv", "problem,proof,score\np,q\n", "line 2: the row has 2 cells, the header 3"),
        ("a.csv", 'problem,proof,score\n"p\np",q,1\nr,"s\n', "line 4: not valid CSV"),
    ],
)
def test_bad_lines_are_named_by_line_and_column(tmp_path, name, text, message):
    path = write(tmp_path, name, text)
    with pytest.raises(InputError, match=message):
        proofs(path)


def test_a_file_that_is_not_there_or_not_text_is_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        proofs(str(tmp_path / "none.jsonl"))
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        proofs(str(tmp_path / "a.jsonl"))


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1), st.floats(0, 0.99), st.integers(0, 99))
def test_no_problem_is_on_both_sides_of_a_split(names, share, seed):
    records = [ProofRecord(name + " " * (i % 3), str(i)) for i, name in enumerate(names)]
    train, held_out = split(records, share, seed)
    assert len(train) + len(held_out) == len(records)
    assert not {r.problem.strip() for r in train} & {r.problem.strip() for r in held_out}


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/graded-proofs-*.toml")), ids=lambda p: p.stem)
def test_ready_configurations_are_valid(path):
    assert load_config(path).data.full == 1.0


@pytest.mark.parametrize("grade", ["１", "1_0e-1", "٠", "0x1", "nan", "inf", "1e999", "1 0", "0.5\x1c5"])
def test_a_grade_is_a_plain_number(tmp_path, grade):
    (tmp_path / "a.jsonl").write_text(json.dumps({"problem": "p", "proof": "q", "score": grade}))
    with pytest.raises(InputError, match="not a grade"):
        load(DataConfig(str(tmp_path / "a.jsonl")), ProofRecord)


def test_two_columns_of_one_name_are_refused_by_name(tmp_path):
    (tmp_path / "a.csv").write_text("problem,proof,score,score\np,q,0,1\n")
    with pytest.raises(InputError, match="two columns are named 'score'"):
        load(DataConfig(str(tmp_path / "a.csv")), ProofRecord)
