"""--from: a run begins from what another has finished, as far as the settings are the same."""

import json
import re
import shutil

import pytest
from scripts import LAP1, TINY, inside

from nanov2.distributed.ranks import Ranks
from nanov2.errors import InputError
from nanov2.run import seal, takeover
from nanov2.run.config import load_config
from nanov2.run.folder import Run

LAST = ("autolabel", 2)


@pytest.fixture
def source(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "a")


def begin(folder, *overrides):
    return Run(folder, load_config("configs/smoke.toml", [*TINY, *overrides]), Ranks())


@pytest.mark.parametrize(
    "override, taken, told",
    [
        ("--laps=2", 14, ""),
        ("--verifier2.meta_gate=false", 4, "verifier2 was made with other settings of verifier2.meta_gate"),
        ("--selfverify.alpha=0.5", 6, "selfverify.alpha"),
        ("--lap_generator.lr=0.1", 11, "lap2/generator was made with other settings of lap_generator.lr"),
        ("--renew_meta.on=false", 9, "lap2/verifier2 came after .*lap2/renew_meta, which this run has not"),
        ("--seed=3", 0, "base was made with other settings of seed"),
        ("--verifier.max_tokens=50", 0, "verifier.max_tokens"),  # bounds answers that the base is measured by
        ("--meta.max_tokens=50", 0, "meta.max_tokens"),  # in its table of habits
        ("--search.rounds=1", 14, ""),
        ("--verifier.keep=9", 14, ""),
    ],
)
def test_phases_are_taken_up_to_the_first_that_a_changed_setting_touches(
    source, tmp_path, override, taken, told
):
    found = takeover.plan(begin(tmp_path / "b", override), source, LAST)
    assert len(found.phases) == taken and re.search(told, found.end)
    assert not (tmp_path / "b").exists()  # planning writes nothing


def test_what_is_taken_is_sealed_and_whole_and_the_source_stays_as_it_was(source, tmp_path):
    before = {p: p.read_bytes() for p in source.rglob("*") if p.is_file()}
    b = begin(tmp_path / "b", "--generator.lr=0.01")
    b.claim()
    found = takeover.plan(b, source, LAST)
    takeover.take(b, found)
    assert [name for name, _ in found.phases] == LAP1[:5]
    for name, lap in found.phases:
        here = b.folder(name, lap)
        done = json.loads((here / "phase.json").read_text())
        assert done["files"] and all(not seal.fault(here / file) for file in done["files"])
        assert f"taken from {source}" in done["notes"][-1]
    b.load("verifier2")
    (b.folder("coldstart") / "dv.jsonl").write_text("other")  # records are copies
    assert {p: p.read_bytes() for p in source.rglob("*") if p.is_file()} == before
    assert not list(b.dir.rglob("*.tmp"))


def test_a_phase_that_was_begun_otherwise_than_the_sources_ends_what_is_taken(source, tmp_path):
    b = begin(tmp_path / "b")
    b.claim()
    takeover.take(b, takeover.plan(b, source, ("coldstart", 1)))
    b.begin("verifier", 1)
    found = takeover.plan(b, source, LAST)
    assert found.phases == [] and "verifier was begun here" in found.end


def test_a_damaged_or_missing_file_of_the_source_is_named_and_nothing_is_taken(source, tmp_path):
    path = source / "meta" / "dmv.jsonl"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(InputError, match="dmv.jsonl has changed since the phase wrote it"):
        takeover.plan(begin(tmp_path / "b"), source, LAST)
    path.unlink()
    with pytest.raises(InputError, match="dmv.jsonl is missing"):
        takeover.plan(begin(tmp_path / "b"), source, LAST)


def test_what_a_killed_takeover_left_goes(source, tmp_path):
    left = tmp_path / "b" / ".base.99999999.tmp"
    shutil.copytree(source / "base", left)
    begin(tmp_path / "b").claim()
    assert not left.exists()


def test_a_changed_phase_is_done_again_from_anothers_run_in_one_command(source, tmp_path, capsys):
    b = tmp_path / "b"
    args = ["--phase=verifier2", f"--from={source}", f"--dir={b}", "--verifier2.meta_gate=false"]
    inside("train.py", *args)
    out, told = capsys.readouterr()
    assert re.search(r"\n1D: .*\n  about \d:\d\d left by the phases so far\n", out)  # by 1B's steps
    assert (
        f"taken from {source}: base, coldstart, verifier, meta; " in told and "meta_gate (True, now" in told
    )
    assert (b / "meta" / "eval.json").read_bytes() == (source / "meta" / "eval.json").read_bytes()
    gates = [json.loads((f / "verifier2" / "settings.json").read_text()) for f in (source, b)]
    assert [g["verifier2"]["meta_gate"] for g in gates] == [True, False]
    assert (b / "verifier2" / "phase.json").is_file()
    assert json.loads((b / "config.json").read_text())["base"]["steps"] == 240  # the source's settings


@pytest.mark.parametrize(
    "args, told",
    [
        (["--from=runs/nowhere", "--dir={}/b"], "--from=runs/nowhere is not the folder of a run"),
        (["--from={}/a"], "needs --dir"),
        (["--from={}/a", "--dir={}/a"], "is the run itself"),
        (
            ["--from={}/a", "--dir={}/b", "--phase=generator", "--seed=4"],
            "run `python train.py --phase=verif",
        ),
    ],
)
def test_a_wrong_source_is_refused_before_anything_is_made(source, tmp_path, args, told):
    with pytest.raises(InputError, match=told):
        inside("train.py", *(a.format(tmp_path) for a in args))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
