"""Critiques graded by the place of a marked first wrong step; CHAMP's file; data with such a column."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts import inside

from nanov2.domains.data import DataConfig, load
from nanov2.domains.language import V_END, V_START
from nanov2.domains.marks import MarkedLanguage, claimed_places, grade_by_marks
from nanov2.domains.natural.domain import critique_in_form, sentences
from nanov2.errors import InputError
from nanov2.method.consensus import Assessed
from nanov2.method.experts import MarksExpert, gradable, make_expert
from nanov2.method.trust import by_marks, marked_critiques
from nanov2.records import CritiqueRecord, ProofRecord, read_jsonl, write_jsonl
from tools import champ

PROOF = (
    "Let n be even. Then n = 2k for some k.\nSo n squared is 4k + 2.\nTherefore n squared is divisible by 4."
)
WRONG = "So n squared is 4k + 2."


def critique(*lines, score=0):
    return "\n".join([V_START, *lines, f"{V_END} \\boxed{{{score:g}}}"])


BEFORE, AT = 'Issue: "Then n = 2k for some k" needs a reason.', "- **Issue:** “n squared is 4k + 2” is false."
AFTER = 'Issue: "Therefore n squared is divisible by 4" does not follow.'


@pytest.mark.parametrize(
    "text, wrong, quality, invented, missed",
    [
        (critique(AT), WRONG, 1.0, 0, 0),
        (critique(AT, AFTER), WRONG, 1.0, 0, 0),
        (critique(BEFORE, AT), WRONG, 0.5, 1, 0),
        (critique(BEFORE), WRONG, 0.0, 1, 1),
        (critique(AFTER), WRONG, 1.0, 0, 1),  # what follows a wrong step nobody has marked
        (critique("No issue.", score=1), WRONG, 1.0, 0, 1),  # to claim none is reasonable; R_score pays
        (critique(AT, score=1), WRONG, 0.5, 0, 0),  # the score does not follow
        (critique("Issue: it is wrong somewhere."), WRONG, 0.5, 0, 1),  # nor does this
        (critique("No issue.", score=1), "", 1.0, 0, 0),
        (critique(AT), "", 0.0, 1, 0),
        (critique("It is wrong somewhere.", score=0.5), "", 0.0, 1, 0),
        ("no verdict", WRONG, 0.0, 0, 0),
    ],
)
def test_ms_comes_from_where_defects_are_claimed(text, wrong, quality, invented, missed):
    grade = grade_by_marks(PROOF, wrong, text)
    assert (grade.quality, grade.invented, grade.missed) == (quality, invented, missed)


def test_quotations_are_found_in_spite_of_spacing_capitals_and_what_is_left_out():
    for quoted in (
        '"n  SQUARED is 4k + 2"',
        "`So n squared is 4k`",
        '"So … n squared is 4k + 2"',
        "$squared is 4k$",
    ):
        (place,) = claimed_places(PROOF, critique(f"Issue: {quoted} is false."))
        assert place and PROOF[place[0] : place[1] + 1] in WRONG, quoted
    assert claimed_places(PROOF, critique('Issue: "n" is "another proof".')) == [None]
    free = critique('The step "n squared is 4k + 2" is false.', "Everything else hangs on it.")
    assert len(claimed_places(PROOF, free)) == 1  # without the form, what quotes is a claim


@given(st.text(max_size=60), st.text(alphabet='Issue: "n=2k`$…\n', max_size=60))
def test_any_text_is_graded(proof, lines):
    grade = grade_by_marks(proof, proof[3:9], critique(lines))
    assert grade.quality in (0, 0.5, 1) and grade.invented >= 0


def test_the_form_that_demonstrations_teach_says_where(tmp_path):
    (quote, *_) = sentences(PROOF)
    assert quote in PROOF
    assert claimed_places(PROOF, critique_in_form(0.0, quote))[0][0] == 0
    (message,) = MarkedLanguage().verify("P", PROOF)
    assert '"Issue:"' in message["content"] and message["task"] == "verify"


def test_marks_are_read_from_data_and_must_be_of_the_proof(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(f'problem,proof,score,wrong\nP,"{PROOF}",0,{WRONG}\nQ,Fine.,1,\n')
    records = load(DataConfig(str(path)), ProofRecord).records
    assert [r.wrong for r in records] == [WRONG, ""]
    assert MarksExpert().score_proofs(records) == records
    path.write_text("problem,proof,score,wrong\nP,Fine.,0,Something else\n")
    with pytest.raises(InputError, match="line 2, column 'wrong': not a part of the proof"):
        load(DataConfig(str(path)), ProofRecord)


def test_the_expert_refuses_grades_that_contradict_the_marks():
    expert = make_expert("marks", None)
    for record in (ProofRecord("P", PROOF, 0.0), ProofRecord("P", PROOF, 1.0, wrong=WRONG)):
        with pytest.raises(InputError, match='expert "marks".*first wrong step'):
            expert.score_proofs([record])
    graded = CritiqueRecord("P", PROOF, critique(BEFORE, AT), None, 0.0, wrong=WRONG)
    assert expert.score_critiques([graded])[0].quality == 0.5


def test_a_faulty_proof_without_a_mark_has_a_score_and_its_critiques_no_quality():
    unmarked, marked = ProofRecord("P", PROOF, 0.0), ProofRecord("Q", PROOF, 0.0, wrong=WRONG)
    right, new = ProofRecord("R", PROOF, 1.0), ProofRecord("S", PROOF)
    expert, known = make_expert("marks", None), [unmarked, marked, right]
    assert expert.score_proofs(known) == known
    assert gradable("marks", [*known, new]) == [marked, right]
    assert gradable("grades", known) == known
    with pytest.raises(InputError, match="score 0 and no first wrong step"):
        expert.score_critiques([CritiqueRecord("P", PROOF, critique(AT), None, 0.0)])
    found = [[Assessed(critique(AT), 0.0, True)]] * 4
    assert [r.problem for r in marked_critiques([*known, new], found)] == ["Q", "R"]


def test_a_judge_is_reported_by_marks():
    items = [ProofRecord("P", PROOF, 0.0, wrong=WRONG), ProofRecord("Q", PROOF, 1.0)]
    found = [[Assessed(critique(t), 0.0, True)] for t in (AT, BEFORE)]
    records = marked_critiques(items, found)
    assert [r.quality for r in records] == [1.0, 0.0]
    assert "with an invented defect" in by_marks(records) and by_marks([])


def champ_file(folder, problems=1, **changes):
    """A file in CHAMP's form, made up."""
    note = {"text": PROOF, "start_idx": PROOF.index(WRONG), "end_idx": PROOF.index(WRONG) + len(WRONG)}
    clean = {"text": "It is 4k^2.", "start_idx": None, "end_idx": None}
    notes = {"fws_annotations": {"A|x": note | changes, "B|x": clean}, "category": "Number Theory"}
    found = {"P_1": {"_raw_text": "Let @@n@@ be even.", **notes}}
    found |= {f"P_{i}": {"_raw_text": f"Let @@n@@ be {2 * i}.", **notes} for i in range(2, problems + 1)}
    (folder / "v0.json").write_text(json.dumps({"problems": found}))
    return folder / "v0.json"


def test_any_endpoint_is_measured_on_champ_and_labels_it(tmp_path, scripted_server, capsys):
    """The commands of configs/champ.toml, one after the other."""
    proofs, judged, labels = (tmp_path / f"{name}.jsonl" for name in ("champ", "judged", "labels"))
    write_jsonl(proofs, champ.solutions(champ_file(tmp_path, problems=4)))
    asked = ["--config=configs/champ.toml", f"--endpoint={scripted_server.url}", "--model=judge"]

    inside("sample.py", "verify", *asked, f"--data={proofs}", "--n=4", f"--output={judged}")
    told, rows = capsys.readouterr().out, [json.loads(line) for line in judged.read_text().splitlines()]
    assert "mean quality by marks" in told and "of wrong proofs: missing the first wrong step" in told
    assert "balanced" in told and len(rows) == 8 and all(len(row["critiques"]) == 4 for row in rows)
    assert {c["quality"] for row in rows for c in row["critiques"]} <= {0, 0.5, 1}
    critiques = read_jsonl(f"{judged}.critiques.jsonl", CritiqueRecord)
    assert len(critiques) == 32 and {r.wrong for r in critiques} == {WRONG, ""}

    inside("sample.py", "meta", *asked, f"--data={judged}.critiques.jsonl", f"--output={tmp_path}/m.jsonl")
    assert "quality: accuracy" in capsys.readouterr().out
    distinct = {(r.problem, r.proof, r.critique) for r in critiques}
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == len(distinct)

    inside("autolabel.py", *asked, f"--data={proofs}", f"--out={labels}")
    told = capsys.readouterr().out
    assert "kept" in told and "proofs labelled" in told and "balanced" in told
    rest = read_jsonl(labels.with_name("labels.unclear.jsonl"), ProofRecord)
    assert len(read_jsonl(labels, ProofRecord)) + len(rest) == 8


def test_champs_solutions_become_graded_proofs_with_their_first_wrong_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["champ.py", str(tmp_path / "out.jsonl"), str(champ_file(tmp_path))])
    champ.main()
    assert "2 solutions of 1 problems, 1 with a wrong step" in capsys.readouterr().out
    first, second = load(DataConfig(str(tmp_path / "out.jsonl")), ProofRecord).records
    assert (first.problem, first.score, first.wrong) == ("Let $n$ be even.", 0.0, WRONG)
    assert (second.score, second.wrong) == (1.0, "")


@pytest.mark.parametrize("changes", [{"start_idx": 900, "end_idx": 910}, {"text": None}, {"start_idx": "x"}])
def test_a_file_of_another_form_is_named(tmp_path, changes):
    with pytest.raises(InputError, match="P_1, 'A.x': not a solution in CHAMP's form"):
        champ.solutions(champ_file(tmp_path, **changes))


def test_a_step_whose_words_occur_before_is_told_apart(tmp_path):
    text = "So x = 1. Hence x = 2. So x = 1. Done."
    begin = text.rindex("So x = 1.")
    changes = {"text": text, "start_idx": begin, "end_idx": begin + len("So x = 1.")}
    record, _ = champ.solutions(champ_file(tmp_path, **changes))
    assert text.find(record.wrong) == begin


def test_all_of_the_installed_champ_is_read(tmp_path):
    pytest.importorskip("champ_dataset", reason="the extra champ is not installed")
    records = champ.solutions(champ.installed())
    assert len(records) == 540 and sum(bool(r.wrong) for r in records) == 444
    write_jsonl(tmp_path / "champ.jsonl", records)
    assert len(load(DataConfig(str(tmp_path / "champ.jsonl")), ProofRecord).records) == 540
