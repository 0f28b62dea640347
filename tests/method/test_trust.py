"""Judges measured against a world's truth."""

import json
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from conftest import ScriptedServer
from scripts import ROOT

from nanov2.domains.domain import open_domain
from nanov2.domains.language import Language
from nanov2.domains.order import world
from nanov2.errors import InputError
from nanov2.hub.author import Answer
from nanov2.method import trust
from nanov2.method.judges import Judge
from nanov2.records import CritiqueRecord, write_jsonl
from nanov2.run.config import load_config


@pytest.fixture(scope="module")
def domain():
    return open_domain(load_config(ROOT / "configs" / "smoke.toml"))


@pytest.fixture(scope="module")
def cases(domain):
    return trust.draw_cases(domain, 60, 0)


@dataclass
class Scripted:
    """An author whose answers are a function of the question and its number."""

    answer: object
    identity: dict = field(default_factory=dict)

    def answers(self, questions, n=1, first=0):
        return [[Answer(self.answer(q[0], first + i)) for i in range(n)] for q in questions]


def measured(domain, cases, answer, n=1):
    language = Language()
    verifier = Judge(Scripted(answer), language, language.claimed_score, n)
    meta = Judge(Scripted(answer), language, language.claimed_quality, n)
    rows = trust.ask_verifier(verifier, language, domain, cases[0])
    return trust.trust(rows + trust.ask_meta(meta, language, domain, cases[1]))


def exact(question, number):
    """The world's expert as a judge."""
    problem, steps = world.parse_problem(question["problem"]), world.parse_proof(question["proof"])
    if question["task"] == "verify":
        return world.write_critique(world.examine(problem, steps))
    quality = world.grade_critique(problem, question["proof"], question["critique"]).quality
    return f"{world.MV_START}\n\n{world.MV_END} \\boxed{{{quality:g}}}"


def test_cases_are_of_each_score_quality_and_fault(cases):
    proofs, critiques = cases
    assert len(proofs) == len(critiques) == 60
    assert all(sum(c.score == s for c in proofs) == 20 for s in (0, 0.5, 1))
    assert {c.quality for c in critiques} == {0, 0.5, 1}
    kinds = {name for c in proofs for name in c.faults}
    assert {
        "a step that jumps",
        "another relation than the given one",
        "a step that does not follow",
    } <= kinds
    assert all(bool(c.faults) == (c.score < 1) for c in proofs)


def test_the_expert_has_every_figure_right(domain, cases):
    found = measured(domain, cases, exact, n=2)
    ones, zeros = ("read", "accuracy", "balanced", "legible", "quality"), ("accepts_wrong", "refuses_right")
    for name in ones:
        assert found["verifier"][name]["value"] == 1, name
    for name in (*zeros, "accepted_are_wrong", "invented", "missed"):
        assert found["verifier"][name]["value"] == 0 < found["verifier"][name]["n"], name
    assert found["meta"]["accuracy"]["value"] == 1 and found["meta"]["confirms_wrong"]["value"] == 0
    assert found["looks"]["worst"]["accuracy"]["value"] == 1
    assert found["by fault"]["no fault"]["accepts"]["value"] == 1
    assert (
        all(f["accuracy"]["value"] == 1 for f in found["by kind"].values())
        and "real numbers" in found["by kind"]
    )


def test_a_judge_that_passes_everything_is_found_out_by_kind_of_fault(domain, cases):
    lenient = f"{world.V_START}\n{world.V_END} \\boxed{{1}}"
    agree = f"{world.MV_START}\n{world.MV_END} \\boxed{{1}}"
    found = measured(domain, cases, lambda q, i: lenient if q["task"] == "verify" else agree)
    assert found["verifier"]["accepts_wrong"]["value"] == 1
    assert found["verifier"]["accepted_are_wrong"]["value"] == pytest.approx(2 / 3, abs=0.01)
    assert all(f["accepts"]["value"] == 1 for f in found["by fault"].values())
    assert found["meta"]["confirms_wrong"]["value"] == 1 and found["looks"] == {}
    assert all(f["confirms"]["value"] == 1 for f in found["meta by error"].values())


def test_a_meta_verifier_is_found_out_by_kind_of_error_and_of_problem(domain, cases):
    """One that confirms every critique but those that blame the ends of the chain."""
    blames = "blames the ends of the chain"

    def answer(question, number):
        if question["task"] == "verify":
            return None
        record = CritiqueRecord(question["problem"], question["proof"], question["critique"])
        return f"{world.MV_START}\n{world.MV_END} \\boxed{{{int(blames not in domain.view(record).errors)}}}"

    found = measured(domain, cases, answer)
    by_error = found["meta by error"]
    clean = by_error[trust.ERRORLESS]
    assert clean["confirms"]["value"] == clean["accuracy"]["value"] == 1
    assert by_error[blames]["confirms"]["value"] == 0 < by_error[blames]["confirms"]["n"]
    assert all(f["accuracy"]["n"] > 0 for f in by_error.values())
    assert found["meta by kind"].keys() <= {name for c in cases[1] for name in c.kind}
    assert found["meta by kind"]["real numbers"]["accuracy"]["n"] < found["meta"]["accuracy"]["n"]
    lines = trust.table(found).splitlines()
    assert {name for name in by_error if any(line.startswith(name) for line in lines)} == by_error.keys()
    json.dumps(found)


def test_a_critique_in_other_words_has_a_score_and_no_guess_about_its_issues(domain, cases):
    prose = f"{world.V_START}\nThe second step is unjustified.\n{world.V_END} \\boxed{{0}}"
    found = measured(domain, cases, lambda q, i: prose)["verifier"]
    assert found["read"]["value"] == 1 and found["accuracy"]["n"] == 60
    assert found["legible"]["value"] == 0 and found["missed"]["n"] == found["invented"]["n"] == 0
    assert "unknown" in trust.table(measured(domain, cases, lambda q, i: prose))


def test_an_answer_without_a_score_is_no_wrong_one(domain, cases):
    found = measured(domain, cases, lambda q, i: exact(q, i) if i else None, n=2)
    assert found["verifier"]["read"]["value"] == 0.5 and found["verifier"]["accuracy"]["value"] == 1
    nobody = measured(domain, cases, lambda q, i: None)
    assert nobody["verifier"]["accuracy"]["n"] == nobody["meta"]["accuracy"]["n"] == 0
    trust.table(nobody)


def test_prompts_are_the_papers_with_the_worlds_rubric_and_lines(domain, cases):
    case = cases[0][0]
    (plain,) = Language().verify(case.problem, case.proof)
    (asked,) = trust.guided([plain], domain.view(case.proof_record))
    assert asked["content"].startswith(plain["content"])
    assert "a step that is not given" in asked["content"] and "the ends of the goal" in asked["content"]


def test_where_nobody_knows_the_truth_nothing_is_measured(domain):
    class Unknown:
        truth = None

    with pytest.raises(InputError, match="nobody knows the truth"):
        trust.draw_cases(Unknown(), 3, 0)


def test_an_endpoint_is_measured_and_asked_nothing_twice(cases, tmp_path):
    pytest.importorskip("openai", reason="needs the openai library")
    known = [{"proof": c.proof, "score": c.score} for c in cases[0][:40]]
    write_jsonl(tmp_path / "truth.jsonl", known)
    server = ScriptedServer(tmp_path / "truth.jsonl")
    command = [sys.executable, "sample.py", "verify", "--config=configs/smoke.toml", "--model=judge", "--n=3"]
    command += [f"--endpoint={server.url}", "--limit=40", f"--output={tmp_path / 'judge.jsonl'}"]
    for requests in (2 * 40 * 3, 0):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert server.stats()["requests"] == requests
    server.process.kill()
    found = json.loads((tmp_path / "judge.figures.json").read_text())
    figures = found["figures"]["verifier"]  # the script passes 80% of the right proofs, 25% of the others
    assert found["judge"]["model"] == "judge" and found["domain"] == "order"
    # its draws depend on the port, so within about four standard deviations
    assert figures["refuses_right"]["value"] == pytest.approx(0.2, abs=0.2)
    assert figures["accepts_wrong"]["value"] == pytest.approx(0.25, abs=0.2)
    assert found["figures"]["looks"]["worst"]["accepts_wrong"]["value"] < figures["accepts_wrong"]["value"]
    assert len((tmp_path / "judge.jsonl").read_text().splitlines()) == 2 * 40 * 3
    assert "false accepts" in done.stdout and "by fault" in done.stdout


def test_a_domain_without_truth_asks_for_the_proof_instead():
    pytest.importorskip("openai", reason="needs the openai library")
    command = [
        sys.executable,
        "sample.py",
        "verify",
        "--domain=natural",
        "--endpoint=http://x/v1",
        "--model=m",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "error: which proof? Give --problem and --proof, or --data" in done.stderr
