"""LoRA through whole phases of a chat model: trained, stopped and gone on with, merged, begun from again."""

import shutil

import pytest
import torch
from chat_model import make_folder
from conftest import varied
from scripts import do_phases

from nanov2.distributed.safety import Stopped
from nanov2.hub import hf
from nanov2.method.tasks import GeneratorTask, SelfVerifyTask, VerifierTask
from nanov2.model.lora import halved
from nanov2.records import read_json
from nanov2.rl.logs import read_rows
from nanov2.rl.state import Phase

RANK = 4
SETTINGS = [
    *("--domain=natural", "--expert=grades", "--data.held_out=0.2", f"--lora.rank={RANK}"),
    *("--parallel.precision=bf16", "--base.steps=4", "--base.batch=4", "--base.lr=3e-3", "--grpo.steps=3"),
    *("--eval.proofs=2", "--eval.samples=1", "--eval.rounds=1", "--eval.greedy=false", "--grpo.save_every=1"),
    *("--grpo.prompts=2", "--grpo.samples=4", "--grpo.refill=0", "--grpo.max_tokens=16", "--grpo.lr=1e-3"),
    *("--grpo.warmup=0", "--generator.judged_by=verifier", "--generator.init=base"),
    *("--selfverify.judged_by=verifier", "--selfverify.init=generator", "--selfverify.max_turns=2"),
    *("--generator.max_tokens=16", "--selfverify.max_tokens=16"),
]


def do(folder, chat, *phases):
    flags = [f"--pretrained.folder={chat}", f"--data.path={chat}/proofs.jsonl"]
    with varied(VerifierTask), varied(GeneratorTask), varied(SelfVerifyTask):
        do_phases(folder, [*SETTINGS, *flags], *phases)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def run(chat, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "lora"
    do(folder, chat, "base", "coldstart", "verifier", "generator", "selfverify")
    return folder


def weights(folder):
    return {name: p.detach() for name, p in hf.load(folder).named_parameters()}


def frozen(folder):
    """The weights of a folder as a phase freezes them: matrices of the blocks in bf16."""
    cpu = torch.device("cpu")
    return {n: p.bfloat16().float() if halved(n, p, cpu) else p for n, p in weights(folder).items()}


@pytest.mark.parametrize(
    "phase, begun_from", [("verifier", "base"), ("generator", "base"), ("selfverify", "generator")]
)
def test_a_phase_leaves_the_weights_it_began_from_with_updates_of_low_rank(run, phase, begun_from):
    before, after = frozen(run / begun_from), weights(run / phase)
    assert read_json(run / phase / "config.json")["torch_dtype"] == "float32"
    assert before.keys() == after.keys()
    learnt = {name for name in before if name.startswith("layers.") and name.endswith("proj.weight")}
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - learnt)
    updates = [after[name] - before[name] for name in learnt]
    assert any(u.abs().max() > 0 for u in updates)
    for u in updates:
        singular = torch.linalg.svdvals(u.double())
        assert singular[RANK] <= 1e-4 * singular[0] + 1e-6


def test_merged_weights_hold_updates_that_bf16_would_round_off(run):
    """What a folder in bf16 would lose: most updates are below a 256th of their weight."""
    before, after = frozen(run / "base"), weights(run / "verifier")
    moved = {n: after[n] != before[n] for n in before}
    lost = {n: moved[n] & (after[n].bfloat16().float() == before[n]) for n in before}
    total, gone = (sum(int(x.sum()) for x in found.values()) for found in (moved, lost))
    print(f"{total} weights moved, in bf16 {gone} of them would not have")
    assert gone > 0


def test_C14_a_stop_in_the_middle_changes_no_bit(run, chat, tmp_path, monkeypatch):
    for phase in ("base", "coldstart"):
        shutil.copytree(run / phase, tmp_path / "again" / phase)
    save = Phase.save

    def stop_after_two(self, step, **progress):
        self.stop.asked = float(step == 1)
        save(self, step, **progress)

    monkeypatch.setattr(Phase, "save", stop_after_two)
    with pytest.raises(Stopped):
        do(tmp_path / "again", chat, "verifier")
    files = (tmp_path / "again" / "verifier" / "snapshots" / "step-00000002").glob("*.safetensors")
    assert sum(f.stat().st_size for f in files) > 0
    monkeypatch.undo()
    do(tmp_path / "again", chat, "verifier")
    assert [r["step"] for r in read_rows(tmp_path / "again" / "verifier" / "metrics.jsonl")] == [0, 1, 2]
    once, twice = weights(run / "verifier"), weights(tmp_path / "again" / "verifier")
    assert all(torch.equal(p, twice[name]) for name, p in once.items())
