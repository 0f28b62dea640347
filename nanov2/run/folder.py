"""The run folder: what every phase reads and writes, and what makes it again if it is missing.

runs/NAME/run.json, config.json      settings, seed, commit, versions
runs/NAME/base/ coldstart/ …         a folder per phase of lap 1
runs/NAME/lap2/verifier2/ …          later laps
…/phase.json                         written last: the phase is done
…/metrics.jsonl, eval.json, samples.jsonl, model.safetensors, records; snapshots/ while it is under way
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

import torch

from nanov2.distributed.ranks import Ranks
from nanov2.distributed.safety import Lock
from nanov2.domains.domain import open_domain
from nanov2.domains.language import Language
from nanov2.domains.order.tokenizer import Tokenizer
from nanov2.errors import InputError
from nanov2.hub import chat, checkpoint
from nanov2.method.figures import Bench
from nanov2.model.decoder import Model
from nanov2.records import ProblemRecord, Record, read_jsonl, write_atomically, write_jsonl
from nanov2.rl.logs import hyperparameters
from nanov2.run.config import Config, load_config

PHASES = {
    "base": "Base: supervised training on imperfect demonstrations",
    "coldstart": "1A: weak proofs, refined, drawn and scored by the expert (𝒟v)",
    "verifier": "1B: verifier πφ v1, R_format · R_score",
    "meta": "1C: graded critiques (𝒟mv) and the meta-verifier πη",
    "consolidate": "Base of a later lap: rejection fine-tuning on the best samples of the lap before",
    "verifier2": "1D: enhanced verifier πφ v2, R_format · R_score · R_meta",
    "generator": "2: generator πθ, the verifier's score as its only reward",
    "selfverify": "3: self-verifying generator, draft → critique → revision → final",
    "autolabel": "4: labels by consensus for new hard proofs",
}


AnyTokenizer = Tokenizer | chat.ChatTokenizer


class Run:
    """A run folder and this process's place in the run."""

    def __init__(self, folder: str | Path, config: Config, ranks: Ranks):
        self.dir, self.config, self.ranks = Path(folder), config, ranks
        ranks.use(config.parallel.shard, config.parallel.precision)
        self.domain = open_domain(config)
        self.problems = self.domain.problems()
        if ranks.main:
            self._open()
        ranks.barrier()

    def _open(self) -> None:
        settings = json.loads(json.dumps(self.config.to_dict()))
        path = self.dir / "config.json"
        if path.is_file():
            old = json.loads(json.dumps(load_config(path).to_dict()))  # settings new since have defaults
            done = {p.parent.name for p in self.dir.glob("**/phase.json")}
            fixed = done | ({"seed", "model", "world", "noise"} if done else set())
            changed = sorted(k for k in fixed if _differ(settings.get(k), old.get(k)))
            if changed:
                raise InputError(
                    f"{path} was made with other settings of {', '.join(changed)}: "
                    "use another --dir, or delete the folder"
                )
        write_atomically(path, json.dumps(settings, indent=1))
        if not (self.dir / "run.json").is_file():
            write_atomically(self.dir / "run.json", json.dumps(self._facts(settings), indent=1))

    def _facts(self, settings: dict) -> dict:
        packages = ("torch", "numpy", "safetensors", "tokenizers", "tqdm", "tensorboard")
        return {
            "name": self.dir.name,
            "seed": self.config.seed,
            "commit": _commit(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
            "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in packages},
            "machine": {
                "cpu_cores": os.cpu_count(),
                "threads_per_rank": torch.get_num_threads(),
                "device": str(self.ranks.device),
                "system": platform.platform(),
            },
            "ranks": self.ranks.size,
            "config": settings,
        }

    def lock(self) -> None:
        """Claim the folder for writing; InputError where another process has it."""
        if self.ranks.main:
            self._lock = Lock(self.dir)

    def hard_problems(self, name: str, lap: int) -> list[ProblemRecord]:
        """The harder problems "train_hard" or "validation_hard" of a lap."""
        usual = self.problems[name.removesuffix("_hard")]  # where none are harder
        return self.problems.get(f"{name}{lap}") or self.problems.get(name) or usual

    @property
    def hardest(self) -> list[ProblemRecord]:
        """Held-out problems as hard as the last lap's."""
        return self.problems.get("held_out_hardest") or self.hard_problems("held_out_hard", 1)

    def folder(self, phase: str, lap: int = 1) -> Path:
        return self.dir / phase if lap == 1 else self.dir / f"lap{lap}" / phase

    def is_done(self, phase: str, lap: int = 1) -> bool:
        return (self.folder(phase, lap) / "phase.json").is_file()

    def need(self, phase: str, lap: int = 1) -> Path:
        """The folder of an earlier phase; InputError says how to make it where it is not done."""
        if not self.is_done(phase, lap):
            lap_flag = f" --lap={lap}" if lap > 1 else ""
            raise InputError(
                f"{self.folder(phase, lap)} is missing or unfinished: run "
                f"`python train.py --phase={phase}{lap_flag} --dir={self.dir}` first"
            )
        return self.folder(phase, lap)

    def load(self, phase: str, lap: int = 1) -> tuple[Model, AnyTokenizer]:
        folder = self.need(phase, lap)
        kind = chat if (folder / "tokenizer_config.json").is_file() else checkpoint
        return kind.load_model(folder, self.ranks.device)

    def save(self, phase: str, lap: int, model: Model, tokenizer: AnyTokenizer) -> None:
        if self.ranks.main:
            kind = chat if isinstance(tokenizer, chat.ChatTokenizer) else checkpoint
            kind.save_model(self.folder(phase, lap), model, tokenizer)

    def bench(self, language: Language) -> Bench:
        """What models that speak the language are measured with."""
        return Bench.of(language, self.domain.truth, self.config, self.ranks)

    def records(self, phase: str, lap: int, name: str, kind: type[Record]) -> list[Record]:
        path = self.need(phase, lap) / name
        return read_jsonl(path, kind)

    def once(self, path: Path, kind: type[Record], make: Callable[[], Iterable[Record]]) -> list[Record]:
        """Records of a file, made and written first if it is not there yet: work done is not done again.

        `make` is called on every rank and must return the same on all.
        """
        exists = self.ranks.from_main(path.is_file())
        if not exists:
            records = list(make())
            if self.ranks.main:
                write_jsonl(path, records)
            self.ranks.barrier()
            return records
        return read_jsonl(path, kind)

    def write(self, phase: str, lap: int, name: str, value: object) -> None:
        """JSON (or JSONL, for a name that ends so) into a phase's folder, by the main rank."""
        if not self.ranks.main:
            return
        path = self.folder(phase, lap) / name
        if name.endswith(".jsonl"):
            write_jsonl(path, value)
        else:
            write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False))

    def finish(self, phase: str, lap: int, seconds: float, **facts) -> None:
        """Write phase.json: from here on the phase is done."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        done = {"phase": phase, "lap": lap, "title": PHASES[phase], "seconds": round(seconds, 1)}
        self.ranks.barrier()
        self.write(phase, lap, "phase.json", done | {"peak_memory_mb": round(peak)} | facts)
        if self.ranks.main:
            shutil.rmtree(self.folder(phase, lap) / "snapshots", ignore_errors=True)
            self._tell_tensorboard(phase, lap)
        self.ranks.barrier()

    def _tell_tensorboard(self, phase: str, lap: int) -> None:
        path = self.folder(phase, lap) / "eval.json"
        if path.is_file():
            section = getattr(self.config, f"lap_{phase}", None) if lap > 1 else None
            settings = dataclasses.asdict(section or getattr(self.config, phase))
            figures = json.loads(path.read_text())["after"]
            hyperparameters(path.parent, {"seed": self.config.seed} | settings, figures)


def _differ(new: object, old: object) -> bool:
    """Whether two settings differ; a field that only one version of the program knows does not count."""
    if isinstance(new, dict) and isinstance(old, dict):
        return any(_differ(new[k], old[k]) for k in new.keys() & old.keys())
    return new != old


def _commit() -> str:
    """The code's commit, with a + where the work tree differs from it; "unknown" outside git."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("+" if dirty.strip() else "")
