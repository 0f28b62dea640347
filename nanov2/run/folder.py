"""The run folder: what every phase reads and writes, and what makes it again if it is missing.

runs/NAME/run.json, config.json      settings, seed, commit, versions
runs/NAME/base/ coldstart/ …         a folder per phase of lap 1
runs/NAME/lap2/verifier2/ …          later laps
…/settings.json                      written first: what the phase is made with
…/phase.json                         written last: the phase is done; checksums of its files
…/metrics.jsonl, groups.jsonl, samples_by_step.jsonl, eval.json, samples.jsonl, model.safetensors, records;
   snapshots/ meanwhile
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from nanov2.distributed.ranks import Ranks
from nanov2.distributed.safety import Lock, Stopped
from nanov2.distributed.sharding import fill
from nanov2.domains.domain import open_domain
from nanov2.domains.language import Language
from nanov2.errors import InputError
from nanov2.hub import chat
from nanov2.hub.chat import ChatTokenizer
from nanov2.method.figures import Bench
from nanov2.method.memory import Memory
from nanov2.model.decoder import Model
from nanov2.records import ProblemRecord, Record, read_json, read_jsonl, write_atomically, write_jsonl
from nanov2.rl.logs import hyperparameters, read_rows
from nanov2.run import seal
from nanov2.run.config import Config
from nanov2.run.left import Spent, steps_seconds
from nanov2.run.meter import Meter
from nanov2.run.phases import flywheel, title
from nanov2.run.start import check_start

MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")  # of a folder that holds a model


class Run:
    """A run folder and this process's place in the run."""

    def __init__(self, folder: str | Path, config: Config, ranks: Ranks):
        """Reads data files and writes nothing; `claim` makes the folder one's own."""
        self.dir, self.config, self.ranks = Path(folder), config, ranks
        ranks.use(config.parallel.shard, config.parallel.precision, config.parallel.reduce)
        self.domain = open_domain(config)
        self.problems = self.domain.problems()
        self._checked: set[Path] = set()
        self._memory, self._meter = Memory(), Meter()

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
        """Claim the folder for writing, without changing its settings.

        InputError, before a byte is written, where another process has it or a phase was made otherwise.
        """
        self._on_main(self._lock)

    def claim(self) -> None:
        """Claim the folder, and give it this run's settings."""
        self.lock()
        self._on_main(self._open)

    def _lock(self) -> None:
        check_start(self.config, self.domain, self.ranks)
        seal.check_run(self.dir, self.config)
        self._held = Lock(self.dir)
        seal.check_run(self.dir, self.config)  # again: somebody may have written until now
        self._held.sign()
        seal.clear_leftovers(self.dir)

    def _open(self) -> None:
        settings = json.loads(json.dumps(self.config.to_dict()))
        write_atomically(self.dir / "config.json", json.dumps(settings, indent=1))
        if not (self.dir / "run.json").is_file():
            write_atomically(self.dir / "run.json", json.dumps(self._facts(settings), indent=1))

    def _on_main(self, do: Callable[[], None]) -> None:
        """`do()` on the main rank. Its error is raised there; the others end without a word."""
        error = None
        if self.ranks.main:
            try:
                do()
            except InputError as e:
                error = e
        if self.ranks.from_main(error is not None):
            raise error or Stopped("the main rank was refused the folder")

    def begin(self, phase: str, lap: int) -> None:
        """Write down what a phase is made with, before anything else of it is written."""
        self._meter.start()
        self._on_main(lambda: seal.begin(self.folder(phase, lap), phase, lap, self.config))

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

    def spent(self) -> dict[tuple[str, int], Spent]:
        """What each phase that is done took."""
        found = {}
        for phase, lap in filter(lambda key: self.is_done(*key), flywheel(self.config)):
            folder = self.folder(phase, lap)
            seconds = read_json(folder / "phase.json")["seconds"]
            found[phase, lap] = Spent.of(seconds, read_rows(folder / "metrics.jsonl"))
        return found

    def command(self, phase: str, lap: int) -> str:
        """What makes a phase."""
        return f"python train.py --phase={phase}{f' --lap={lap}' if lap > 1 else ''} --dir={self.dir}"

    def need(self, phase: str, lap: int = 1) -> Path:
        """The folder of an earlier phase; InputError says how to make it where it is not done."""
        if not self.is_done(phase, lap):
            raise InputError(
                f"{self.folder(phase, lap)} is missing or unfinished: run `{self.command(phase, lap)}` first"
            )
        return self.folder(phase, lap)

    def file(self, phase: str, lap: int, name: str) -> Path:
        """A file of an earlier phase; InputError where it is not as the phase left it."""
        path = self.need(phase, lap) / name
        if path not in self._checked:
            seal.check_file(path, self.command(phase, lap))
            self._checked.add(path)
        return path

    def model_folder(self, phase: str, lap: int = 1) -> Path:
        """That of a finished phase's model, as the phase left it."""
        folder = self.need(phase, lap)
        for name in sorted(p.name for p in folder.iterdir() if p.suffix in MODEL_FILES):
            self.file(phase, lap, name)
        return folder

    def load(self, phase: str, lap: int = 1, frozen: bool = False) -> tuple[Model, ChatTokenizer]:
        """A finished phase's model, with the products of `_precision`. In bf16, one that is `frozen`, and
        began as a chat model or by LoRA, has its matrices in bf16 too, and one that ranks share in shards all
        its weights."""
        ranks, folder = self.ranks, self.model_folder(phase, lap)
        if ranks.sharded:
            model, tokenizer = chat.lazy_model(folder)
            return fill(model, ranks), tokenizer
        half = frozen and self._given and ranks.precision == "bf16"
        model, tokenizer = chat.load_model(folder, ranks.device, half)
        model.set_precision(self._precision)
        return model, tokenizer

    @property
    def _given(self) -> bool:
        """Whether models began as a chat model, or are trained by LoRA."""
        return bool(self.config.pretrained.folder or self.config.lora.rank)

    @property
    def _precision(self) -> str:
        """Of products while nothing is trained: that of training, but on CPUs fp32 for a world's own small
        models, whose decode steps are too small to gain by halves."""
        return self.ranks.precision if self._given or self.ranks.device.type == "cuda" else "fp32"

    def start(self) -> tuple[Model, ChatTokenizer]:
        """The model that the base is trained from."""
        model, tokenizer = self.domain.start()
        if model.source:
            return fill(model, self.ranks), tokenizer
        model.set_precision(self._precision)
        return model.to(self.ranks.device), tokenizer

    def save(self, phase: str, lap: int, model: Model, tokenizer: ChatTokenizer) -> None:
        """Every rank calls it, and the main one writes."""
        chat.save_model(self.folder(phase, lap), model, tokenizer, writes=self.ranks.main)

    def bench(self, language: Language) -> Bench:
        """What models that speak the language are measured with."""
        return Bench.of(language, self.domain.truth, self.config, self.ranks, self._memory)

    def records(self, phase: str, lap: int, name: str, kind: type[Record]) -> list[Record]:
        return read_jsonl(self.file(phase, lap, name), kind)

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

    def write(self, phase: str, lap: int, name: str, value: Any) -> None:
        """JSON (or JSONL, for a name that ends so) into a phase's folder, by the main rank."""
        if not self.ranks.main:
            return
        path = self.folder(phase, lap) / name
        if name.endswith(".jsonl"):
            write_jsonl(path, value)
        else:
            write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False))

    def finish(self, phase: str, lap: int, seconds: float, **facts) -> None:
        """Write phase.json: from here on the phase is done.

        Its seconds are those of this process or, where it was stopped in between, at least of all its steps;
        tokens and memory are this process's, memory the main rank's.
        """
        self._meter.stop()
        tokens = self.ranks.sum({"tokens": float(self._meter.tokens)})["tokens"]
        took = {"sampled_tokens": int(tokens)} | self._meter.memory()
        seconds = max(seconds, steps_seconds(read_rows(self.folder(phase, lap) / "metrics.jsonl")))
        done = {"phase": phase, "lap": lap, "title": title(phase, lap), "seconds": round(seconds, 1)}
        self.ranks.barrier()
        if self.ranks.main:
            files = {"files": seal.checksums(self.folder(phase, lap))}
            self.write(phase, lap, "phase.json", done | took | facts | files)
            shutil.rmtree(self.folder(phase, lap) / "snapshots", ignore_errors=True)
            self._tell_tensorboard(phase, lap)
        self.ranks.barrier()

    def _tell_tensorboard(self, phase: str, lap: int) -> None:
        path = self.folder(phase, lap) / "eval.json"
        if path.is_file():
            settings = dataclasses.asdict(self.config.phase(phase, lap))
            figures = read_json(path)["after"]
            hyperparameters(path.parent, {"seed": self.config.seed} | settings, figures)


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
