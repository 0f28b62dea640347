"""The whole cycle on the smoke configuration as a user runs it: one process, two ranks, killed."""

import json
import os
import shutil
import signal
import time

import pytest
from safetensors.torch import load_file
from scripts import ALL, flywheel, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nanov2.domains.domain import open_domain
from nanov2.domains.language import read_score
from nanov2.domains.order.world import examine, parse_problem, parse_proof, write_critique
from nanov2.run.config import from_dict


def figures(folder):
    """All held-out figures, by phase."""
    return {p: json.loads((folder / p / "eval.json").read_text())["after"] for p in ALL}


def test_every_phase_is_run_and_leaves_its_results(finished):
    for phase in ALL:
        done = json.loads((finished / phase / "phase.json").read_text())
        assert done["phase"] == phase.split("/")[-1] and done["seconds"] >= 0
        assert (finished / phase / "samples.jsonl").read_text()
    for name in ("dv.jsonl", "held_out_proofs.jsonl"):
        assert (finished / "coldstart" / name).read_text()
    assert (finished / "meta" / "dmv.jsonl").read_text()
    assert (finished / "lap2" / "autolabel" / "dv.jsonl").read_text()
    facts = json.loads((finished / "run.json").read_text())
    assert facts["seed"] == 0 and facts["commit"] and facts["versions"]["torch"]
    assert facts["config"]["base"]["steps"] == 240


def test_the_weak_prover_writes_of_harder_problems_too(finished):
    config = from_dict(json.loads((finished / "run.json").read_text())["config"], "run.json")
    hard = {p.problem for p in open_domain(config).problems()["train_hard"]}
    lines = (finished / "coldstart" / "train_trajectories.jsonl").read_text().splitlines()
    assert len(lines) == config.coldstart.problems
    assert sum(json.loads(x)["problem"] in hard for x in lines) == 0.25 * len(lines)


def test_what_self_verification_adds_to_phase_2_is_measured_beside(finished):
    found = json.loads((finished / "selfverify" / "eval.json").read_text())
    beside, own = found["beside"]["the generator of phase 2"], found["after"]
    assert {n for n in beside if "false_accept" not in n} == {n for n in own if "false_accept" not in n}
    assert "the generator of phase 2" not in json.loads(
        (finished / "lap2" / "selfverify" / "eval.json").read_text()
    ).get("beside", {})


def test_the_report_and_tensorboard_logs_are_there(finished):
    report = json.loads((finished / "report.json").read_text())
    assert len(report["phases"]) == len(ALL)
    assert "<html" in (finished / "report.html").read_text().lower()
    for phase in ("generator", "lap2/generator"):
        events = EventAccumulator(str(finished / phase / "tensorboard"))
        events.Reload()
        tags = events.Tags()
        assert {"reward", "validation/true_score", "final/hard/true_score"} <= set(tags["scalars"])
        assert any(t.startswith("group") for t in tags["tensors"])  # sample texts
        assert "_hparams_/session_start_info" in events.summary_metadata


def test_a_finished_run_is_not_done_again(finished):
    before = {p: (finished / p / "phase.json").stat().st_mtime_ns for p in ALL}
    begin = time.time()
    code, out, err = flywheel(finished)
    assert code == 0, err
    assert "What each step changed" in out and "1D verifier v1 → v2: critique quality" in out
    assert {p: (finished / p / "phase.json").stat().st_mtime_ns for p in ALL} == before
    assert time.time() - begin < 60


def test_C14_killed_anywhere_a_run_continues_to_the_same_figures(finished, tmp_path):
    folder = tmp_path / "killed"
    for wait in (6, 9, 12):
        process = flywheel(folder, wait=False)
        time.sleep(wait)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    code, _, err = flywheel(folder)
    assert code == 0, err
    assert figures(folder) == figures(finished)
    for phase in ("verifier2", "lap2/selfverify"):
        a, b = (load_file(f / phase / "model.safetensors") for f in (folder, finished))
        assert all((a[name] == b[name]).all() for name in a)  # bitwise
        steps = [json.loads(x)["step"] for x in (folder / phase / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(len(steps)))  # every step once


def test_two_ranks_do_what_one_does_up_to_rounding(finished, tmp_path):
    folder = tmp_path / "two"
    code, _, err = flywheel(folder, ranks=2)
    assert code == 0, err
    assert json.loads((folder / "run.json").read_text())["ranks"] == 2
    one, two = figures(finished), figures(folder)
    assert one.keys() == two.keys()
    assert two["base"]["held-out/loss"]["value"] == pytest.approx(
        one["base"]["held-out/loss"]["value"], abs=0.02
    )
    # up to rounding, the same samples: the first rollout of the verifier comes from nearly the same base
    first = [
        json.loads((f / "verifier" / "metrics.jsonl").read_text().splitlines()[0]) for f in (finished, folder)
    ]
    assert first[1]["reward"] == pytest.approx(first[0]["reward"], abs=0.15)
    assert first[1]["groups_sampled"] == first[0]["groups_sampled"]


def test_the_scripts_use_a_trained_model(finished, tmp_path):
    stated = "Suppose that sets satisfy $c \\subset t$, $c = f$ and $f \\subset q$. Show that $c \\subset q$."
    steps, problem = "Indeed, $c = f \\subset q$.", f"--problem={stated}"
    critique = f"--critique={write_critique(examine(parse_problem(stated), parse_proof(steps)))}"
    for args in (
        ["prove", problem, "--n=2"],
        ["verify", problem, f"--proof={steps}"],
        ["meta", problem, f"--proof={steps}", critique],
    ):
        code, out, err = run("sample.py", *args, f"--dir={finished}")
        assert code == 0 and "$c = f$" in out, err
    code, out, err = run(
        "sample.py", "refine", f"--dir={finished}", "--rounds=2", f"--output={tmp_path / 'r.jsonl'}"
    )
    assert code == 0 and json.loads((tmp_path / "r.jsonl").read_text())["turns"], err
    proofs = tmp_path / "proofs.jsonl"
    proofs.write_text(json.dumps({"problem": stated, "proof": steps}) + "\n")
    out_file = tmp_path / "labels.jsonl"
    code, out, err = run("autolabel.py", f"--dir={finished}", f"--proofs={proofs}", f"--out={out_file}")
    assert code == 0 and "label" in json.loads(out_file.read_text()), err


def test_a_solution_aware_critic_is_trained_on_request(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    where = [f"--dir={tmp_path / 'run'}", "--aware.steps=3", "--aware.samples=2"]
    code, _, err = run("train.py", "--phase=aware", *where)
    assert code == 0, err
    found = json.loads((tmp_path / "run" / "aware" / "eval.json").read_text())
    assert "labelled/score_accuracy@T0" in found["after"] and "labelled/score_accuracy" in found["before"]
    (teacher,) = found["beside"].values()
    assert "labelled/score_accuracy" in teacher
    kept = [
        json.loads(line) for line in (tmp_path / "run" / "aware" / "critiques.jsonl").read_text().splitlines()
    ]
    assert kept and all(read_score(r["critique"]) == r["score"] for r in kept)


def test_labels_can_be_kept_out_of_dv(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("autolabel", "lap2"))
    code, _, err = flywheel(folder, "--phase=autolabel", "--autolabel.grow=false")
    assert code == 0, err
    assert (folder / "autolabel" / "dv.jsonl").read_text() == (folder / "coldstart" / "dv.jsonl").read_text()
    assert (finished / "autolabel" / "labels.jsonl").read_text() == (
        folder / "autolabel" / "labels.jsonl"
    ).read_text()


def test_a_torn_record_or_other_settings_are_refused_and_nothing_is_lost(finished):
    code, _, err = flywheel(finished, "--seed=5")
    assert code == 1 and "made with other settings of seed" in err
    code, _, err = run("sample.py", "verify", f"--dir={finished}", "--problem=hello", "--proof=a < b qed")
    assert code == 1 and "not of the world's form" in err
    path = finished / "coldstart" / "dv.jsonl"
    whole = path.read_text()
    verifier = finished / "verifier" / "phase.json"
    done = verifier.read_text()
    try:
        path.write_text(whole[: len(whole) // 2])
        verifier.unlink()
        code, _, err = flywheel(finished, "--phase=verifier")
        assert code == 1 and "dv.jsonl has changed since the phase wrote it: put it back" in err
        assert "Traceback" not in err
    finally:
        path.write_text(whole)
        verifier.write_text(done)


def test_a_person_can_be_the_expert(finished, tmp_path):
    folder = tmp_path / "person"
    args = ["--expert=person", "--coldstart.subset=6"]
    assert flywheel(folder, "--phase=base", *args)[0] == 0
    code, _, err = flywheel(folder, "--phase=coldstart", *args)
    waiting = folder / "coldstart" / "proofs_to_score.jsonl"
    assert code == 1 and str(waiting) in err
    rows = [json.loads(line) | {"score": 0.5} for line in waiting.read_text().splitlines()]
    waiting.write_text("".join(json.dumps(r) + "\n" for r in rows))
    code, _, err = flywheel(folder, "--phase=coldstart", *args)
    assert code == 0, err
    dv = [json.loads(line) for line in (folder / "coldstart" / "dv.jsonl").read_text().splitlines()]
    assert [(r["score"], r["label"]) for r in dv] == [(0.5, "person")] * len(rows)
