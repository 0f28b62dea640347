"""The run folder: one writer, no byte changed by whom it refuses, nothing mixed, no damage unseen."""

import json
import os
import shutil

import pytest
from scripts import flywheel, run

from nanov2.distributed.ranks import Ranks
from nanov2.distributed.safety import Lock
from nanov2.errors import InputError
from nanov2.pages.report import build_report
from nanov2.records import ProofRecord, write_jsonl
from nanov2.run import seal
from nanov2.run.config import load_config
from nanov2.run.folder import Run
from nanov2.run.phases import CYCLE, check_request, needed
from nanov2.run.phases import flywheel as all_phases

SMOKE = ["--world.held_out=4", "--world.validation=2", "--world.problems=20", "--world.hard_problems=10"]


def open_run(folder, *overrides):
    return Run(folder, load_config("configs/smoke.toml", [*SMOKE, *overrides]), Ranks())


@pytest.fixture
def begun(tmp_path):
    """A run with a finished base, a begun cold start, and a finished generator of lap 2."""
    folder = tmp_path / "run"
    a = open_run(folder)
    a.claim()
    for phase, lap in (("base", 1), ("generator", 2)):
        a.begin(phase, lap)
        write_jsonl(
            a.folder(phase, lap) / "dv.jsonl", [ProofRecord("p", "y", 1.0), ProofRecord("p", "z", 0.5)]
        )
        a.write(phase, lap, "eval.json", {"before": {}, "after": {}, "curve": []})
        a.finish(phase, lap, 1.0)
    a.begin("coldstart", 1)
    a._held.release()
    return folder


def state(folder):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "override, told",
    [
        ("--seed=1", r"base was made with other settings of seed \(0, now 1\)"),
        ("--base.lr=0.02", r"base.lr \(0.003, now 0.02\)"),
        ("--coldstart.rounds=1", r"run/coldstart was made .* coldstart.rounds \(3, now 1\)"),
        ("--lap_generator.lr=0.1", r"lap2/generator was made .*lap_generator.lr \(0.0003, now 0.1\)"),
        ("--eval.proofs=7", "eval.proofs"),
        ("--data.held_out=0.1", "data.held_out"),
        ("--pretrained.strict=false", "pretrained.strict"),
        ("--expert=person", "expert \\('exact', now 'person'\\)"),
        ("--world.problems=21", "world.problems"),
        ("--noise.lookup=0.2", "noise.lookup"),
        ("--model.dim=32", "model.dim"),
        ("--parallel.precision=bf16", "precision"),
    ],
)
def test_other_settings_under_a_begun_or_finished_phase_are_refused_by_name(begun, override, told):
    before = state(begun)
    with pytest.raises(InputError, match=told):
        open_run(begun, override).claim()
    assert state(begun) == before  # not even the owner's file, or a time stamp


def test_a_setting_that_an_older_version_did_not_have_was_its_default(begun):
    path = begun / "base" / "settings.json"
    known = json.loads(path.read_text())
    assert known["noise"].pop("lookup") and known["base"].pop("lr")  # as if they had come later
    path.write_text(json.dumps(known))
    sums = json.loads((begun / "base" / "phase.json").read_text())
    sums["files"]["settings.json"] = seal.digest(path)
    (begun / "base" / "phase.json").write_text(json.dumps(sums))
    with pytest.raises(InputError, match=r"settings of base.lr \(0.002, now 0.003\):"):
        open_run(begun).claim()  # smoke.toml's rate is not the default


def test_every_limit_that_bounds_what_a_phase_writes_is_held_against_it(begun):
    """The base's table of habits has meta-critiques and revisions too."""
    for section in ("generator", "verifier", "meta", "selfverify"):
        with pytest.raises(InputError, match=f"settings of {section}.max_tokens"):
            open_run(begun, f"--{section}.max_tokens=99").claim()


def test_settings_of_phases_to_come_may_change(begun):
    for override in ("--verifier.lr=0.1", "--generator.steps=9 --lap_generator.steps=3", "--laps=3"):
        a = open_run(begun, *override.split())
        a.claim()
        a._held.release()
    for override in ("--base.keep=5", "--coldstart.rounds=3", "--endpoint.retries=2", "--search.pool=3"):
        a = open_run(begun, override)
        a.claim()
        a._held.release()


def test_a_phase_is_not_begun_twice_with_other_settings(begun):
    with pytest.raises(InputError, match="coldstart.rounds"):
        open_run(begun, "--coldstart.rounds=1").begin("coldstart", 1)


def test_a_process_that_is_refused_the_lock_changes_no_byte(begun):
    held = Lock(begun)
    held.sign()
    before = {p: data for p, (data, _) in state(begun).items()}
    with pytest.raises(InputError, match=f"is being written by process {os.getpid()}"):
        open_run(begun, "--verifier.lr=0.5").claim()
    assert {p: data for p, (data, _) in state(begun).items()} == before
    held.release()


def test_reading_a_run_writes_nothing(begun, tmp_path):
    before = state(begun)
    a = open_run(begun, "--verifier.lr=0.5")
    a.records("base", 1, "dv.jsonl", ProofRecord)
    assert state(begun) == before
    open_run(tmp_path / "none")
    with pytest.raises(InputError, match="is no folder"):
        build_report(tmp_path / "typo")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda d: d[:-1] + bytes([d[-1] ^ 1]), "has changed since the phase wrote it"),  # one bit
        (lambda d: d.split(b"\n", 1)[1], "has changed"),  # one line lost
        (lambda d: b"", "has changed"),
        (lambda d: None, "is missing"),
    ],
)
@pytest.mark.parametrize("name", ["dv.jsonl", "eval.json"])
def test_a_damaged_file_of_a_finished_phase_is_named_with_what_to_do(begun, name, damage, told):
    path = begun / "base" / name
    data = damage(path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(
        InputError, match=f"{name} {told}.*put it back, or move .* away, and run .*train.py --phase=base"
    ):
        open_run(begun).file("base", 1, name)


def test_weights_with_one_flipped_bit_are_not_loaded(begun, tmp_path):
    from conftest import small_model

    from nanov2.domains.order.tokenizer import order_tokenizer

    tokenizer, a = order_tokenizer(), open_run(tmp_path / "b")
    a.claim()
    a.begin("base", 1)
    a.save("base", 1, small_model(tokenizer), tokenizer)
    a.finish("base", 1, 1.0)
    a.load("base")
    path = a.folder("base") / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match="model.safetensors has changed"):
        open_run(tmp_path / "b").load("base")


def test_what_a_person_goes_on_scoring_is_not_sealed(begun):
    folder = begun / "base"
    (folder / "unclear.jsonl").write_text("{}\n")
    assert "unclear.jsonl" not in seal.checksums(folder)
    (folder / "unclear.jsonl").write_text("")
    open_run(begun).file("base", 1, "unclear.jsonl")


def test_temporary_files_of_dead_processes_go_and_those_of_living_ones_stay(begun):
    dead, living = begun / "base" / ".dv.jsonl.99999999.tmp", begun / f".config.json.{os.getppid()}.tmp"
    for path in (dead, living):
        path.write_text("half")
    a = open_run(begun)
    a.claim()
    assert not dead.exists() and living.exists()


def test_a_file_where_the_folder_should_be_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be a run folder: a file is in its place"):
        Lock(tmp_path / "file")
    code, _, err = run("sample.py", "prove", f"--dir={tmp_path / 'file'}")
    assert code == 1 and "is a file, not a run folder" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "phase, lap, told",
    [
        ("base", 2, "base belongs to lap 1 alone"),
        ("coldstart", 3, "belongs to lap 1 alone|laps 1 to 2"),
        ("meta", 2, "meta belongs to lap 1 alone"),
        ("verifier", 2, "verifier belongs to lap 1 alone"),
        ("generator", 0, "--lap=0: this run has laps 1 to 2"),
        ("generator", -1, "--lap=-1"),
        ("generator", 3, "--lap=3: this run has laps 1 to 2"),
        ("consolidate", 1, "consolidate belongs to later laps"),
        ("flywheel", 2, "the flywheel does all laps"),
        ("verifer", 1, "unknown phase.*did you mean verifier?"),
    ],
)
def test_a_phase_in_a_lap_that_it_does_not_belong_to_is_refused(phase, lap, told):
    with pytest.raises(InputError, match=told):
        check_request(phase, lap, load_config("configs/smoke.toml"))


def test_the_flywheel_does_each_phase_of_each_lap_after_what_it_needs():
    config = load_config("configs/smoke.toml", ["--laps=3"])
    order = all_phases(config)
    assert len(order) == len(set(order)) == 8 + 2 * 6
    for i, (phase, lap) in enumerate(order):
        assert set(needed(phase, lap, config)) <= set(order[:i])
    assert ("consolidate", 2) not in all_phases(load_config("configs/proofworld.toml"))
    trained = {"prove": ["generator", "selfverify"], "verify": ["verifier", "verifier2"]}
    trained["meta"] = ["meta", "renew_meta"]
    assert {task: [p.name for p in CYCLE if p.trains == task] for task in trained} == trained
    assert [p.name for p in CYCLE if p.follows] == ["consolidate", "renew_meta"]
    weak = load_config("configs/smoke.toml", ["--generator.judged_by=base"])
    assert needed("generator", 1, weak) == [("base", 1)]


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.argv = ["train.py", *sys.argv[1:]]
import nanov2.rl.logs as logs
old = logs.Log.step
def step(self, number, scalars):
    if number == 7:
        resource.setrlimit(resource.RLIMIT_FSIZE, (800, 800))
    old(self, number, scalars)
logs.Log.step = step
import train
train.script(train.main)
"""


def test_a_full_disk_in_the_middle_of_a_step_is_one_line_and_the_figures_are_the_same(tmp_path):
    import subprocess
    import sys

    def base(folder, *start):
        flags = [f"--dir={folder}", "--phase=base", "--base.steps=20", "--base.save_every=5", *SMOKE]
        return subprocess.run(
            [sys.executable, *start, "--config=configs/smoke.toml", *flags],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    whole, full = tmp_path / "whole", tmp_path / "full"
    assert base(whole, "train.py").returncode == 0
    end = base(full, "-c", FULL)
    assert end.returncode == 1 and "Traceback" not in end.stderr, end.stderr
    assert "error: cannot write" in end.stderr.splitlines()[-1] and "File too large" in end.stderr
    assert base(full, "train.py").returncode == 0
    for name in ("eval.json", "model.safetensors"):
        assert (full / "base" / name).read_bytes() == (whole / "base" / name).read_bytes()
    assert not list(full.rglob("*.tmp")) and not (full / "base" / "snapshots").exists()
    steps = [json.loads(x)["step"] for x in (full / "base" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(20))


def test_weights_of_a_phase_that_was_killed_and_begun_again_otherwise_are_refused(tmp_path):
    folder = tmp_path / "run"
    flags = ["--phase=base", "--base.save_every=5"]
    process = flywheel(folder, *flags, wait=False)
    while process.poll() is None and not list(folder.glob("base/snapshots/step-*")):
        pass
    process.kill()
    process.communicate()
    code, _, err = flywheel(folder, *flags, "--base.lr=0.02", "--seed=1")
    assert code == 1 and "base.lr (0.003, now 0.02), seed (0, now 1)" in err
    shutil.rmtree(folder)
