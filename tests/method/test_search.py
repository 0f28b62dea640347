"""Pool search: what weighs, when it stops, and that it goes on where it was stopped."""

import dataclasses
import json

import pytest
from conftest import small_model, some_problems

from nanov2.errors import InputError
from nanov2.method.config import SearchConfig
from nanov2.method.search import Candidate, RunVoices, Search, Weighed, append_state
from nanov2.model.rollout import Sampling

CONFIG = SearchConfig(pool=6, keep=2, children=2, rounds=2, n=4)


def test_an_issue_that_the_meta_verifier_rejects_hardly_counts():
    right = Candidate("a < b qed", critiques=[Weighed("", 1.0, 1.0)] * 3 + [Weighed("", 0.0, 0.1)])
    wrong = Candidate("a < b qed", critiques=[Weighed("", 1.0, 1.0)] * 3 + [Weighed("", 0.0, 1.0)])
    assert right.score > 0.95 and right.passes(4)
    assert wrong.score == 0.75 and not wrong.passes(4)


def test_a_proof_passes_only_with_all_its_critiques():
    assert not Candidate("", critiques=[Weighed("", 1.0, 1.0)] * 3).passes(4)
    assert not Candidate("").passes(0)


def test_the_sequential_test_gives_up_clear_cases_early_and_no_doubtful_ones():
    issue, clean = Weighed("", 0.0, 1.0), Weighed("", 1.0, 1.0)
    assert Candidate("", critiques=[issue, issue]).hopeless(CONFIG)
    assert not Candidate("", critiques=[issue]).hopeless(CONFIG)
    assert not Candidate("", critiques=[issue, issue, clean]).hopeless(CONFIG)
    assert not Candidate("", critiques=[Weighed("", 0.0, 0.2)] * 4).hopeless(CONFIG)  # not believed


@pytest.fixture
def search(tokenizer, prompts):
    model = small_model(tokenizer)
    return Search(RunVoices(model, model, model, prompts, Sampling(1.0, 24), 3), CONFIG)


def test_a_stopped_search_ends_as_an_undisturbed_one(search, tmp_path):
    problems = [p.text for p in some_problems(3)]
    whole = search.run(problems, tmp_path / "whole.jsonl")
    assert all(p.round == 1 + CONFIG.rounds and p.tokens > 0 for p in whole)
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    for kept in (1, 2, 5, len(lines) - 1):
        part = tmp_path / f"{kept}.jsonl"
        part.write_text("".join(lines[:kept]) + lines[kept][:25])  # killed in the middle of a line
        assert search.run(problems, part) == whole
    assert search.run(problems, tmp_path / "whole.jsonl") == whole  # nothing left to do


def test_a_state_of_another_search_is_refused(search, tmp_path):
    path = tmp_path / "state.jsonl"
    search.run([], path)
    search.config = dataclasses.replace(CONFIG, pool=9)
    with pytest.raises(InputError, match="other settings"):
        search.run([], path)
    search.config = CONFIG
    with open(path, "a") as f:
        f.write(json.dumps({"problem": 3}) + "\n")
    with pytest.raises(InputError, match="line 2"):
        search.run([], path)


def test_state_lines_hold_the_evidence(tmp_path, search):
    pool = search.run([some_problems(1)[0].text])[0]
    pool.candidates = [Candidate("a < b qed", 1.0, -1, 0, [Weighed("text", 0.5, 0.25)])]
    append_state(tmp_path / "s.jsonl", [pool])
    row = json.loads((tmp_path / "s.jsonl").read_text())
    assert row["candidates"][0]["critiques"] == [{"critique": "text", "score": 0.5, "weight": 0.25}]
