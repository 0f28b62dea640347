"""The judging page in a real Chromium: how long a key takes, and whether real proofs are shown whole.

    python benchmarks/judging.py --items=20000          # from a key to the next item drawn
    python benchmarks/judging.py --proofs=FILE.jsonl    # "problem" and "proof" a line: how each is shown

A proof is shown whole if the page's policy refuses nothing, no text leaves its card on a screen of 390 px,
and every formula has the sizes that KaTeX alone gives it. Needs playwright and Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanov2.records import ProofRecord, write_jsonl

ROOT = Path(__file__).parents[1]
STOPWATCH = """() => {
  window.times = []; let begin = 0;
  addEventListener('keydown', () => { begin = performance.now(); }, true);
  const drawn = () => requestAnimationFrame(() => times.push(performance.now() - begin));
  new MutationObserver(drawn).observe(document.getElementById('item'), { attributeFilter: ['data-id'] });
}"""
WATCH_POLICY = """() => { window.refused = [];
  document.addEventListener('securitypolicyviolation', (e) => refused.push(e.violatedDirective)); }"""
# The sizes of what a formula is made of. Where a tag stands depends on the page's width.
SIZES = """const sizes = (formula) => [...formula.querySelectorAll('.katex-html span')]
  .filter((s) => !s.closest('.katex-tag') && s.matches('.katex-base, .text, .mord'))
  .map((s) => s.getBoundingClientRect()).map((r) => [r.width, r.height]);"""
# What leaves its card (unless it scrolls inside it), and the sizes of each formula's parts.
LOOK = """() => {
  SIZES
  const outside = [], html = document.documentElement;
  if (html.scrollWidth > html.clientWidth) outside.push('the page: ' + html.scrollWidth);
  const walk = document.createTreeWalker(document.getElementById('item'), NodeFilter.SHOW_TEXT);
  const scroller = (node, end) => {
    for (let n = node; n && n !== end; n = n.parentElement)
      if (['auto', 'scroll'].includes(getComputedStyle(n).overflowX)) return n;
    return null;
  };
  while (walk.nextNode()) {
    const parent = walk.currentNode.parentElement, card = parent.closest('.nv-text, .nv-card');
    if (!card || parent.closest('.katex-mathml') || !walk.currentNode.data.trim()) continue;
    const inner = scroller(parent, card), edge = card.getBoundingClientRect();
    const range = document.createRange();
    range.selectNodeContents(walk.currentNode);
    const boxes = inner ? [inner.getBoundingClientRect()] : [...range.getClientRects()];
    if (boxes.some((r) => r.width && (r.right > edge.right + 1 || r.left < edge.left - 1)))
      outside.push(walk.currentNode.data.slice(0, 40));
  }
  const maths = [...document.querySelectorAll('#item .nv-math')].map((m) => ({
    tex: m.querySelector('annotation').textContent,
    display: m.classList.contains('nv-display'),
    sizes: sizes(m) }));
  const source = document.querySelectorAll('#item .nv-source').length;
  return { outside, maths, source, refused: refused.splice(0) };
}""".replace("SIZES", SIZES)
ALONE = """(maths) => {
  SIZES
  const options = { trust: false, maxExpand: 200, maxSize: 20, strict: 'ignore' };
  return maths.filter((m) => {
    const box = document.createElement('div');
    document.body.replaceChildren(box);
    katex.render(m.tex, box, { displayMode: m.display, ...options });
    const own = sizes(box), close = (o, i) => o.every((x, k) => Math.abs(x - m.sizes[i][k]) < 1);
    return own.length !== m.sizes.length || !own.every(close);
  }).map((m) => m.tex);
}""".replace("SIZES", SIZES)
NEXT = """id => { const item = document.getElementById('item');
  return item.hidden || item.dataset.id !== id; }"""


def open_page(browser, address: str, **options):
    """A page as Ada sees it, at her first item."""
    page = browser.new_context(**options).new_page()
    page.goto(address)
    page.evaluate(WATCH_POLICY)
    page.keyboard.type("Ada")
    page.keyboard.press("Enter")
    page.wait_for_selector("#item:not([hidden])")
    return page


def look_through(browser, address: str, count: int, report=print) -> list[str]:
    """What is wrong with how the items of the page at `address` are shown. Each is scored 1."""
    page = open_page(browser, address, viewport={"width": 390, "height": 800})
    alone = browser.new_context(bypass_csp=True).new_page()
    alone.goto(
        address.split("?")[0] + "page/katex.min.css"
    )  # a page of the same origin without our style sheet
    folder = ROOT / "nanov2/pages/judge_page"
    alone.set_content("<!doctype html><style></style><body style='font-size: 16px'>")
    style = (
        (folder / "katex.min.css")
        .read_text()
        .replace("url(fonts/", f"url({address.split('?')[0]}page/fonts/")
    )
    alone.evaluate("css => { document.querySelector('style').textContent = css; }", style)
    alone.add_script_tag(path=folder / "katex.min.js")
    found, maths, source = [], 0, 0
    for n in range(1, count + 1):
        page.evaluate("document.fonts.ready")
        seen = page.evaluate(LOOK)
        alone.evaluate(ALONE, seen["maths"])  # loads the fonts that it needs
        alone.evaluate("document.fonts.ready")
        torn = alone.evaluate(ALONE, seen["maths"])
        found += [f"{n}: refused {r}" for r in seen["refused"]] + [
            f"{n}: outside {o!r}" for o in seen["outside"]
        ]
        found += [f"{n}: torn {t!r:.100}" for t in torn]
        maths, source = maths + len(seen["maths"]), source + seen["source"]
        if n % 50 == 0:
            report(f"{n} of {count} proofs, {maths} formulas, {len(found)} findings")
        id = page.locator("#item").get_attribute("data-id")
        page.keyboard.press("1")
        page.wait_for_function(NEXT, arg=id)
    report(f"{count} proofs, {maths} formulas set by KaTeX, {source} parts shown as they are written")
    return found


def time_keys(browser, address: str, keys: int) -> list[float]:
    """Milliseconds from a key to the next item drawn."""
    page = open_page(browser, address)
    page.evaluate(STOPWATCH)
    for i in range(keys):
        page.keyboard.press("1")
        page.wait_for_function("n => times.length > n", arg=i)
    return page.evaluate("times")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--keys", type=int, default=50)
    parser.add_argument("--proofs", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    rows = [json.loads(line) for path in args.proofs for line in open(path, encoding="utf-8")]
    proofs = [ProofRecord(r["problem"], r["proof"]) for r in rows]
    proofs = list({(r.problem, r.proof): r for r in proofs}.values())
    made = [ProofRecord(f"{i}: show $x_{{{i}}} > 0$", "Let $x = a^2$.\n\nDone.") for i in range(args.items)]
    with sync_playwright() as p, tempfile.TemporaryDirectory() as folder:
        write_jsonl(Path(folder) / "coldstart" / "proofs_to_score.jsonl", proofs or made)
        command = [sys.executable, "-m", "nanov2", "judge", folder, "--port=0"]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
            browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            address = server.stdout.readline().strip()
            if proofs:
                begin = time.perf_counter()
                found = look_through(browser, address, len(proofs))
                print(*found, f"{len(found)} findings in {time.perf_counter() - begin:.0f} s", sep="\n")
                sys.exit(bool(found))
            times = time_keys(browser, address, args.keys)
        finally:
            server.kill()
    median, most = statistics.median(times), max(times)
    print(f"{args.items} items, {args.keys} keys: median {median:.0f} ms, {most:.0f} at most")


if __name__ == "__main__":
    main()
