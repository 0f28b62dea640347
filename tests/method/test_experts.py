"""Who scores: a file grades what it holds, a person the rest."""

import dataclasses

import pytest

from nanov2.errors import InputError
from nanov2.method.experts import make_expert
from nanov2.records import CritiqueRecord, ProofRecord, read_jsonl, write_jsonl


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
