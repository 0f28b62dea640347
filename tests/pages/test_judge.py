"""The judging page: its journal, its server, and the page itself in a real Chromium."""

import http.client
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from browser import AXE, chromium  # noqa: F401
from conftest import some_proofs

from benchmarks.judging import look_through
from nanov2.domains.language import V_END, V_START
from nanov2.domains.order.world import (
    examine,
    grade_critique,
    grade_proof,
    parse_problem,
    parse_proof,
    write_critique,
)
from nanov2.errors import InputError
from nanov2.pages import judgements
from nanov2.pages.expert_page import claims, steps
from nanov2.pages.judgements import Late, Queue, cohen_kappa
from nanov2.records import CritiqueRecord, ProofRecord, read_jsonl, write_jsonl
from nanov2.run.config import Config

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
    of_the_world(folder / "run")
    return folder / "run", proofs


def of_the_world(run):
    """The page shows items as the domain of the run's settings cuts them."""
    (run / "config.json").write_text(json.dumps(Config().to_dict()))


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


def post(web, expert, id, value=1, **row):
    row = {"expert": expert, "action": "score", "value": value, "id": id} | row
    return web.post("/api/judge", json=row, headers={"X-Nanov2-Judge": "1"})


def following(web, expert):
    return web.get("/api/next", query_string={"expert": expert}).json["item"]


def journal(path):
    return [json.loads(line) for line in open(path.with_name("judgements.jsonl"))]


def test_different_experts_get_different_items_and_a_late_score_is_refused(tmp_path):
    run, path = waiting(tmp_path, 25)
    web = client(run)
    shown = {f"expert {i}": following(web, f"expert {i}")["id"] for i in range(20)}
    assert len(set(shown.values())) == 20
    assert following(web, "expert 3")["id"] == shown["expert 3"]  # a reload shows the same
    assert post(web, "expert 0", shown["expert 0"]).status_code == 200
    late = post(web, "expert 1", shown["expert 0"], 0)
    assert late.status_code == 409 and "expert 0" in late.json["error"]
    assert late.json["item"]["id"] == shown["expert 1"]
    assert len(journal(path)) == 1


def test_an_item_of_an_expert_who_went_away_is_offered_again(tmp_path):
    _, path = waiting(tmp_path, 1)
    queue = Queue(path, lease=0.05)
    id = queue.next("Ada")
    assert queue.next("Emmy") is None
    time.sleep(0.1)
    assert queue.next("Emmy") == id
    queue.judge(id, "Ada", "score", 1)  # she came back first
    with pytest.raises(Late):
        queue.judge(id, "Emmy", "score", 0)
    assert queue.final == {id: 1}


def test_two_experts_who_differ_are_shown_to_be_settled_whoever_comes(tmp_path):
    """Also where a journal of an earlier version holds two scores of an item that wanted one."""
    run, path = waiting(tmp_path, 1)
    id = Queue(path).ids[0]
    rows = [
        {"id": id, "expert": e, "action": "score", "value": v, "note": ""} for e, v in (("A", 0), ("B", 1))
    ]
    path.with_name("judgements.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    web = client(run)
    state = web.get("/api/next?expert=Zoe").json
    assert [d["id"] for d in state["disputed"]] == [id] and state["item"] is None
    assert post(web, "A", id, 0.5, action="settle").status_code == 200
    assert post(web, "B", id, 1, action="settle").status_code == 409
    assert [r.score for r in read_jsonl(path, ProofRecord)] == [0.5]


def test_a_judgement_that_is_sent_again_counts_once(tmp_path):
    run, path = waiting(tmp_path, 4)
    web = client(run)
    id = following(web, "Ada")["id"]
    for _ in range(3):
        assert post(web, "Ada", id, 0.5, request="a1").status_code == 200
    again = client(run)  # the server was killed before it answered
    assert post(again, "Ada", id, 0.5, request="a1").status_code == 200
    undo = {"expert": "Ada", "action": "undo", "id": id, "request": "a2"}
    for _ in range(2):
        assert again.post("/api/judge", json=undo, headers={"X-Nanov2-Judge": "1"}).status_code == 200
    assert [r["action"] for r in journal(path)] == ["score", "undo"]


@pytest.mark.parametrize(
    "kept", [0, 1, 40, -1]
)  # bytes of the line that a full disk still takes; -1: all but one
def test_a_full_disk_in_the_middle_of_a_line_loses_no_confirmed_judgement(tmp_path, monkeypatch, kept):
    _, path = waiting(tmp_path, 4)
    queue = Queue(path)
    queue.judge(queue.ids[0], "Ada", "score", 1)

    def full(path, row):
        with open(path, "a") as f:
            f.write(json.dumps(row)[: kept if kept >= 0 else None])
        raise InputError("no space left")

    with monkeypatch.context() as m:
        m.setattr(judgements, "append_line", full)
        with pytest.raises(InputError):
            queue.judge(queue.ids[1], "Ada", "score", 1)
    assert queue.ids[1] not in queue.final
    queue.judge(queue.ids[2], "Ada", "score", 0.5)
    again = Queue(path)
    assert again.final == queue.final == {queue.ids[0]: 1, queue.ids[2]: 0.5}
    again.judge(queue.ids[1], "Ada", "score", 0)
    assert len(Queue(path).final) == 3


def test_what_the_disk_took_of_a_refused_line_is_cut_off(tmp_path, monkeypatch):
    _, path = waiting(tmp_path, 2)
    queue = Queue(path)
    queue.judge(queue.ids[0], "Ada", "score", 1)
    before = queue.journal.read_bytes()

    def refuse(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(judgements.os, "fsync", refuse)
        with pytest.raises(InputError, match="not saved.*No space"):
            queue.judge(queue.ids[1], "Ada", "score", 1)
    assert queue.journal.read_bytes() == before


def test_lines_torn_anywhere_in_the_journal_are_skipped(tmp_path):
    _, path = waiting(tmp_path, 6)
    queue = Queue(path)
    for id in queue.ids[:5]:
        queue.judge(id, "Ada", "score", 1)
    lines = queue.journal.read_bytes().splitlines(keepends=True)
    spoilt = [
        lines[0][:30] + b"\n",
        lines[1],
        b"\xff\x00\n",
        b"[1, 2]\n",
        b'{"id": 3}\n',
        lines[3],
        lines[4][:-9],
    ]
    queue.journal.write_bytes(b"".join(spoilt))
    again = Queue(path)
    assert set(again.final) == {queue.ids[1], queue.ids[3]} and again.torn == 5


def test_first_requests_that_arrive_together_lose_no_judgement(tmp_path):
    run, path = waiting(tmp_path, 40)
    app = client(run).application
    ids = list(Queue(path).ids)[:39]
    with ThreadPoolExecutor(39) as pool:
        codes = list(pool.map(lambda id: post(app.test_client(), f"expert {id}", id).status_code, ids))
    assert codes == [200] * 39
    state = app.test_client().get("/api/next?expert=Zoe").json
    assert state["files"][0]["done"] == 39 and len(journal(path)) == 39


def test_scores_that_a_killed_server_did_not_deliver_are_delivered_at_start(tmp_path, monkeypatch):
    run, path = waiting(tmp_path, 3)
    queue = Queue(path)
    monkeypatch.setattr(queue, "deliver", lambda: None)  # killed before
    for id in queue.ids:
        queue.judge(id, "Ada", "score", 0.5)
    assert [r.score for r in read_jsonl(path, ProofRecord)] == [None] * 3
    client(run)
    assert [r.score for r in read_jsonl(path, ProofRecord)] == [0.5] * 3
    stamp = path.stat().st_mtime_ns
    client(run)
    assert path.stat().st_mtime_ns == stamp  # and once


def test_a_delivery_that_a_full_disk_refuses_is_told_and_tried_again(tmp_path, monkeypatch):
    run, path = waiting(tmp_path, 1)
    web = client(run)

    def full(*_):
        raise InputError("no space left")

    with monkeypatch.context() as m:
        m.setattr(judgements, "write_jsonl", full)
        answer = post(web, "Ada", following(web, "Ada")["id"])
        assert answer.status_code == 200 and answer.json["trouble"] == ["no space left"]
    assert web.get("/api/next?expert=Ada").json["trouble"] == []
    assert read_jsonl(path, ProofRecord)[0].score == 1


@pytest.mark.parametrize(
    "name", ["A\ud800da", "A\nda", "A\x1b[31m", "A\u202eda", "", " ", "A\u0000", 7, None, "x" * 61]
)
def test_names_that_could_spoil_a_label_are_refused(tmp_path, name):
    run, path = waiting(tmp_path, 1)
    web = client(run)
    answer = web.post(
        "/api/judge",
        data=json.dumps({"expert": name, "action": "score", "value": 1, "id": Queue(path).ids[0]}),
        headers={"X-Nanov2-Judge": "1", "Content-Type": "application/json"},
    )
    assert answer.status_code == 400 and read_jsonl(path, ProofRecord)[0].score is None


def test_notes_are_cleaned_and_half_characters_stop_no_delivery(tmp_path):
    run, path = waiting(tmp_path, 2)
    web = client(run)
    first, second = Queue(path).ids
    assert post(web, "Ada", first, note="half \ud800").status_code == 400
    assert post(web, "Ada", first, note="red \x1b[31m\u2028line\nnext").status_code == 200
    assert journal(path)[0]["note"] == "red  [31m line\nnext"
    with open(path.with_name("judgements.jsonl"), "a") as f:  # of an earlier version
        f.write(
            json.dumps({"id": second, "expert": "E\ud800", "action": "score", "value": 0, "note": "\ud800"})
            + "\n"
        )
    assert client(run).get("/api/next?expert=Ada").json["item"] is None
    assert [r.score for r in read_jsonl(path, ProofRecord)] == [1, 0]


@pytest.mark.parametrize("name", ["autolabel/unclear.jsonl", "coldstart/unscored_proofs.jsonl"])
def test_each_judgement_of_unclear_proofs_counts_at_once(tmp_path, name):
    run, _ = waiting(tmp_path, 1)
    path = run / name
    write_jsonl(path, [ProofRecord(f"problem {i}", "proof", label="unclear") for i in range(4)])
    web = client(run)
    ids = Queue(path).ids
    post(web, "Ada", ids[1], 0.5)
    assert [r.score for r in read_jsonl(path, ProofRecord)] == [None, 0.5, None, None]
    assert read_jsonl(path, ProofRecord)[1].label == "person (Ada: 0.5)"
    post(web, "Ada", ids[1], action="undo")
    assert [r.score for r in read_jsonl(path, ProofRecord)] == [None] * 4
    assert Queue(path).final == {}


def test_undo_takes_back_nothing_of_another_file_or_another_expert(tmp_path):
    run, path = waiting(tmp_path, 2)
    other = run / "meta" / "critiques_to_score.jsonl"
    write_jsonl(other, [CritiqueRecord("problem", "proof", f"critique {i}") for i in range(2)])
    web = client(run)
    for _ in range(2):
        post(web, "Ada", following(web, "Ada")["id"])
    assert following(web, "Ada")["critique"]  # the first file is done
    undo = {"expert": "Ada", "action": "undo"}
    for _ in range(2):
        assert web.post("/api/judge", json=undo, headers={"X-Nanov2-Judge": "1"}).status_code == 200
    assert [r.score for r in read_jsonl(path, ProofRecord)] == [1, 1]
    id = following(web, "Ada")["id"]
    post(web, "Ada", id, 0)
    assert post(web, "Emmy", id, action="undo").status_code == 409
    assert web.post("/api/judge", json=undo, headers={"X-Nanov2-Judge": "1"}).json["item"]["id"] == id
    post(web, "Ada", id, 1)
    assert following(web, "Ada")["id"] != id  # shown once again, not twice


def test_the_same_texts_in_two_files_are_two_items(tmp_path):
    run, path = waiting(tmp_path, 1)
    record = read_jsonl(path, ProofRecord)[0]
    twin = path.with_name("unclear.jsonl")
    write_jsonl(twin, [record, record])
    web = client(run)
    item = following(web, "Ada")
    post(web, "Ada", item["id"], 1, file=item["file"])
    twin_item = following(web, "Ada")
    assert twin_item["id"] == item["id"] and twin_item["file"] != item["file"]
    post(web, "Ada", item["id"], 0, file=twin_item["file"])
    assert read_jsonl(path, ProofRecord)[0].score == 1
    assert [r.score for r in read_jsonl(twin, ProofRecord)] == [0, 0]


def test_a_file_that_cannot_be_read_holds_up_no_other(tmp_path):
    run, _ = waiting(tmp_path, 1)
    (run / "meta").mkdir()
    (run / "meta" / "critiques_to_score.jsonl").write_text("{half")
    state = client(run).get("/api/next?expert=Ada").json
    assert state["item"] and "critiques_to_score.jsonl:1" in state["trouble"][0]


def test_items_are_listed_and_one_can_be_chosen(tmp_path):
    run, path = waiting(tmp_path, 3)
    web = client(run)
    first = following(web, "Ada")
    rows = web.get("/api/items?expert=Emmy").json
    assert [(r["number"], r["open"]) for r in rows] == [(1, False), (2, True), (3, True)]
    wanted = {"expert": "Emmy", "id": rows[2]["id"], "file": rows[2]["file"]}
    assert web.get("/api/next", query_string=wanted).json["item"]["id"] == rows[2]["id"]
    wanted["id"] = first["id"]  # is with Ada
    assert web.get("/api/next", query_string=wanted).json["item"]["id"] == rows[2]["id"]


def test_without_flask_one_line_says_how_to_install_it(tmp_path):
    """werkzeug alone may be there: TensorBoard brings it."""
    code = (
        "import sys, runpy; sys.modules['flask'] = None; import werkzeug; sys.argv = ['judge', '.'];"
        "runpy.run_module('nanov2.pages.expert_page', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == 'error: the judging page needs Flask: pip install -e ".[judge]"\n'


def test_two_servers_do_not_serve_one_folder_nor_one_inside_the_other(tmp_path, serve):
    run, _ = waiting(tmp_path, 1)
    first = serve(run)
    for folder in (run, tmp_path, run / "coldstart"):
        command = [sys.executable, "-m", "nanov2", "judge", str(folder), "--port=0"]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert second.returncode == 1 and "another judging page serves" in second.stderr
        assert second.stderr.count("\n") == 1
    first.kill()
    first.start()  # a killed server leaves no lock behind


@pytest.mark.parametrize(
    "begin", [b"GET / HT", b"POST /api/judge HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n"]
)
def test_a_request_that_never_ends_is_ended(tmp_path, begin):
    pytest.importorskip("flask", reason="the judging page needs flask")
    from nanov2.pages.expert_page import make_app, make_server

    server = make_server(make_app(waiting(tmp_path, 1)[0]), "127.0.0.1", 0, seconds=0.5)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as s:
            s.settimeout(10)
            s.sendall(begin)
            start = time.monotonic()
            for _ in range(100):  # a byte now and then does not keep it alive
                time.sleep(0.1)
                try:
                    s.sendall(b"x")
                    s.setblocking(False)
                    ended = s.recv(1) == b"" or True
                except BlockingIOError:
                    ended = False
                except OSError:
                    ended = True
                if ended:
                    break
            assert ended and time.monotonic() - start < 5
        while any(t.name.startswith("Thread") and "process_request" in t.name for t in threading.enumerate()):
            assert time.monotonic() - start < 10
            time.sleep(0.05)
    finally:
        server.shutdown()


JUDGEMENTS = int(os.environ.get("NANOV2_JUDGEMENTS", 120))
KILLS = int(os.environ.get("NANOV2_KILLS", 2))


class Expert(threading.Thread):
    """A client that scores whatever it is shown, and sends a judgement again until it is answered."""

    def __init__(self, number, server):
        super().__init__(daemon=True)
        self.number, self.server, self.confirmed, self.late = f"expert {number}", server, {}, 0
        self.rng = random.Random(number)

    def call(self, path, row=None):
        while True:
            request = urllib.request.Request(f"http://127.0.0.1:{self.server.port}{path}")
            if row:
                request = urllib.request.Request(
                    request.full_url,
                    json.dumps(row).encode(),
                    {"Content-Type": "application/json", "X-Nanov2-Judge": "1"},
                )
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as e:
                return e.code, json.load(e)
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(0.05)  # killed: it comes back

    def run(self):
        who = urllib.parse.quote(self.number)
        _, state = self.call(f"/api/next?expert={who}")
        while any(f["done"] < f["all"] for f in state["files"]):
            row = {"expert": self.number, "request": f"{self.rng.getrandbits(64):x}"}
            if state["item"]:
                row |= {"id": state["item"]["id"], "action": "score", "value": self.rng.choice([0, 0.5, 1])}
            elif state["disputed"]:
                row |= {"id": self.rng.choice(state["disputed"])["id"], "action": "settle", "value": 0.5}
            else:
                time.sleep(0.05)
                _, state = self.call(f"/api/next?expert={who}")
                continue
            status, state = self.call("/api/judge", row)
            if status == 200:
                self.confirmed[row["request"]] = row
            else:
                assert status == 409, state
                self.late += 1


def test_many_clients_and_a_server_killed_again_and_again_lose_and_double_nothing(tmp_path, serve):
    """NANOV2_JUDGEMENTS=1000 NANOV2_KILLS=10 for the figures of docs/reliability.md."""
    run, path = tmp_path / "run", tmp_path / "run" / "coldstart" / "proofs_to_score.jsonl"
    write_jsonl(path, [ProofRecord(f"problem {i}", "one\n\ntwo") for i in range(int(JUDGEMENTS / 1.25))])
    server = serve(run, "--double=0.25")
    experts = [Expert(i, server) for i in range(20)]
    for expert in experts:
        expert.start()
    done = 0
    for kill in range(KILLS):
        while done < JUDGEMENTS * (kill + 0.5) / KILLS * 0.9 and any(e.is_alive() for e in experts):
            time.sleep(0.01)
            done = sum(len(e.confirmed) for e in experts)
        server.kill()
        server.start()
    for expert in experts:
        expert.join(120)
        assert not expert.is_alive(), "an item is in limbo"
    rows = journal(path)
    said = {r["request"]: (r["expert"], r["id"], r["value"]) for r in rows}
    assert len(said) == len(rows)  # none doubled
    confirmed = {k: (r["expert"], r["id"], r["value"]) for e in experts for k, r in e.confirmed.items()}
    assert confirmed == said  # none lost
    queue = Queue(path, 0.25)
    scores = Counter(r["id"] for r in rows if r["action"] == "score")
    assert all(scores[i] == queue.items[i].need for i in queue.ids) and len(queue.final) == len(queue.ids)
    assert [r.score for r in read_jsonl(path, ProofRecord)] == [queue.final[i] for i in queue.ids]
    late = sum(e.late for e in experts)
    print(f"{len(rows)} judgements of {len(queue.ids)} items, {KILLS} kills, {late} late ones refused")


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
    of_the_world(run)
    page = visit(chromium, serve(run))
    assert page.locator("#claims li").count() == len(parse_proof(proof)) + 2  # its end and its strength
    assert "given" in page.locator("#claims li").first.inner_text()
    page.keyboard.press("c")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("x")
    press(page, "5")
    row = json.loads(open(path.with_name("judgements.jsonl")).readline())
    assert row["findings"][:2] == [True, False] and read_jsonl(path, CritiqueRecord)[0].quality == 0.5


def test_steps_end_after_displays_and_never_cut_a_formula():
    text = "### Step 1\n\nWe get\n\n\\[\na = b\n\n+ c\n\\]\n\nwhere $c > 0$.\n\n---\n\n"
    text += "Hence\n$$d$$\nThen e.\n\nSo f."
    assert steps(text) == [
        "### Step 1\n\nWe get\n\n\\[\na = b\n\n+ c\n\\]\n\nwhere $c > 0$.",
        "Hence\n$$d$$",
        "Then e.",
        "So f.",
    ]
    assert steps("Consider\n\n```\na\n\nb\n```\n\nDone.") == ["Consider\n\n```\na\n\nb\n```", "Done."]
    assert (
        steps("one\ntwo") == ["one", "two"]
        and steps("") == []
        and steps("\\[ open\n\nso") == ["\\[ open", "so"]
    )


def test_no_word_of_a_real_proof_is_lost_in_its_steps():
    for name in ("sample", "short"):
        for line in open(ROOT / f"tests/data/open-proof-corpus-{name}.jsonl", encoding="utf-8"):
            proof = json.loads(line)["proof"]
            kept = re.sub(r"^\s*([-*_])\s*(\1\s*){2,}$", "", proof, flags=re.M)  # rules alone are left out
            assert "".join("".join(steps(proof)).split()) == "".join(kept.split())


def test_a_preamble_is_no_finding_nor_is_the_score():
    listed = f"{V_START}\n\nThe proof has two issues:\n\n1. First.\n   More of it.\n\n   \\[ x \\]\n\n"
    listed += f"2. Second.\n\n{V_END}\n\\boxed{{0.5}}"
    assert claims(listed) == ["First.\n   More of it.\n\n\\[ x \\]", "Second."]
    assert claims(f"{V_START}\nStep 2 is not justified.\n\nStep 3 is wrong.\n\n{V_END}\n\\boxed{{0}}") == [
        "Step 2 is not justified.",
        "Step 3 is wrong.",
    ]
    assert claims(f"{V_START}\n\nThere is one issue:\n\nThe end is missing.") == ["The end is missing."]
    assert claims("Only this: it is wrong.") == ["Only this: it is wrong."]


@pytest.mark.parametrize(
    "part", ["\\[", "$$", "$ {", "\\begin{align}", "\n", " \n", "- ", "```\n", "# ", "\ue0000\ue001"]
)
def test_long_texts_do_not_hang_the_cutting_into_steps(part):
    begin = time.perf_counter()
    steps(part * 100_000), claims(part * 100_000)
    assert time.perf_counter() - begin < 10


def test_real_proofs_are_shown_whole_on_a_phone(tmp_path, chromium, serve):  # noqa: F811
    """No refusal by the policy, no text outside its card, no formula that differs from KaTeX's own."""
    rows = [
        json.loads(line)
        for line in open(ROOT / "tests/data/open-proof-corpus-sample.jsonl", encoding="utf-8")
    ]
    hard = r"Let $x \in \{a \text{ where } a > 0\}$ and $\text{if $y$ holds}$. Then" + "\n"
    hard += (
        r"\[ \pmb{x} = \fcolorbox{red}{white}{$y$} \underbrace{"
        + "a + " * 60
        + r"b}_{\text{a long sum}} \tag{1} \]"
    )
    hard += (
        "\n"
        + "word" * 100
        + " `"
        + "code" * 50
        + "` $"
        + "x" * 300
        + "$ trailing"
        + "\u3000" * 40
        + "(2)"
        + " " * 300
    )
    records = [ProofRecord("Show it.", hard), *(ProofRecord(r["problem"], r["proof"]) for r in rows)]
    run = tmp_path / "run"
    write_jsonl(run / "coldstart" / "proofs_to_score.jsonl", records)
    assert look_through(chromium, serve(run).address, len(records)) == []


FREEZERS = [
    "$" + "x^{2}+" * 15_000 + "y$",  # 90,000 characters
    "\\[" + "{" * 2400 + "x" + "}" * 2400 + "\\]",
    "$" + r"\frac{1}{" * 500 + "x" + "}" * 500 + "$",
    "$" + r"\left(" * 700 + "x" + r"\right)" * 700 + "$",
    "$" + r"\mathchoice{x}{x}{x}{" * 200 + "x" + "}" * 200 + "$",
    r"$\def\a{\a\a}\a$",
    "$ {" * 20_000,
    "**_" * 20_000,
    "- " * 20_000,
    "\n".join("  " * i + "- x" for i in range(300)),
    "`" * 50_000,
    ("$" + "x+" * 2400 + "y$ ") * 40,
]


@pytest.mark.parametrize("text", FREEZERS, ids=lambda t: t[:12])
def test_no_text_freezes_the_page(tmp_path, chromium, serve, text):  # noqa: F811
    run = tmp_path / "run"
    write_jsonl(run / "coldstart" / "proofs_to_score.jsonl", [ProofRecord("Show it.", text)])
    begin = time.perf_counter()
    page = visit(chromium, serve(run))
    page.keyboard.press("1")
    page.wait_for_selector("#empty:not([hidden])")
    print(f"{time.perf_counter() - begin:.1f} s")
    assert time.perf_counter() - begin < 30  # a new server and a loaded machine included


def test_markdown_is_shown_and_its_signs_are_not(tmp_path, chromium, serve):  # noqa: F811
    proof = "# A *good* proof\n\nFirst **bold $a_1$** and `co*de*`, 2*3*4 and snake_case_name.\n\n"
    proof += "1. one\n   - inner\n2. two"
    run = tmp_path / "run"
    write_jsonl(run / "coldstart" / "proofs_to_score.jsonl", [ProofRecord("Show <i>it</i>.", proof)])
    page = visit(chromium, serve(run))
    at = page.locator("#steps")
    assert at.locator("em").all_inner_texts() == ["good"] and at.locator("code").all_inner_texts() == [
        "co*de*"
    ]
    assert at.locator("strong .katex").count() == 1 and at.locator("ol li ul li").all_inner_texts() == [
        "inner"
    ]
    assert "2*3*4 and snake_case_name" in at.inner_text() and "#" not in at.inner_text()


def test_facts_stand_one_a_line_with_those_used_marked(tmp_path, chromium, serve):  # noqa: F811
    run, path = waiting(tmp_path, 1)
    page = visit(chromium, serve(run))
    record = read_jsonl(path, ProofRecord)[0]
    problem = parse_problem(record.problem)
    assert page.locator("#problem li").count() == len(problem.facts)
    pairs = {(s.left, s.right) for s in parse_proof(record.proof)}
    used = [" ".join(f) for f in problem.facts if (f.left, f.right) in pairs]
    assert page.locator("#problem mark annotation").all_text_contents() == used


def test_keys_are_told_items_are_listed_and_time_is_kept(tmp_path, chromium, serve):  # noqa: F811
    run, path = waiting(tmp_path, 3)
    page = visit(chromium, serve(run))
    page.keyboard.press("?")
    assert "confirm, reject the finding" in page.locator("dialog[open]").inner_text()
    page.keyboard.press("1")  # no score while a dialog is open
    page.keyboard.press("Escape")
    page.keyboard.press("l")
    page.wait_for_selector("#list[open]")
    page.locator("#items button").nth(2).click()
    page.locator("#number", has_text="3 of 3").wait_for()
    press(page, "1")
    [row] = journal(path)
    assert row["id"] == Queue(path).ids[2] and 0 <= row["seconds"] < 60
    assert "s each" in page.locator("#progress").inner_text()


def test_whoever_comes_late_sees_the_next_item_and_differences_can_be_settled(tmp_path, chromium, serve):  # noqa: F811
    run, path = waiting(tmp_path, 2)
    server = serve(run, "--double=1")
    ada = visit(chromium, server)
    id = ada.locator("#item").get_attribute("data-id")
    for name, value in (("Emmy", 0), ("Zoe", 0.5)):  # both before Ada, who still has it in view
        row = {"expert": name, "action": "score", "id": id, "value": value}
        request = urllib.request.Request(
            f"{server.address}api/judge",
            json.dumps(row).encode(),
            {"Content-Type": "application/json", "X-Nanov2-Judge": "1"},
        )
        urllib.request.urlopen(request).close()
    press(ada, "1")
    assert "judged by Emmy, Zoe before" in ada.locator("#alert").inner_text()
    ada.locator("#disputed button", has_text="0.5").click()
    ada.wait_for_selector("#disputes", state="hidden")
    assert Queue(path, 1.0).final == {id: 0.5}


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
            state = page.evaluate("[item.problem, item.proof, item.critique]")
            press(page, truth_key(*state))
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
