"""Pool search: what weighs, when it stops, and that it goes on where it was stopped."""

import dataclasses
import json
import runpy
from collections import Counter
from types import SimpleNamespace

import pytest
from conftest import small_model, some_problems
from scripts import ROOT

from nanov2.domains.domain import open_domain
from nanov2.domains.language import V_END, V_START, Language
from nanov2.domains.order.world import ENDS, STRONG, parse_problem
from nanov2.errors import InputError
from nanov2.hub.author import Answer
from nanov2.hub.local import OwnAuthor
from nanov2.method.config import SearchConfig
from nanov2.method.search import Candidate, Search, Weighed, append_state, refine
from nanov2.method.trust import of_passes
from nanov2.model.rollout import Sampling
from nanov2.records import ProblemRecord
from nanov2.run.authors import Cast
from nanov2.run.config import load_config

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
    author = OwnAuthor(model, prompts, Sampling(1.0, 24), 3)
    return Search(author, author, author, prompts, CONFIG)


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


def test_what_was_written_is_kept_where_no_proof_is_found(prompts):
    class Mute:
        identity: dict = {}

        def answers(self, questions, n=1, first=0):
            return [[Answer("I do not know.", 4)] * n for _ in questions]

    (pool,) = Search(Mute(), Mute(), Mute(), prompts, CONFIG).run(["Show it."])
    found = pool.found(CONFIG.n)
    assert found["proof"] == "" and found["wrote"] == "I do not know." and found["missing"]


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


CRITIQUE = f"{V_START}\n{{}}\n{V_END} {{}}"
FINE = CRITIQUE.format("- step 1, - step 2", "\\boxed{1}")


class Scripted:
    """An author with an answer by number to each task."""

    identity = {"scripted": True}

    def __init__(self, **answers):
        self.by_task, self.asked = answers, []

    def answers(self, questions, n=1, first=0):
        firsts = first if isinstance(first, list) else [first] * len(questions)
        self.asked += [q[0]["task"] for q in questions for _ in range(n)]
        row = [self.by_task[q[0]["task"]] for q in questions]
        return [[Answer(told[i % len(told)], 7) for i in range(f, f + n)] for told, f in zip(row, firsts)]


def scripted_search(critiques, covers=lambda *_: True, **changes):
    proof = f"## Solution\nBy parity.\n## Self Evaluation\n{FINE}"
    author = Scripted(prove=[proof], revise=[proof], verify=critiques, meta=["no verdict"])
    config = SearchConfig(pool=1, rounds=0, n=4, chunk=4, **changes)
    (pool,) = Search(author, author, author, Language(), config, covers).run(["P"])
    return pool.found(config.n), author


def test_a_critique_that_does_not_parse_neither_passes_nor_bars():
    found, author = scripted_search([FINE, FINE, "unreadable", FINE])
    assert found["passes"] and len(found["critiques"]) == 4 and found["unread"] == 1
    found, author = scripted_search(["unreadable"])
    assert not found["passes"] and author.asked.count("verify") == 8  # asked again, but not for ever
    found, author = scripted_search([FINE, FINE, CRITIQUE.format("A gap.", "\\boxed{0}"), "unreadable"], m=0)
    assert not found["passes"]


def test_no_proof_passes_on_critiques_that_stop_before_its_end():
    found, _ = scripted_search([FINE], covers=lambda problem, proof, critique: "step 3" in critique)
    assert not found["passes"] and found["critiques"] == []
    assert scripted_search([FINE], covers=lambda problem, proof, critique: "step 2" in critique)[0]["passes"]


def test_refinement_asks_for_an_evaluation_where_the_answer_holds_none():
    doubt = CRITIQUE.format("A gap.", "\\boxed{0.5}")
    author = Scripted(prove=["## Solution\nA"], revise=["## Solution\nB"], verify=[doubt])
    ((draft, *_, last),) = [refine(author, Language(), ["P"], [0], rounds=3)[0]]
    assert (draft.proof, draft.score, draft.tokens, last.proof) == ("A", 0.5, 14, "B")
    assert author.asked == ["prove", "verify", "revise", "verify", "revise", "verify"]
    author.asked, author.by_task["verify"] = [], [FINE]
    assert len(refine(author, Language(), ["P"], [0], rounds=3)[0]) == 1
    author.by_task["verify"] = [doubt]
    assert len(refine(author, Language(), ["P"], [0], rounds=9, budget=20)[0]) == 2


def test_refinement_asks_again_for_an_answer_without_a_proof_where_it_is_told_to():
    doubt = CRITIQUE.format("A gap.", "\\boxed{0.5}")
    said = {"prove": ["I do not know.", "## Solution\nA", ""], "revise": ["", "## Solution\nB", ""]}
    said["verify"] = [doubt]
    (stopped,) = refine(Scripted(**said), Language(), ["P"], [0], rounds=4)
    assert [d.missing for d in stopped] == ["no proof in it"]
    (found,) = refine(Scripted(**said), Language(), ["P"], [0], rounds=4, again=True)
    assert [d.proof for d in found] == [None, "A", "B", "B"]  # under another number from there on
    silent = Scripted(**said | {"prove": [None]})  # such as one that was cut off
    assert len(refine(silent, Language(), ["P"], [0], rounds=4, again=True)[0]) == 1


def test_a_critics_evaluation_stands_in_place_of_the_authors_own():
    doubt = CRITIQUE.format("A gap.", "\\boxed{0.5}")
    proof = f"## Solution\nA\n## Self Evaluation\n{FINE}"
    author, critic = Scripted(prove=[proof], revise=[proof]), Scripted(verify=[doubt, FINE])
    (stopped,) = refine(author, Language(), ["P"], [1], rounds=3, critic=critic)
    (went_on,) = refine(author, Language(), ["P"], [0], rounds=3, critic=critic)
    assert [d.score for d in stopped] == [1] and [d.score for d in went_on] == [0.5] * 3
    assert went_on[0].critique == doubt and author.asked.count("verify") == 0


class Lenient(Scripted):
    """Proves each problem in one step, its goal, and finds that step given."""

    def __init__(self):
        super().__init__()

    def answers(self, questions, n=1, first=0):
        return [[Answer(self.answer(q[0]["task"], parse_problem(q[0]["problem"])), 7)] * n for q in questions]

    def answer(self, task, problem):
        step = f"{problem.goal.left} {problem.goal.relation} {problem.goal.right}"
        given = f"- ${step}$: given as ${problem.goal.relation}$, so this step is justified."
        critique = "\n".join([V_START, given, ENDS[True], STRONG[True], V_END + " \\boxed{1}"])
        return (
            critique
            if task == "verify"
            else f"## Solution\nIndeed, ${step}$.\n## Self Evaluation\n{critique}"
        )


def test_a_search_counts_how_many_of_its_passes_are_right_where_the_truth_is_known(capsys):
    search_all = runpy.run_path(str(ROOT / "sample.py"), run_name="script")["search_all"]
    settings = ["--search.pool=1", "--search.n=2", "--search.rounds=0"]
    config, author = load_config("configs/smoke.toml", settings), Lenient()
    given = "Suppose that real numbers satisfy $c < t$ and $c = f$. Show that $c < t$."
    false = "Suppose that real numbers satisfy $c < t$ and $c = f$. Show that $f = t$."
    items, args = [ProblemRecord(given), ProblemRecord(false)], SimpleNamespace(output="")
    cast = Cast(config, author, author, author, Language(), open_domain(config), one_critique="9 of 10")
    rows = search_all(cast, items, args, Counter())
    assert [(r["passes"], r["true_score"]) for r in rows] == [(True, 1.0), (True, 0.0)]
    assert {r["trust"] for r in rows} == {of_passes([True, False])} and "of 10" not in rows[0]["trust"]
    assert "1 of the 2 proofs that this search passed are right in truth (50.0%" in capsys.readouterr().out


def test_where_no_truth_is_known_a_pass_is_said_not_to_be_measured():
    assert of_passes([], "9 of 10") == "not measured for a search; of a single critique: 9 of 10"
    assert of_passes([]) == "not measured for these models"
    assert of_passes([True] * 10).endswith("(100.0%; 95% interval 72.2% to 100.0%)")
