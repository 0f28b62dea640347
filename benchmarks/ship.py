"""Pack the last models of a finished run into weights/, which sample.py uses where no run is at hand.

    python benchmarks/ship.py runs/proofworld          # a few MB: weights in half precision, figures, report

The folder is a run folder of one lap: sample.py, the report and the terminal view read it as any other.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from nanov2.errors import InputError
from nanov2.hub.chat import load_model, save_model
from nanov2.pages.report import build_report
from nanov2.records import read_json, write_atomically
from nanov2.run import seal
from nanov2.run.config import load_config

ROOT = Path(__file__).parents[1]
PHASES = {  # the folder in weights/, and the phases whose last model goes there
    "meta": ("meta", "renew_meta"),
    "verifier2": ("verifier2",),
    "selfverify": ("selfverify",),
}
BESIDE = ("eval.json", "samples.jsonl")  # what the report shows of a phase


def last_folder(run: Path, phase: str) -> Path:
    """The folder of the last lap that has finished the phase, or one that renews its model."""
    folders = [(lap, folder) for name, lap, folder in seal.phases_in(run) if name in PHASES[phase]]
    done = [(lap, folder) for lap, folder in folders if (folder / "phase.json").is_file()]
    if not done:
        raise InputError(f"{run} has not finished {phase}: run `python train.py --phase={phase} --dir={run}`")
    return max(done)[1]


def pack(source: Path, target: Path) -> None:
    """A phase's model in half precision, its figures and samples, sealed again."""
    model, tokenizer = load_model(source)
    for name, p in model.named_parameters():
        if not torch.isfinite(p.half()).all():
            raise InputError(f"{source}: {name} does not fit into half precision")
    save_model(target, model.half(), tokenizer)
    for name in BESIDE:
        shutil.copy(source / name, target / name)
    done = read_json(source / "phase.json")
    notes = [*done.get("notes", []), f"weights rounded to half precision, from lap {done['lap']}"]
    facts = done | {"lap": 1, "notes": notes, "files": seal.checksums(target)}
    write_atomically(target / "phase.json", json.dumps(facts, indent=1))


def ship(run: Path, out: Path) -> int:
    """Write `out`; returns its bytes."""
    if not (run / "config.json").is_file():
        raise InputError(f"{run} is not the folder of a run: config.json is missing")
    folders = {phase: last_folder(run, phase) for phase in PHASES}
    facts = read_json(run / "run.json")
    settings = load_config(run / "config.json").to_dict() | {"laps": 1}
    for name in (*PHASES, "config.json", "run.json", "report.html", "report.json"):
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for phase, folder in folders.items():
        pack(folder, out / phase)
    write_atomically(out / "config.json", json.dumps(settings, indent=1))
    write_atomically(out / "run.json", json.dumps(facts, indent=1))
    shutil.copy(build_report(run)[0], out / "report.html")  # of the whole run
    return sum(p.stat().st_size for p in out.rglob("*") if p.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "weights")
    args = parser.parse_args()
    try:
        print(f"{args.out}: {ship(args.run, args.out) / 1e6:.1f} MB")
    except InputError as e:
        raise SystemExit(f"error: {e}") from e


if __name__ == "__main__":
    main()
