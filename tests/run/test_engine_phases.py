"""Whole phases by train.py whose rollouts and judgements are those of scripted servers over HTTP."""

import gc
import shutil

from conftest import varied
from safetensors.torch import load_file
from scripted_engine import ScriptedEngine
from scripts import LAP1, ends

from nanov2.method.tasks import GeneratorTask, SelfVerifyTask, VerifierTask
from nanov2.rl.logs import read_rows
from nanov2.rl.state import Phase

# As little as goes through every phase: a base that writes in form, two steps each, few items to measure.
LITTLE = [
    *("--config=configs/smoke.toml", "--laps=1", "--model.embed_conv=0"),  # a Llama, which engines know
    *("--base.steps=180", "--base.batch=10", "--base.eval_every=500", "--eval.demonstrations=4"),
    *("--world.problems=120", "--world.hard_problems=60", "--world.held_out=3", "--world.validation=2"),
    *("--coldstart.problems=24", "--coldstart.subset=24", "--autolabel.problems=2"),
    *("--grpo.steps=2", "--grpo.prompts=2", "--grpo.refill=0", "--grpo.eval_every=9"),
    *("--eval.proofs=3", "--eval.samples=1", "--eval.rounds=1", "--eval.greedy=false"),
    "--eval.pass_at=[0, 0, 0, 0]",
    *("--selfverify.max_turns=2", "--grpo.judge=engine"),
    *("--rollout.engine=vllm", "--rollout.dtype=fp32", "--rollout.seeded=true", "--rollout.patience=1"),
    "--rollout.concurrency=4",
]
TRAINED = ["verifier", "meta", "verifier2", "generator", "selfverify"]
MEASURED_BY_THE_CLOCK = {"seconds", "tokens_per_second"}


def figures(phase):
    return [{k: row[k] for k in row.keys() - MEASURED_BY_THE_CLOCK} for row in read_rows(phase)]


def test_a_flywheel_whose_engine_dies_in_the_middle_ends_as_one_whose_engine_does_not(
    tmp_path, monkeypatch, capsys
):
    save = Phase.save

    def save_and_die(self, step, **progress):
        save(self, step, **progress)
        if self.snapshots.folder.parent.name == "generator" and step == 0:
            policy.faults.extend(["", "gone"])  # between two requests of the next step

    with ScriptedEngine().in_a_thread() as policy, ScriptedEngine().in_a_thread() as judge:

        def train(folder, phase):
            where = [f'--rollout.urls=["{policy.url}"]', f'--rollout.judge_urls=["{judge.url}"]']
            flags = [f"--phase={phase}", f"--dir={folder}", f"--rollout.folder={tmp_path}"]
            with varied(VerifierTask), varied(GeneratorTask), varied(SelfVerifyTask):  # every step learns
                status = ends("train.py", *LITTLE, *where, *flags)
            gc.collect()  # the lock of a folder is held for as long as its run
            return status

        died, whole = tmp_path / "died", tmp_path / "whole"
        with monkeypatch.context() as patch:
            patch.setattr(Phase, "save", save_and_die)
            assert train(died, "flywheel") == 1
        told = capsys.readouterr().err
        assert policy.gone and "tried again for 1 s" in told and "the same command goes on" in told, told[
            -600:
        ]
        policy.come_back()
        assert train(died, "flywheel") == 0, capsys.readouterr().err[-600:]
        shutil.copytree(died, whole, ignore=shutil.ignore_patterns(*LAP1[LAP1.index("generator") :]))
        assert train(whole, "generator") == 0, capsys.readouterr().err[-600:]
        judges = {folder.rpartition("/")[2] for folder in judge.loads}

    assert all((died / phase / "phase.json").is_file() for phase in LAP1)
    weights = []
    for phase in TRAINED:
        rows = read_rows(died / phase / "metrics.jsonl")
        assert [row["step"] for row in rows] == [0, 1]
        weights += [row["importance_weight"] for row in rows if row["groups_kept"]]
    assert len(weights) > 5 and all(abs(weight - 1) < 0.01 for weight in weights)
    assert judges == {"meta", "verifier2"} and judge.requests
    once, twice = (figures(folder / "generator" / "metrics.jsonl") for folder in (whole, died))
    assert once == twice and once[1]["grad_norm"] > 0
    for name in ("eval.json", "groups.jsonl"):
        assert (died / "generator" / name).read_bytes() == (whole / "generator" / name).read_bytes()
    once, twice = (load_file(folder / "generator" / "model.safetensors") for folder in (whole, died))
    assert all((once[name] == twice[name]).all() for name in once)
    before = load_file(died / "verifier2" / "model.safetensors")  # generator.init = "verifier"
    assert any((once[name] != before[name]).any() for name in once)
