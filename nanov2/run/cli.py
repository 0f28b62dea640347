"""What the scripts share: arguments, opening a run, and errors in one line."""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from nanov2 import beside
from nanov2.distributed.ranks import Ranks, leave
from nanov2.distributed.safety import Stopped
from nanov2.distributed.startup import set_threads
from nanov2.errors import InputError
from nanov2.run.config import Config, describe, load_config
from nanov2.run.engines import close_engines
from nanov2.run.folder import Run
from nanov2.settings import Within

CONFIGS, WEIGHTS = beside("configs"), beside("weights")  # benchmarks/ship.py fills the latter
DEFAULT_CONFIG = CONFIGS / "proofworld.toml"
LAP = re.compile(r"lap\d+")
DISK = {  # what a user can put right
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.EIO,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EMFILE,
    errno.ENAMETOOLONG,
}


class Parser(argparse.ArgumentParser):
    """Its errors are InputErrors: one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def parse(
    description: str, flags: dict, positional: dict | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what of it overrides the configuration.

    `flags` are name → (default, help) or (default, help, bounds); `--config` and `--dir` are always there.
    Whatever else is given as --section.field=value overrides the configuration.
    """
    parser = Parser(
        description=description,
        epilog=describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", default=None, help="TOML file (default: configs/proofworld.toml)")
    parser.add_argument(
        "--dir", default=None, help="run folder (default: runs/ and the configuration's name)"
    )
    for name, options in (positional or {}).items():
        parser.add_argument(name, **options)
    for name, (default, text, *_) in flags.items():
        text = text.replace("%", "%%")
        if default is False:
            parser.add_argument(f"--{name}", action="store_true", help=text)
            continue
        shown = f"{text} (default: {default})" if default not in ("", 0) else text
        parser.add_argument(f"--{name}", default=default, type=type(default), help=shown)
    for given in sys.argv[1:]:
        if given.endswith("=") and given[2:-1] in ("config", "dir", *flags):
            raise InputError(f"{given} has no value; leave it out for the default")
    args, overrides = parser.parse_known_args()
    stray = [o for o in overrides if not o.startswith("--") or "=" not in o]
    if stray:
        near = difflib.get_close_matches(stray[0].strip("-—"), ["config", "dir", *flags], 1)
        mean = f"did you mean --{near[0]}? Else " if near else ""
        raise InputError(
            f"cannot read argument {stray[0]!r}: {mean}write --section.field=value, or see --help"
        )
    for name, (_, _, *bounds) in flags.items():
        _check_bounds(name, getattr(args, name.replace("-", "_")), bounds)
    return args, overrides


def _check_bounds(name: str, value: object, bounds: list[Within]) -> None:
    """Numbers without bounds of their own are from 0 on."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    allowed = bounds[0] if bounds else Within(0, 2**63 - 1)
    if value not in allowed:
        raise InputError(f"--{name} must be {allowed}, found {value}")


def _config_path(args: argparse.Namespace, models: bool = False) -> tuple[Path, Path]:
    """The file with the settings, and the run folder; `models`: where there is none, nanov2's own models."""
    source = getattr(args, "from", "")
    path = shipped(Path(args.config)) if args.config else DEFAULT_CONFIG
    if source and not (args.dir or args.config):
        raise InputError(f"--from={source} needs --dir=FOLDER, the folder of the new run, or a --config")
    folder = Path(args.dir) if args.dir else Path("runs") / path.stem
    if models and not (args.config or args.dir or folder.exists()):
        folder = _own_models(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--dir={folder} is a file, not a run folder")
    if (folder / "phase.json").is_file():
        run = folder.parent.parent if LAP.fullmatch(folder.parent.name) else folder.parent
        raise InputError(f"--dir={folder} is the folder of a phase: give that of its run, --dir={run}")
    if not args.config:  # go on with the settings that the run has, or that it begins from
        known = [Path(run) / "config.json" for run in (folder, source) if run]
        path = next((p for p in known if p.is_file()), path)
    return path, folder


def _own_models(missing: Path) -> Path:
    """The run folder of the models that come with nanov2; they are named on the terminal."""
    if not (WEIGHTS / "config.json").is_file():
        raise InputError(
            f"{missing} is not there, and no models come with this copy of nanov2: run `python train.py "
            "--phase=flywheel` first, or give --dir=RUN"
        )
    if os.environ.get("RANK", "0") == "0":
        print(f"{missing} is not there: these are models of the default run, from {WEIGHTS}", file=sys.stderr)
    return WEIGHTS


def shipped(path: Path) -> Path:
    """The file itself or, where it is not there, nanov2's own of this name: configs/smoke.toml, or smoke."""
    own = CONFIGS / path.with_suffix(".toml").name
    return (
        own if path.parent in (Path("."), Path("configs")) and not path.exists() and own.is_file() else path
    )


def check_output(path: str, *read: str) -> None:
    """InputError, before any work is done for it, where a file cannot be written or is one of those read."""
    target = Path(path)
    if target.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; name a file")
    if target.exists() and any(source and target.resolve() == Path(source).resolve() for source in read):
        raise InputError(f"cannot write {path}: it is the file that is read; name another")
    above = next(p for p in target.absolute().parents if p.exists())
    if not above.is_dir() or not os.access(target if target.exists() else above, os.W_OK):
        raise InputError(f"cannot write {path}: {above} is no folder that you may write to; name another")


def read_config(args: argparse.Namespace, overrides: list[str]) -> Config:
    """The settings alone; nothing is made on disk."""
    return load_config(_config_path(args)[0], overrides)


def open_folder(args: argparse.Namespace, overrides: list[str], models: bool = False) -> Run:
    """The run that the arguments name. Nothing is written: `Run.claim` does that.

    With `models` it may be the one whose last models come with nanov2, where there is no run.
    """
    path, folder = _config_path(args, models)
    config = load_config(path, overrides)
    threads, ranks = set_threads(), Ranks(config.parallel.timeout)
    if ranks.main:
        print(f"{folder}: {ranks.size} rank(s) of {threads} thread(s) on {ranks.device}", file=sys.stderr)
    return Run(folder, config, ranks)


def script(main: Callable[[], None]) -> None:
    """Run a script's main; an error caused by input or by the disk is one line and exit status 1.

    SIGTERM and SIGINT end it at once with status 0, but in a training loop after its step (CleanStop).
    """
    threading.excepthook = _quiet_about_the_disk
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        try:
            main()
        finally:
            close_engines()
    except InputError as e:
        _end(f"error: {e}")
    except Stopped as e:
        if os.environ.get("RANK", "0") == "0":
            print(f"\n{e}", file=sys.stderr)
    except BrokenPipeError:
        _end("")
    except OSError as e:
        if e.errno not in DISK:
            raise
        where = f" {e.filename}" if e.filename else ""
        _end(
            f"error: cannot write{where}: {e.strerror}; free space or fix permissions and run again: "
            "what was finished or checkpointed is kept"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        leave()


def _end(message: str) -> NoReturn:
    """Exit status 1, at once: writers of curves may still hold what the disk does not take."""
    if message:
        print(InputError(message), file=sys.stderr)
    leave(1)


def _quiet_about_the_disk(args: threading.ExceptHookArgs) -> None:
    """A thread's OSError is raised again in the main thread, which tells of it."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def _stop(number: int, frame) -> None:
    raise Stopped("stopped; what was finished or checkpointed is kept: the same command goes on from there")


__all__ = ["Config", "InputError", "Parser", "check_output", "open_folder", "parse", "read_config", "script"]
