"""Snapshots that survive kills, full disks and tampering; and phases that go on where they were."""

import os
import shutil
import signal
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from conftest import small_model
from safetensors.torch import load_file
from scripts import flywheel
from test_safety import SHORT, wait_for_steps
from test_safety import STEPS as SIGNALLED
from test_sharding import STEPS, train

from nanov2.distributed import checkpoints as snapshots_module
from nanov2.distributed.checkpoints import Snapshots, fingerprint
from nanov2.distributed.ranks import Ranks
from nanov2.errors import InputError
from nanov2.rl import state as state_module
from nanov2.rl.config import GRPOConfig
from nanov2.rl.logs import Log
from nanov2.rl.optimizer import make_optimizer
from nanov2.rl.state import Phase


def optimized(tokenizer, kind, seed=0):
    """A model, and an optimiser with moments."""
    model = small_model(tokenizer, seed)
    optimizer = make_optimizer(model, 1e-3, 0.0, kind)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    return model, optimizer


@pytest.fixture
def state(tokenizer):
    return optimized(tokenizer, "adamw")


@pytest.fixture
def snapshots(tmp_path):
    return Snapshots(tmp_path, Ranks(), keep=2)


def step_of(path):
    return int(path.name.split("-")[1])


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_snapshot_is_read_back_bitwise(snapshots, tokenizer, kind):
    model, optimizer = optimized(tokenizer, kind)
    random = torch.get_rng_state()
    snapshots.save("step", model, optimizer, {"step": 7, "notes": ["é < ∞"]})
    torch.rand(3)
    other = small_model(tokenizer, seed=9)
    fresh = make_optimizer(other, 1e-3, 0.0, kind)
    extra = snapshots.load(snapshots.newest("step"), other, fresh)
    assert extra == {"step": 7, "notes": ["é < ∞"]}
    for a, b in zip(model.parameters(), other.parameters()):
        assert torch.equal(a, b)
        muon = kind == "muon" and "proj" in next(n for n, p in model.named_parameters() if p is a)
        assert set(optimizer.state[a]) == ({"momentum_buffer"} if muon else {"step", "exp_avg", "exp_avg_sq"})
        for key in optimizer.state[a]:
            x, y = optimizer.state[a][key], fresh.state[b][key]
            assert torch.equal(x, y) and x.shape == y.shape and x.dtype == y.dtype
    assert torch.equal(torch.get_rng_state(), random)


def test_so_many_as_wanted_are_kept(state, snapshots):
    for step in (1, 2, 3, 10, 11):
        snapshots.save("step", *state, {"step": step})
        snapshots.save("best", *state, {"step": step})
    kept = sorted(p.name for p in snapshots.folder.iterdir())
    assert kept == ["best-00000011", "step-00000010", "step-00000011"]


@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "checksums.json"])
@pytest.mark.parametrize("harm", ["cut", "one bit", "gone", "emptied"])
def test_a_torn_snapshot_is_passed_over_with_a_warning(state, snapshots, capsys, file, harm):
    for step in (1, 2):
        snapshots.save("step", *state, {"step": step})
    path = snapshots.newest("step") / file
    whole = path.read_bytes()
    if harm == "gone":
        path.unlink()
    elif harm == "one bit":
        path.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    else:
        path.write_bytes(whole[: len(whole) // 2] if harm == "cut" else b"")
    assert step_of(snapshots.newest("step")) == 1
    assert "torn or changed" in capsys.readouterr().err


def test_with_no_snapshot_left_whole_there_is_none(state, snapshots):
    snapshots.save("step", *state, {"step": 1})
    (snapshots.newest("step") / "state.json").write_text("[" * 100_000)
    (snapshots.folder / "step-99999999").mkdir()
    (snapshots.folder / "step-99999999" / "checksums.json").write_text("[" * 100_000)
    assert snapshots.newest("step") is None


def test_a_kill_while_writing_leaves_the_old_ones(state, snapshots, monkeypatch):
    snapshots.save("step", *state, {"step": 1})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(snapshots_module.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        snapshots.save("step", *state, {"step": 2})
    monkeypatch.undo()
    assert step_of(snapshots.newest("step")) == 1
    snapshots.save("step", *state, {"step": 2})  # what the kill left is cleared away
    assert {p.name for p in snapshots.folder.iterdir()} == {"step-00000001", "step-00000002"}


def test_a_full_disk_is_one_line_and_keeps_the_old_ones(state, snapshots, monkeypatch):
    snapshots.save("step", *state, {"step": 1})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(snapshots_module.shutil, "disk_usage", lambda _: usage(1, 1, 1 << 20))
    with pytest.raises(InputError, match="1 MiB free on the disk.*checkpoints are kept"):
        snapshots.save("step", *state, {"step": 2})
    assert step_of(snapshots.newest("step")) == 1


def test_a_snapshot_of_another_model_is_refused(state, snapshots, tokenizer):
    snapshots.save("step", *state, {"step": 1})
    other = small_model(tokenizer, n_layers=3)
    with pytest.raises(InputError, match="of another model"):
        snapshots.load(snapshots.newest("step"), other, make_optimizer(other, 1e-3, 0.0))


def test_whole_tensors_are_written_in_several_files_and_come_back(state, snapshots, tokenizer, monkeypatch):
    monkeypatch.setattr(snapshots_module, "PART", 4000)
    snapshots.save("step", *state, {"step": 3})
    path = snapshots.newest("step")
    files = sorted(path.glob("state*.safetensors"))
    assert len(files) > 5 and files[0].name == "state-1.safetensors"
    other = small_model(tokenizer, seed=1)
    again = other, make_optimizer(other, 1e-3, 0.0)
    assert snapshots.load(path, *again)["step"] == 3
    found = snapshots_module.state_tensors(*again)
    assert all(torch.equal(t, found[name]) for name, t in snapshots_module.state_tensors(*state).items())
    files[-1].write_bytes(files[-1].read_bytes()[:-1])
    assert snapshots.newest("step") is None


def test_a_fingerprint_is_of_the_weights(tokenizer):
    a, b = small_model(tokenizer), small_model(tokenizer)
    assert fingerprint(a) == fingerprint(b)
    with torch.no_grad():
        b.norm.weight[0] += 1e-6
    assert fingerprint(a) != fingerprint(b)
    b = small_model(tokenizer)
    first, last = (b.layers[i].mlp.up_proj for i in (0, 1))
    first.weight, last.weight = last.weight, first.weight  # the same numbers under other names
    assert fingerprint(a) != fingerprint(b)
    assert fingerprint(a, dict(reversed([(n, p.detach) for n, p in a.named_parameters()]))) == fingerprint(a)


def test_the_main_rank_hashes_a_judge_for_all_and_an_older_versions_hash_tells_nothing(
    tokenizer, tmp_path, monkeypatch
):
    hashed = []
    monkeypatch.setattr(state_module, "fingerprint", lambda m, source: hashed.append(m) or "main's")
    judges = {"verifier": SimpleNamespace(model=small_model(tokenizer))}
    second, main = Ranks(), Ranks()
    second.rank = 1
    monkeypatch.setattr(second, "from_main", lambda value: {"verifier": "main's"} if value == {} else value)
    for ranks in (second, main):
        phase = Phase(tmp_path, small_model(tokenizer), GRPOConfig(), ranks, judges)
        assert phase.hashes == {"verifier": "main's"}
    assert len(hashed) == 1
    differs = state_module._differs
    assert differs("a" * 40, "b" * 40) and differs("", "b" * 40)
    assert not differs("a" * 40, "a" * 40) and not differs("a" * 32, "b" * 40)


def test_a_phase_does_not_go_on_with_another_judge(tmp_path, monkeypatch):
    train("single", tmp_path, Ranks(), save_every=5)
    newest = tmp_path / "snapshots" / f"step-{STEPS:08d}"
    shutil.rmtree(newest)
    import test_sharding

    make = test_sharding.small_model
    monkeypatch.setattr(test_sharding, "small_model", lambda t, seed=0: make(t, seed=2 * seed))
    with pytest.raises(InputError, match="begun with another meta: put its weights back"):
        train("single", tmp_path, Ranks(), save_every=5)


def test_a_phase_killed_after_its_last_step_is_measured_by_the_judge_of_that_step(tmp_path, monkeypatch):
    import test_sharding

    judges, make = [], test_sharding.meta_judge
    monkeypatch.setattr(
        test_sharding, "meta_judge", lambda *a, **k: judges.append(make(*a, **k)) or judges[-1]
    )
    train("single", tmp_path, Ranks())
    train("single", tmp_path, Ranks())  # nothing is left to do but what comes after training
    assert [judge.step for judge in judges] == [STEPS - 1, STEPS - 1]


@pytest.mark.parametrize("kind", ["supervised", "muon", "single", "multi"])
def test_C14_every_item_is_used_once_over_a_stop(tmp_path, kind):
    """2N steps are N, a stop and N more, bitwise, with the same figures at every step."""
    whole, rows = train(kind, tmp_path / "whole", Ranks())
    train(kind, tmp_path / "parts", Ranks())
    shutil.rmtree(tmp_path / "parts" / "snapshots" / f"step-{STEPS:08d}")
    parts, again = train(kind, tmp_path / "parts", Ranks())
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters()))
    for row in rows + again:
        row.pop("seconds"), row.pop("tokens_per_second", None)
    assert rows == again


def test_a_torn_line_of_the_metrics_does_not_stop_a_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "lo')
    Log(tmp_path, "x", Ranks(), 1, 4).close()
    assert path.read_text() == '{"step": 0, "loss": 1.0}\n'


def test_a_signal_outside_of_a_training_loop_ends_a_run_in_one_line(tmp_path):
    long = ["--world.problems=20000", "--coldstart.problems=20000"]
    process = flywheel(tmp_path / "run", "--base.steps=1", *long, wait=False)
    wait_for_steps(tmp_path / "run", 1)  # of the base's only step: what follows is sampling
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "the same command goes on" in err and "Traceback" not in err, err


def test_C14_under_torchrun_a_signal_stops_all_ranks_after_the_same_step(tmp_path):
    """torchrun passes the signal on; its ranks agree on the step, save, and go on to the same figures."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert flywheel(whole, *SHORT, "--parallel.shard=full", ranks=2)[0] == 0
    process = flywheel(stopped, *SHORT, "--parallel.shard=full", ranks=2, wait=False)
    wait_for_steps(stopped, 20)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert "the same command goes on" in err
    (saved,) = stopped.glob("base/snapshots/step-*")
    done = len((stopped / "base" / "metrics.jsonl").read_text().splitlines())
    assert step_of(saved) == done < SIGNALLED and len(list(saved.glob("*.safetensors"))) == 2
    assert flywheel(stopped, *SHORT, "--parallel.shard=full", ranks=2)[0] == 0
    a, b = (load_file(f / "base" / "model.safetensors") for f in (whole, stopped))
    assert all((a[name] == b[name]).all() for name in a)
