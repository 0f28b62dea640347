"""Runs the scripts as a user does, in processes of their own."""

import os
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAP1 = ["base", "coldstart", "verifier", "meta", "verifier2", "generator", "selfverify", "autolabel"]
ALL = LAP1 + [
    f"lap2/{p}" for p in ("consolidate", "renew_meta", "verifier2", "generator", "selfverify", "autolabel")
]
# Smaller still than the smoke configuration: what is tested here is that phases work, not that they learn.
TINY = [
    "--base.steps=240",
    "--world.held_out=10",
    "--world.validation=6",
    "--grpo.steps=2",
    "--autolabel.problems=8",
]


def run(script, *args, ranks=1, wait=True):
    launch = [sys.executable]
    if ranks > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*launch, script, *map(str, args)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    if not wait:
        return process
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


def flywheel(folder, *args, **options):
    return run("train.py", "--config=configs/smoke.toml", f"--dir={folder}", *TINY, *args, **options)


def do_phases(folder, settings, *phases):
    """Phases of lap 1 in this process, one after the other."""
    from nanov2.distributed.ranks import Ranks
    from nanov2.run.config import load_config
    from nanov2.run.folder import Run

    run = Run(Path(folder), load_config(None, settings), Ranks())
    do_phase = runpy.run_path(str(ROOT / "train.py"), run_name="script")["do_phase"]
    run.claim()
    try:
        for phase in phases:
            do_phase(run, phase, 1)
    finally:
        run._held.release()


def inside(script, *args):
    """Run a script's main in this process, which saves the import of torch; what it raises is raised here."""
    old, sys.argv = sys.argv, [script, *map(str, args)]
    try:
        runpy.run_path(str(ROOT / script), run_name="script")["main"]()
    finally:
        sys.argv = old


def ends(script, *args):
    """Run a script or a module to its end in this process: its status, as the shell would see it.

    A script ends a process at once after an error; here that is SystemExit.
    """
    old = sys.argv, os._exit, threading.excepthook, {n: signal.getsignal(n) for n in SIGNALS}
    sys.argv, os._exit = [script, *map(str, args)], sys.exit
    try:
        if script.endswith(".py"):
            runpy.run_path(str(ROOT / script), run_name="__main__")
        else:
            runpy.run_module(script, run_name="__main__")  # what is imported stays: others hold its functions
    except SystemExit as e:
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
        return 1 if isinstance(e.code, str) else e.code or 0
    finally:
        sys.argv, os._exit, threading.excepthook, handlers = old
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


SIGNALS = (signal.SIGTERM, signal.SIGINT)
