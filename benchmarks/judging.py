"""From a key on the judging page to the next item drawn, with many items waiting, in a real Chromium.

python benchmarks/judging.py --items=20000
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanov2.records import ProofRecord, write_jsonl

STOPWATCH = """() => {
  window.times = []; let begin = 0;
  addEventListener('keydown', () => { begin = performance.now(); }, true);
  const drawn = () => requestAnimationFrame(() => times.push(performance.now() - begin));
  new MutationObserver(drawn).observe(document.getElementById('item'), { attributeFilter: ['data-id'] });
}"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--keys", type=int, default=50)
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p, tempfile.TemporaryDirectory() as folder:
        proofs = [
            ProofRecord(f"{i}: show $x_{{{i}}} > 0$", "Let $x = a^2$.\n\nDone.") for i in range(args.items)
        ]
        write_jsonl(Path(folder) / "coldstart" / "proofs_to_score.jsonl", proofs)
        command = [sys.executable, "-m", "nanov2", "judge", folder, "--port=0"]
        server = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
        try:
            chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
            browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            page.goto(server.stdout.readline().strip())
            page.keyboard.type("Ada")
            page.keyboard.press("Enter")
            page.wait_for_selector("#item:not([hidden])")
            page.evaluate(STOPWATCH)
            for i in range(args.keys):
                page.keyboard.press("1")
                page.wait_for_function("n => times.length > n", arg=i)
            times = page.evaluate("times")
        finally:
            server.kill()
    median, most = statistics.median(times), max(times)
    print(f"{args.items} items, {args.keys} keys: median {median:.0f} ms, {most:.0f} at most")


if __name__ == "__main__":
    main()
