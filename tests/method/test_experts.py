"""Who scores: a file grades what it holds, a person the rest."""

import dataclasses

import pytest

from nanov2.errors import InputError
from nanov2.method.experts import make_expert
from nanov2.records import CritiqueRecord, ProofRecord, read_jsonl, write_jsonl


def test_a_person_may_mark_the_first_wrong_step_too(tmp_path):
    path = tmp_path / "proofs_to_score.jsonl"
    write_jsonl(path, [ProofRecord("P", "Let x = 1. So 2 = 1.", 0.0, wrong="So 2 = 1.")])
    for expert in (make_expert("person", tmp_path), make_expert(str(path), tmp_path)):
        (scored,) = expert.score_proofs([ProofRecord("P", "Let x = 1. So 2 = 1.")])
        assert (scored.score, scored.wrong) == (0.0, "So 2 = 1.")
    write_jsonl(path, [ProofRecord("P", "Let x = 1.", 0.0, wrong="So 3 = 1.")])
    with pytest.raises(InputError, match="'So 3 = 1.' is no part of the proof of 'P': give it word for word"):
        expert = make_expert("person", tmp_path)
        expert.score_proofs([ProofRecord("P", "Let x = 1.")])


def test_a_file_grades_what_it_holds_and_a_person_is_asked_for_the_rest(tmp_path):
    write_jsonl(tmp_path / "graded.jsonl", [ProofRecord("P", "a", 1.0), ProofRecord("P", "b", 0.5)])
    expert = make_expert(str(tmp_path / "graded.jsonl"), tmp_path / "phase")
    records = [ProofRecord("P", proof) for proof in ("b", "new", "a", "newer")]
    with pytest.raises(InputError, match="2 of 2 items wait for an expert"):
        expert.score_proofs(records)
    path = tmp_path / "phase" / "proofs_to_score.jsonl"
    asked = read_jsonl(path, ProofRecord)
    assert [r.proof for r in asked] == ["new", "newer"]
    write_jsonl(path, [dataclasses.replace(r, score=0.0) for r in asked])
    scored = expert.score_proofs(records)
    assert [(r.proof, r.score) for r in scored] == [("b", 0.5), ("new", 0.0), ("a", 1.0), ("newer", 0.0)]
    with pytest.raises(InputError, match="critiques_to_score.jsonl"):
        expert.score_critiques([CritiqueRecord("P", "a", "fine")])
