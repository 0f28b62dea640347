"""Copies every shell block of the README into bash and runs it, in a copy of the project.

    python .ci/readme.py          # about six minutes on two cores; installs into the present environment
    python .ci/readme.py --list   # what would be run

Blocks run as they stand but for what SHORTER names: what takes hours is done on the smoke settings, into the
folder that later blocks read; a server is stopped once it has served for a while; the tests were run before.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
JUDGE = "python -m nanov2 judge runs/proofworld"
SHORTER = {
    "--config=configs/proofworld.toml": "--config=configs/smoke.toml --laps=1 --dir=runs/proofworld",
    "pytest -n 2": "pytest --collect-only -q",
    JUDGE: f"timeout -s INT 20 {JUDGE} < /dev/null || test $? = 124 ",  # 124: it was still serving
}


def blocks() -> list[str]:
    """The README's blocks as they are run; SystemExit where a text of SHORTER is in none."""
    found = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    for text, short in SHORTER.items():
        if not any(text in block for block in found):
            sys.exit(f"error: the README no longer says {text!r}: take it out of {Path(__file__).name}")
        found = [block.replace(text, short) for block in found]
    return found


def main() -> None:
    if "--list" in sys.argv[1:]:
        print("\n".join(blocks()))
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "nanov2"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("runs", ".git", "*.egg-info"))
        for block in blocks():
            print(f"\n$ {block.strip()}", flush=True)
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=copy)
            if done.returncode:
                sys.exit(f"error: this block of the README ended with status {done.returncode}")


if __name__ == "__main__":
    main()
