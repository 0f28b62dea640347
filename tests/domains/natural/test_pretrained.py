"""The phases of train.py on a pretrained chat model: a tiny one, on graded proofs of a few words."""

import dataclasses
import json
import runpy
import shutil

import pytest
import torch
from chat_model import graded_proofs, make_folder, marked_proofs, marked_texts, spreadsheet
from scripts import ROOT, do_phases, run

from nanov2.domains import language as natural
from nanov2.domains.language import Language
from nanov2.domains.natural.domain import NaturalDomain, critique_in_form, proof_in_form
from nanov2.errors import InputError
from nanov2.hub.chat import ChatTokenizer, load_model
from nanov2.method.experts import GradesExpert, is_marked
from nanov2.method.tasks import SelfVerifyTask, judged_proofs
from nanov2.model.rollout import Rollout, Sampling
from nanov2.model.sampler import sample
from nanov2.records import (
    CritiqueRecord,
    ProblemRecord,
    ProofRecord,
    TrajectoryRecord,
    read_json,
    read_jsonl,
    write_jsonl,
)
from nanov2.run.config import from_dict

# What a user writes: their model, their spreadsheet with points out of seven, and how long to train.
TOML = """\
domain = "natural"
expert = "grades"
laps = 2
data.held_out = 0.2
coldstart.problems = 30
coldstart.expert = "nobody"
base.steps = 150
base.batch = 8
base.lr = 3e-3
eval.proofs = 8
eval.samples = 1
eval.rounds = 2
grpo.steps = 1
grpo.prompts = 3
grpo.samples = 3
grpo.refill = 0
grpo.max_tokens = 110
generator.init = "verifier"
selfverify.init = "generator"
selfverify.max_turns = 2
lap_verifier2.init = "consolidated"
consolidate.steps = 1
autolabel.problems = 3
autolabel.proofs = 1
autolabel.n = 3
autolabel.m = 1
autolabel.rule = "worst"  # labels whatever can be read at all
pretrained.folder = "{folder}"
data.path = "{folder}/proofs.csv"
data.problem = "statement"
data.proof = "solution"
data.score = "points"
data.full = 7
data.half = 4
"""
PHASES = ["base", "coldstart", "verifier", "meta", "verifier2", "generator", "selfverify", "autolabel"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("chat"))


def train(folder, runs, *args, **options):
    config = runs.parent / "mine.toml"
    config.write_text(TOML.format(folder=folder))
    return run("train.py", f"--config={config}", f"--dir={runs}", *args, **options)


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs") / "natural"
    code, _, err = train(folder, runs)
    assert code == 0, err
    return runs


def test_the_whole_cycle_runs_on_a_chat_model(finished):
    for phase in [*PHASES, *(f"lap2/{p}" for p in ("consolidate", *PHASES[4:]))]:
        assert (finished / phase / "phase.json").is_file(), phase
    base = json.loads((finished / "base" / "eval.json").read_text())
    assert base["after"]["held-out/loss"]["value"] < 0.3 * base["before"]["held-out/loss"]["value"]
    assert (
        base["after"]["labelled/unparsed_rate"]["value"] < base["before"]["labelled/unparsed_rate"]["value"]
    )
    generator = json.loads((finished / "generator" / "eval.json").read_text())["after"]
    assert "labelled/proof_format_rate" in generator and "labelled/true_score" not in generator
    assert "NaN" not in (finished / "report.json").read_text()


def test_a_spreadsheet_with_points_out_of_seven_is_what_it_learnt_from(finished):
    rows = [json.loads(row) for row in (finished / "coldstart" / "dv.jsonl").read_text().splitlines()]
    assert len(rows) > 100 and {row["score"] for row in rows} == {0, 0.5, 1}
    points = {row["solution"]: float(row["points"]) for row in spreadsheet()}
    assert all(
        row["score"] == (1 if p == 7 else 0.5 if p >= 4 else 0)
        for row in rows
        for p in [points[row["proof"]]]
    )


def weak_proofs(rows):
    return [r for r in rows if r.source.startswith("coldstart/")]


def test_what_a_weak_prover_writes_beside_graded_proofs_is_kept_where_nobody_scores_it(finished):
    waiting = read_jsonl(finished / "coldstart" / "unscored_proofs.jsonl", ProofRecord)
    learnt = read_jsonl(finished / "coldstart" / "dv.jsonl", ProofRecord)
    assert waiting and waiting == weak_proofs(waiting) and not weak_proofs(learnt)
    assert all(r.score is None for r in waiting)
    assert not {(r.problem, r.proof) for r in waiting} & {(r.problem, r.proof) for r in learnt}
    (note,) = read_json(finished / "coldstart" / "phase.json")["notes"]
    assert note.startswith(f"𝒟v: {len(learnt)} proofs came with grades")
    assert f"{len(waiting)} that nobody has scored are in unscored_proofs.jsonl" in note


def test_the_endpoints_consensus_can_score_what_a_weak_prover_writes(
    finished, folder, scripted_server, tmp_path
):
    runs = tmp_path / "natural"
    shutil.copytree(finished / "base", runs / "base")
    flags = ["--coldstart.expert=endpoint", f"--endpoint.url={scripted_server.url}", "--endpoint.model=judge"]
    code, _, err = train(folder, runs, "--phase=coldstart", *flags)
    assert code == 0, err
    new = weak_proofs(read_jsonl(runs / "coldstart" / "dv.jsonl", ProofRecord))
    waiting = read_jsonl(finished / "coldstart" / "unscored_proofs.jsonl", ProofRecord)
    assert [(r.problem, r.proof) for r in new] == [(r.problem, r.proof) for r in waiting]
    assert {r.score for r in new} <= {0, 1} and all(r.label.endswith(", judge") for r in new)
    kept = read_json(runs / "coldstart" / "settings.json")
    assert kept["autolabel"]["rule"] == "worst"  # the scores depend on it


def test_refinement_is_counted_by_the_experts_scores_where_nobody_knows_the_truth():
    refined = runpy.run_path(str(ROOT / "train.py"), run_name="script")["refined"]
    better = TrajectoryRecord("P", (("prove", "It holds ."), ("verify", "No ."), ("prove", "By parity .")))
    unscored = TrajectoryRecord("P", (("prove", "It holds ."), ("prove", "It may .")))
    scores = {"It holds .": 0.0, "By parity .": 1.0}
    (table,) = refined([better, unscored], lambda problem, proof: scores.get(proof))
    assert table["rows"] == [["improved", 1], ["same", 0], ["worse", 0]]
    assert refined([unscored], lambda problem, proof: scores.get(proof)) == []


MARKS = [
    *("--domain=natural", "--expert=marks", "--laps=1", "--data.held_out=0.2"),
    *("--coldstart.problems=30", "--coldstart.subset=8", "--coldstart.expert=person"),
    *("--base.steps=100", "--base.batch=8", "--base.lr=3e-3", "--eval.demonstrations=8"),
    *("--eval.proofs=4", "--eval.samples=1", "--eval.rounds=1", "--eval.greedy=false"),
    *("--grpo.steps=1", "--grpo.prompts=2", "--grpo.samples=3", "--grpo.refill=0", "--grpo.max_tokens=110"),
    *("--generator.init=verifier", "--selfverify.init=generator", "--selfverify.max_turns=2"),
    *("--autolabel.problems=2", "--autolabel.proofs=1", "--autolabel.n=2", "--autolabel.m=1"),
]


def test_the_cycle_runs_by_marks_and_a_person_scores_the_weak_provers_proofs_beside(tmp_path):
    chat, runs = make_folder(tmp_path / "chat", marked_texts()), tmp_path / "marks"
    write_jsonl(chat / "marked.jsonl", marked_proofs())
    settings = [*MARKS, f"--pretrained.folder={chat}", f"--data.path={chat}/marked.jsonl"]
    with pytest.raises(InputError, match="wait for an expert"):
        do_phases(runs, settings, "base", "coldstart")
    path = runs / "coldstart" / "proofs_to_score.jsonl"
    asked = [dataclasses.replace(r, score=0.0) for r in read_jsonl(path, ProofRecord)]
    assert len(asked) > 1
    asked[0] = dataclasses.replace(asked[0], wrong=asked[0].proof[:9])
    write_jsonl(path, asked)
    do_phases(runs, settings, *PHASES[1:])
    assert all((runs / phase / "phase.json").is_file() for phase in PHASES)
    dv = read_jsonl(runs / "coldstart" / "dv.jsonl", ProofRecord)
    assert [r.wrong for r in weak_proofs(dv)] == [asked[0].wrong, *[""] * (len(asked) - 1)]
    dmv = read_jsonl(runs / "meta" / "dmv.jsonl", CritiqueRecord)
    assert dmv and all(r.label == "by marks" and is_marked(r) for r in dmv)
    told = f"{len(asked) - 1} faulty proofs have no marked wrong step"
    assert any(told in note for note in read_json(runs / "meta" / "phase.json")["notes"])
    assert "NaN" not in (runs / "report.json").read_text()


def test_no_problem_is_both_learnt_and_measured(finished):
    def problems(name):
        rows = (finished / "coldstart" / f"{name}.jsonl").read_text().splitlines()
        return {json.loads(row)["problem"] for row in rows}

    learnt, held, watched = problems("dv"), problems("held_out_proofs"), problems("validation_proofs")
    assert learnt and held and watched
    assert not learnt & held and not learnt & watched and not held & watched


@torch.no_grad()
def test_a_trained_phase_is_a_folder_of_the_ecosystem(finished, folder):
    transformers = pytest.importorskip("transformers")
    model, tokenizer = load_model(finished / "selfverify")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(finished / "selfverify").eval()
    ids = tokenizer.chat(natural.prove("Show that claim 1 holds ."))
    prompts = Language(tokenizer, strict=True)
    (rollout,) = sample(model, tokenizer, [ids], 1, Sampling(0.0, 8), 0)
    for i, token in enumerate(rollout.ids):
        assert theirs(torch.tensor([ids + rollout.ids[:i]])).logits[0, -1].argmax() == token
    assert prompts.max_given > 10


def test_the_endpoint_can_be_the_frozen_judge(finished, folder, scripted_server, tmp_path):
    runs = tmp_path / "natural"
    shutil.copytree(finished, runs, ignore=shutil.ignore_patterns("generator", "selfverify", "lap2"))
    scripted_server.stats()
    flags = ["--generator.judge=endpoint", f"--endpoint.url={scripted_server.url}", "--endpoint.model=judge"]
    code, _, err = train(
        folder, runs, "--phase=generator", *flags, f"--endpoint.cache={tmp_path}/answers.jsonl", ranks=2
    )
    assert code == 0, err
    assert scripted_server.stats()["requests"] > 0
    figures = json.loads((runs / "generator" / "eval.json").read_text())["after"]
    assert figures["labelled/verifier_reward"]["n"] > 0
    assert list(tmp_path.glob("answers.jsonl.*"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"expert": "exact"}, "nobody knows the truth"),
        ({"data": {"path": ""}}, "set data.path"),
        ({"data": {"held_out": 0.0}}, "data.held_out must be above 0"),
        ({"data": {"held_out": 0.01}}, "no problem is left for"),
    ],
)
def test_settings_that_cannot_work_are_told(folder, changes, message):
    tree = {"expert": "grades", "pretrained": {"folder": str(folder)}}
    data = {"path": str(folder / "proofs.jsonl"), "held_out": 0.2} | changes.pop("data", {})
    config = from_dict(tree | {"data": data} | changes, "test")
    with pytest.raises(InputError, match=message):
        NaturalDomain(config).problems()


def test_harder_problems_of_their_own_file_are_split_too(folder, tmp_path):
    write_jsonl(tmp_path / "hard.jsonl", [{"problem": f"Show that claim {i} holds ."} for i in range(60)])
    data = {"path": str(folder / "proofs.jsonl"), "held_out": 0.2, "problems": str(tmp_path / "hard.jsonl")}
    sets = NaturalDomain(
        from_dict({"expert": "grades", "data": data, "pretrained": {"folder": str(folder)}}, "test")
    ).problems()
    texts = [r.problem for records in sets.values() for r in records]
    assert len(texts) == len(set(texts)) == 60  # the 24 of the graded proofs are in no harder set
    assert len(sets["held_out_hard"]) == 7


def test_a_further_turn_is_what_the_template_would_write(folder):
    tokenizer = ChatTokenizer.load(folder)
    question, answer = natural.prove("Show that claim 1 holds ."), "It holds ."
    whole = tokenizer.chat(
        question + [{"role": "assistant", "content": answer}] + natural.user(natural.AGAIN)
    )
    ids = tokenizer.backend.encode(answer, add_special_tokens=False).ids
    assert tokenizer.chat(question) + ids + [tokenizer.end] + tokenizer.turn(natural.AGAIN) == whole


def answers(prompts, *texts):
    """A rollout of these answers, as the sampler would leave it."""
    ids = [prompts.tokenizer.backend.encode(t, add_special_tokens=False).ids for t in texts]
    return Rollout([0], 0, turns=ids)


def test_trajectories_go_on_until_the_author_finds_no_issue(folder):
    prompts = Language(ChatTokenizer.load(folder), strict=True)
    doubt, sure = (proof_in_form("It holds by parity .", s) for s in (0.5, 1.0))
    assert prompts.follow(answers(prompts, doubt)) == prompts.again
    assert prompts.follow(answers(prompts, doubt, sure)) is None
    assert prompts.follow(answers(prompts, "It holds .")) is None
    pairs = judged_proofs(prompts.turns(answers(prompts, doubt, sure)))
    assert [proof for proof, _ in pairs] == ["It holds by parity ."] * 2
    assert [prompts.claimed_score(critique) for _, critique in pairs] == [0.5, 1.0]
    cut = dataclasses.replace(answers(prompts, doubt, sure), truncated=True)
    assert judged_proofs(prompts.turns(cut))[1] == (None, None)


def test_driver_turns_of_many_tokens_are_given_not_chosen(folder):
    """The sampler opens a further turn with the whole request; it is masked, and the sample is resumable."""
    model, tokenizer = load_model(folder)
    prompts = Language(tokenizer, strict=True)
    task = SelfVerifyTask(prompts, None, 2)
    how = Sampling(1.0, 6, max_given=task.max_given)
    tokenizer.end = int(torch.tensor(0))  # a frequent token ends turns of an untrained model

    def always(rollout):
        return prompts.again

    rollouts = sample(model, tokenizer, [task.prompt(ProblemRecord("P"))] * 3, 4, how, 5, always, 2)
    several = [r for r in rollouts if len(r.turns) == 2 or len(r.ids) > len(prompts.again)]
    for r in several:
        given = [i for i, sampled in zip(r.ids, r.sampled) if not sampled]
        assert given == prompts.again
        assert all(lp == 0 for lp, sampled in zip(r.logprobs, r.sampled) if not sampled)


def test_C30_a_prompt_longer_than_the_context_has_no_answer(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "short")
    config = tmp_path / "short" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 50}))
    model, tokenizer = load_model(tmp_path / "short")
    prompts = Language(tokenizer, strict=True)
    ids = prompts.ids(prompts.verify("P", "a proof"))
    assert len(ids) > model.config.context == 50
    (rollout,) = sample(model, tokenizer, [ids], 1, Sampling(), 0)
    assert rollout.truncated and rollout.ids == [] and prompts.answer(rollout) is None


def test_grades_stand_in_for_a_person():
    row = graded_proofs(2)[1]
    critiques = [critique_in_form(s) for s in (0.0, 0.5, 1.0)] + ["no box"]
    records = [CritiqueRecord(row["problem"], row["proof"], c, None, row["score"]) for c in critiques]
    assert [r.quality for r in GradesExpert().score_critiques(records)] == [0.0, 0.5, 1.0, 0.0]
    with pytest.raises(InputError, match="1 proofs have no grade.*--expert=page"):
        GradesExpert().score_proofs([ProofRecord("P", "Y")])
