"""The judging page: its journal, its server, and the page itself in a real Chromium."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import AXE, chromium  # noqa: F401
from conftest import some_proofs

from nanov2.domains.order.world import (
    examine,
    grade_critique,
    grade_proof,
    parse_problem,
    parse_proof,
    write_critique,
)
from nanov2.errors import InputError
from nanov2.pages.judgements import Queue, cohen_kappa
from nanov2.records import CritiqueRecord, ProofRecord, read_jsonl, write_jsonl

ROOT = Path(__file__).parents[2]
HOSTILE = [
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">",
    r"$\href{javascript:alert(1)}{x}$ and $\frac{1}{$ and $\unknowncommand$",
    r"By $a^2+b^2=c^2$ we have \(c=\sqrt{a^2+b^2}\)." + "\n\nHence the claim.",
]


def waiting(folder, count=20, hostile=False):
    """A run folder with proofs and their critiques to score. Returns (run, the two files)."""
    pairs = some_proofs(count)
    texts = [(p.text, proof) for p, proof in pairs]
    if hostile:
        texts[:3] = [("Show <b>it</b>.", h) for h in HOSTILE]
    proofs = folder / "run" / "coldstart" / "proofs_to_score.jsonl"
    write_jsonl(proofs, [ProofRecord(x, y) for x, y in texts])
    return folder / "run", proofs


def test_every_judgement_is_on_disk_at_once_and_a_torn_line_is_dropped(tmp_path):
    _, path = waiting(tmp_path)
    queue = Queue(path)
    for value in (0, 0.5, 1):
        queue.judge(queue.next("Ada"), "Ada", "score", value, "note\u2028é")
    with open(queue.journal, "a") as f:
        f.write('{"id": "half a li')
    again = Queue(path)
    assert again.final == queue.final and len(again.final) == 3
    again.judge(again.next("Ada"), "Ada", "score", 1)
    assert len(Queue(path).final) == 4


def test_undo_gives_the_item_back_and_skipped_items_come_last(tmp_path):
    _, path = waiting(tmp_path, 3)
    queue = Queue(path)
    first = queue.next("Ada")
    queue.judge(first, "Ada", "skip")
    second = queue.next("Ada")
    queue.judge(second, "Ada", "score", 1)
    queue.judge(queue.last("Ada"), "Ada", "undo")
    assert queue.next("Ada") == second and second not in queue.final
    queue.judge(second, "Ada", "score", 0)
    queue.judge(queue.next("Ada"), "Ada", "score", 0)
    assert queue.next("Ada") == first
    assert Queue(path).next("Ada") == first


def test_the_waiting_file_is_filled_in_once_all_is_judged(tmp_path):
    _, path = waiting(tmp_path, 4)
    queue = Queue(path)
    for value in (0, 0.5, 1, 1):
        assert all(r.score is None for r in read_jsonl(path, ProofRecord))
        queue.judge(queue.next("Ada"), "Ada", "score", value)
    assert [r.score for r in read_jsonl(path, ProofRecord)] == [0, 0.5, 1, 1]


def test_two_experts_score_double_items_and_a_difference_is_settled(tmp_path):
    _, path = waiting(tmp_path, 4)
    queue = Queue(path, double=1.0)
    for expert, values in (("Ada", (0, 1, 1, 0)), ("Emmy", (0, 1, 0.5, 0))):
        for value in values:
            queue.judge(queue.next(expert), expert, "score", value)
        assert queue.next(expert) is None
    assert queue.agreement()["pairs"] == 4 and 0 < queue.agreement()["kappa"] < 1
    [id] = queue.disagreements()
    assert read_jsonl(path, ProofRecord)[2].score is None
    queue.judge(id, "Ada", "settle", 0.5)
    assert read_jsonl(path, ProofRecord)[2].score == 0.5 and not queue.disagreements()


def test_kappa_is_cohens():
    pairs = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    assert cohen_kappa(pairs) == pytest.approx(0.4)  # po 0.7, pe 0.5
    assert cohen_kappa([]) is None and cohen_kappa([(1, 1)]) is None


def test_bad_judgements_are_refused_in_one_line(tmp_path):
    _, path = waiting(tmp_path, 2)
    queue = Queue(path)
    for id, action, value in [("x", "score", 1), (queue.ids[0], "score", 0.7), (queue.ids[0], "explode", 1)]:
        with pytest.raises(InputError):
            queue.judge(id, "Ada", action, value)
    assert not queue.journal.exists()


def client(run, **options):
    pytest.importorskip("flask", reason="the judging page needs flask")
    from nanov2.pages.expert_page import make_app

    return make_app(run, **options).test_client()


def test_the_server_refuses_other_hosts_forms_and_wrong_tokens(tmp_path):
    run, _ = waiting(tmp_path, 2)
    web = client(run)
    assert web.get("/").status_code == 200
    assert web.get("/", headers={"Host": "evil.example"}).status_code == 403
    row = {"expert": "Ada", "action": "undo"}
    assert web.post("/api/judge", json=row).status_code == 403
    assert web.post("/api/judge", json=row, headers={"X-Nanov2-Judge": "1"}).status_code == 200
    assert web.get("/page/../../../pyproject.toml").status_code == 404
    locked = client(run, token="secret")
    assert locked.get("/").status_code == 401
    assert locked.get("/?token=wrong").status_code == 401
    assert locked.get("/?token=secret").status_code == 302 and locked.get("/").status_code == 200
    assert "default-src 'none'" in web.get("/").headers["Content-Security-Policy"]


def test_the_next_of_20000_items_comes_at_once(tmp_path):
    run = tmp_path / "run"
    path = run / "coldstart" / "proofs_to_score.jsonl"
    write_jsonl(path, [ProofRecord(f"problem {i}", "one\n\ntwo") for i in range(20_000)])
    web, times = client(run), []
    id = web.get("/api/next?expert=Ada").json["item"]["id"]
    for _ in range(30):
        begin = time.perf_counter()
        row = {"expert": "Ada", "action": "score", "value": 1, "id": id}
        id = web.post("/api/judge", json=row, headers={"X-Nanov2-Judge": "1"}).json["item"]["id"]
        times.append(time.perf_counter() - begin)
    print(f"median {1000 * statistics.median(times):.1f} ms")
    assert statistics.median(times) < 1.0  # far above what it takes: a machine under load is no fault


# In a browser


class Server:
    """`python -m nanov2 judge` in a process of its own, on a port that stays the same over restarts."""

    def __init__(self, run, *options):
        self.command = [sys.executable, "-m", "nanov2", "judge", str(run), *options]
        self.port = 0
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [*self.command, f"--port={self.port}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.address = self.process.stdout.readline().decode().strip()
        self.port = int(self.address.rsplit(":", 1)[1].split("/")[0])

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def serve():
    pytest.importorskip("flask", reason="the judging page needs flask")
    servers = []

    def start(run, *options):
        servers.append(Server(run, *options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


def visit(chromium, server, **options):  # noqa: F811
    """A page as Ada sees it; `page.outside` lists requests that left the machine."""
    page = chromium.new_context(**options).new_page()
    page.outside = []
    home = f"http://127.0.0.1:{server.port}/"
    page.on("request", lambda r: page.outside.append(r.url) if not r.url.startswith(home) else None)
    page.goto(server.address)
    if page.locator("#expert").input_value() == "":
        page.keyboard.type("Ada")
        page.keyboard.press("Enter")
    page.wait_for_selector("#item:not([hidden])")
    return page


def press(page, key):
    """A key, then the next item."""
    before = page.locator("#item").get_attribute("data-id")
    page.keyboard.press(key)
    page.wait_for_function(
        "id => document.getElementById('item').hidden || document.getElementById('item').dataset.id !== id",
        arg=before,
        timeout=20_000,
    )


def test_twenty_items_by_keyboard_over_a_reload_and_a_killed_server(tmp_path, chromium, serve):  # noqa: F811
    run, path = waiting(tmp_path, 20)
    server = serve(run)
    page = visit(chromium, server)
    keys = "015" * 6 + "01"
    for i, key in enumerate(keys):
        if i == 5:
            page.reload()
            page.wait_for_selector("#item:not([hidden])")
        if i == 10:
            server.kill()
            page.keyboard.press(key)
            page.wait_for_selector("#alert:not([hidden])")
            before = page.locator("#item").get_attribute("data-id")
            server.start()
            page.wait_for_function("id => document.getElementById('item').dataset.id !== id", arg=before)
            continue
        press(page, key)
    assert [r.score for r in read_jsonl(path, ProofRecord)] == [{"0": 0, "1": 1, "5": 0.5}[k] for k in keys]
    assert not page.outside


def test_undo_and_notes_by_keyboard(tmp_path, chromium, serve):  # noqa: F811
    run, path = waiting(tmp_path, 3)
    page = visit(chromium, serve(run))
    press(page, "0")
    press(page, "u")
    page.keyboard.press("n")
    page.keyboard.type("105 us")
    page.keyboard.press("Escape")
    press(page, "1")
    rows = [json.loads(line) for line in open(path.with_name("judgements.jsonl"))]
    assert [r["action"] for r in rows] == ["score", "undo", "score"]
    assert rows[-1]["note"] == "105 us" and rows[-1]["value"] == 1 and rows[0]["id"] == rows[2]["id"]


def test_hostile_proofs_are_shown_as_text_and_mathematics_is_set(tmp_path, chromium, serve):  # noqa: F811
    run, _ = waiting(tmp_path, 3, hostile=True)
    page = visit(chromium, serve(run))
    assert "<script>" in page.locator("#steps").inner_text()
    assert "<b>it</b>" in page.locator("#problem").inner_text()
    press(page, "0")
    assert page.locator("#steps a").count() == 0
    assert r"\frac{1}{" in page.locator("#steps").inner_text()
    press(page, "0")
    assert page.locator("#steps .katex").count() == 2 and page.locator("#steps li").count() == 2
    assert page.title() == "nanov2: judging" and not page.outside


def test_findings_of_critiques_are_confirmed_or_rejected_by_keyboard(tmp_path, chromium, serve):  # noqa: F811
    run, path = tmp_path / "run", tmp_path / "run" / "meta" / "critiques_to_score.jsonl"
    problem, proof = some_proofs(1)[0]
    write_jsonl(
        path, [CritiqueRecord(problem.text, proof, write_critique(examine(problem, parse_proof(proof))))]
    )
    page = visit(chromium, serve(run))
    assert page.locator("#claims li").count() == len(parse_proof(proof)) + 2  # its end and its strength
    assert " given " in page.locator("#claims li").first.inner_text()
    page.keyboard.press("c")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("x")
    press(page, "5")
    row = json.loads(open(path.with_name("judgements.jsonl")).readline())
    assert row["findings"][:2] == [True, False] and read_jsonl(path, CritiqueRecord)[0].quality == 0.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_no_serious_accessibility_finding(tmp_path, chromium, serve, scheme):  # noqa: F811
    run, _ = waiting(tmp_path, 3, hostile=True)
    page = visit(chromium, serve(run), color_scheme=scheme, bypass_csp=True)
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run()")["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


def test_a_flywheel_waits_for_the_expert_in_the_browser_and_goes_on(tmp_path, chromium, serve):  # noqa: F811
    """The smoke configuration, cut down, whose expert is a scripted browser, to the end of its cycle."""
    run = tmp_path / "run"
    run.mkdir()
    command = [sys.executable, "train.py", "--config=configs/smoke.toml", f"--dir={run}", "--expert=page"]
    command += ["--base.steps=240", "--grpo.steps=2", "--coldstart.problems=10", "--coldstart.subset=24"]
    command += ["--world.held_out=8", "--world.validation=6", "--autolabel.problems=4", "--laps=1"]
    with open(tmp_path / "log", "w") as log:
        cycle = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        page = chromium.new_page()
        page.goto(serve(run).address)
        page.keyboard.type("Ada")
        page.keyboard.press("Enter")
        scored = 0
        while cycle.poll() is None:
            if page.locator("#item:not([hidden])").count() == 0:
                time.sleep(0.2)
                continue
            problem = page.locator("#problem").inner_text()
            state = page.evaluate("[item.proof, item.critique]")
            press(page, truth_key(problem, *state))
            scored += 1
        assert cycle.returncode == 0, (tmp_path / "log").read_text()[-2000:]
        assert scored > 10 and (run / "report.html").is_file()
        dv = read_jsonl(run / "coldstart" / "dv.jsonl", ProofRecord)
        assert dv and all(r.label == "person" for r in dv)
    finally:
        cycle.kill()


def truth_key(problem, proof, critique):
    """The key that the exact expert would press."""
    known = parse_problem(problem)
    score = grade_critique(known, proof, critique).quality if critique else grade_proof(known, proof)
    return {0.0: "0", 0.5: "5", 1.0: "1"}[score]
