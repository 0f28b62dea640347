"""The README's pictures of the pages, taken from the real ones.

    python benchmarks/screenshots.py runs/proofworld        # into docs/; needs playwright and Chromium

The judging page is shown on proofs of the run, in a folder of its own; the run is left as it is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanov2.pages.report import build_report
from nanov2.records import CritiqueRecord, read_jsonl, write_jsonl

ROOT = Path(__file__).parents[1]


def waiting(run: Path, folder: Path) -> None:
    """Critiques of the run, unscored, as a phase would leave them for an expert."""
    rows = read_jsonl(run / "meta" / "dmv.jsonl", CritiqueRecord)
    rows = [r for r in rows if len(r.critique.split()) > 18][:40]
    unscored = [CritiqueRecord(r.problem, r.proof, r.critique) for r in rows]
    write_jsonl(folder / "meta" / "critiques_to_score.jsonl", unscored)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as p, tempfile.TemporaryDirectory() as folder:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])

        def page(width: int, height: int, scheme: str = "light"):
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            return context.new_page()

        report = build_report(args.run)[0].resolve().as_uri()
        shot = page(1100, 760)
        shot.goto(report)
        shot.screenshot(path=args.out / "report.png")
        shot = page(1000, 900)
        shot.goto(report)
        shot.select_option("#f-phase", "verifier2")
        shot.locator(".sample:visible").first.scroll_into_view_if_needed()
        shot.wait_for_selector(".sample .katex")
        shot.screenshot(path=args.out / "report-samples.png")
        shot = page(375, 760)
        shot.goto(report)
        shot.locator("svg[data-series]").first.hover()
        shot.screenshot(path=args.out / "report-phone.png")
        waiting(args.run, Path(folder))
        command = [sys.executable, "-m", "nanov2", "judge", folder, "--port=0"]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            shot = page(800, 900)
            shot.goto(server.stdout.readline().decode().strip())
            shot.keyboard.type("Ada")
            shot.keyboard.press("Enter")
            shot.wait_for_selector("#item:not([hidden])")
            shot.keyboard.press("c")
            shot.screenshot(path=args.out / "judge.png")
        finally:
            server.kill()
    for name in ("report", "report-samples", "report-phone", "judge"):
        print(args.out / f"{name}.png")


if __name__ == "__main__":
    main()
