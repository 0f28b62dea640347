"""Long runs: stopping cleanly, one writer, bad gradients, a full disk."""

import errno
import json
import os
import pkgutil
import signal
import time
from collections import namedtuple

import pytest
import torch
from conftest import small_model
from safetensors.torch import load_file
from scripts import TINY, flywheel, run

from nanov2.distributed import safety
from nanov2.distributed.ranks import Ranks
from nanov2.distributed.safety import CleanStop, Stopped
from nanov2.domains.language import Demonstration
from nanov2.domains.order.domain import OrderLanguage
from nanov2.errors import InputError
from nanov2.rl.config import BaseConfig
from nanov2.rl.logs import Log
from nanov2.rl.trainer import Trainee, train_supervised

BASE = ["--phase=base", "--base.save_every=1000"]
STEPS = 100  # enough that a signal after twenty comes before the end
SHORT = [*BASE, f"--base.steps={STEPS}"]


def wait_for_steps(folder, count):
    path = folder / "base" / "metrics.jsonl"
    for _ in range(600):
        if path.is_file() and len(path.read_text().splitlines()) >= count:
            return
        time.sleep(0.1)
    raise AssertionError("the run does not start")


def test_a_signal_at_the_end_of_the_last_step_is_not_lost(ranks):
    stop = CleanStop(ranks)
    for _ in stop.until(0, 1):
        assert not stop.now()
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped, match="the same command goes on"):
        stop.finish("base")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_C14_a_signal_stops_after_the_step_and_nothing_is_done_twice(tmp_path, number):
    """2N steps are N, a stop and N more, bitwise."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert flywheel(whole, *SHORT)[0] == 0
    process = flywheel(stopped, *SHORT, wait=False)
    wait_for_steps(stopped, 20)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "the same command goes on" in err
    done = len((stopped / "base" / "metrics.jsonl").read_text().splitlines())
    assert 20 <= done < STEPS and list(stopped.glob("base/snapshots/step-*"))
    assert flywheel(stopped, *SHORT)[0] == 0
    steps = [json.loads(x)["step"] for x in (stopped / "base" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(STEPS))
    a, b = (load_file(f / "base" / "model.safetensors") for f in (whole, stopped))
    assert all((a[name] == b[name]).all() for name in a)


def test_two_processes_do_not_write_one_folder(tmp_path):
    folder = tmp_path / "run"
    process = flywheel(folder, *BASE, wait=False)
    try:
        wait_for_steps(folder, 1)
        code, _, err = flywheel(folder, *BASE)
        assert code == 1 and f"is being written by process {process.pid}" in err and "another --dir" in err
    finally:
        process.kill()
        process.communicate()
    code, _, err = run("autolabel.py", f"--dir={folder}", "--config=configs/smoke.toml", *TINY)
    assert code == 1 and "selfverify" in err  # the dead process's lock is gone


def test_a_full_disk_is_told_before_the_work(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(safety.shutil, "disk_usage", lambda _: usage(1, 1, 10 << 20))
    with pytest.raises(InputError, match="10 MiB free on the disk"):
        safety.check_space(tmp_path, 1000)


def train(folder, tokenizer, model, config):
    demonstration = Demonstration("given a < b ; show a < b", (("prove", "a < b qed"),))
    pack = OrderLanguage(tokenizer, strict=True).document(demonstration)
    trainee = Trainee(folder, "base", model, tokenizer, Ranks())
    train_supervised(trainee, lambda *_: pack, config, lambda *_: {})


def test_bad_gradients_are_skipped_counted_and_end_the_phase_with_the_batch_saved(tokenizer, tmp_path):
    model = small_model(tokenizer)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    config = BaseConfig(steps=9, batch=2, skip_norm=1e-9, max_skipped=3)
    with pytest.raises(InputError, match="3 steps in a row.*lower lr"):
        train(tmp_path, tokenizer, model, config)
    assert all((v == before[k]).all() for k, v in model.state_dict().items())
    saved = json.loads((tmp_path / "bad_batch_rank0.json").read_text())
    assert saved["step"] == 2 and "a < b" in saved["batch"][0]


def test_skipped_steps_are_in_the_metrics(tokenizer, tmp_path):
    train(tmp_path, tokenizer, small_model(tokenizer), BaseConfig(steps=3, batch=1, skip_norm=1e-9))
    rows = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["skipped"] for r in rows] == [1, 1, 1] and "grad_norm" not in rows[0]


def test_a_disk_that_is_full_in_the_middle_of_a_step_is_one_line_and_the_same_figures_after_it(
    tokenizer, tmp_path, monkeypatch
):
    """Whatever is being written: figures, TensorBoard's, checkpoints."""
    config = BaseConfig(steps=6, batch=1, save_every=2, warmup=1)

    def rows(folder):
        found = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        return [r for r in found if r.pop("seconds")]

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    train(tmp_path / "whole", tokenizer, whole := small_model(tokenizer), config)
    places = {
        "figures": "nanov2.journal.append",
        "tensorboard": "torch.utils.tensorboard.SummaryWriter.add_scalar",
        "checkpoint": "nanov2.distributed.checkpoints.write_atomically",
    }
    for name, place in places.items():
        calls, real = [], pkgutil.resolve_name(place)

        def third(*args, real=real, calls=calls, **options):
            calls.append(1)
            return (full if len(calls) > 3 else real)(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(place, third)
            with pytest.raises(InputError, match="cannot write .*No space left on device"):
                train(tmp_path / name, tokenizer, small_model(tokenizer), config)
        train(tmp_path / name, tokenizer, model := small_model(tokenizer), config)
        assert rows(tmp_path / name) == rows(tmp_path / "whole")
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters()))


def test_the_error_of_tensorboards_thread_is_not_a_traceback(tmp_path, capfd):
    log = Log(tmp_path, "x", Ranks(), 0, 9)
    log.writer._get_file_writer().event_writer._async_writer._worker._record_writer.write = _fail
    with pytest.raises(InputError, match="cannot write .*No space left on device"):
        for step in range(100):
            log.step(step, {"loss": 1.0})
            time.sleep(0.01)
    assert "Traceback" not in capfd.readouterr().err


def _fail(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
