"""A local page on which experts score proofs and critiques.

    python -m nanov2 judge runs/proofworld                        # then open the address that it prints
    python -m nanov2 judge runs/proofworld --double=0.2           # a fifth of the items goes to two experts
    python -m nanov2 judge runs/proofworld --host=0.0.0.0 --token=SECRET     # experts on other machines

Keys: 0, 5, 1 score (0, 0.5, 1) · u undo · s skip · n note · arrows, then c or x, confirm or reject a
finding · l the list of items · ? the keys. Different experts are shown different items. Nothing on the page
comes from, or goes to, another machine. Judgements are on disk before the next item shows (judgements.py); a
phase with `--expert=page` goes on by itself once all are given.
"""

from __future__ import annotations

import argparse
import hmac
import io
import logging
import re
import secrets
import socket
import sys
import threading
import time
from itertools import zip_longest
from pathlib import Path

from filelock import FileLock, Timeout

from nanov2.domains.domain import Domain, View, open_domain
from nanov2.domains.language import RUBRIC_MV, RUBRIC_V, V_END, V_START
from nanov2.errors import InputError
from nanov2.pages.judgements import LEASE, Late, Queue, clean_name, file_stamp, waiting_files
from nanov2.records import CritiqueRecord, ProofRecord, is_text
from nanov2.run.cli import Parser
from nanov2.run.config import load_config

PAGE = Path(__file__).parent / "judge_page"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LISTED = 300  # items of a file in the page's list
HEADERS = {
    # KaTeX sets a few style attributes (for \\pmb, \\fcolorbox); under this policy they can load nothing.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "style-src-attr 'unsafe-inline'; font-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


# --- an item as the page shows it -----------------------------------------------------------------


def domain_of(run: Path) -> Domain | None:
    """The domain of a run folder; None where there is none, or it cannot be had here: items are prose."""
    try:
        return open_domain(load_config(run / "config.json")) if (run / "config.json").is_file() else None
    except InputError as e:
        print(f"items are shown as prose: {e}", file=sys.stderr)
        return None


def view(record: ProofRecord | CritiqueRecord, domain: Domain | None = None) -> dict:
    """The parts of an item, as its domain cuts them, else as prose. All of it is text; the page never treats
    it as HTML."""
    shown, critique = domain.view(record) if domain else View(), getattr(record, "critique", None)
    read = [text for _, text, _ in shown.findings]
    return {
        "problem": record.problem,
        "opening": shown.opening or None,
        "facts": [{"text": f, "used": u} for f, u in zip_longest(shown.facts, shown.used, fillvalue=False)],
        "goal": shown.goal or None,
        "proof": record.proof,
        "steps": list(shown.steps) or steps(record.proof),
        "critique": critique,
        "claims": read or (claims(critique) if critique is not None else []),
        "rubric": (shown.rubric or (RUBRIC_V if critique is None else RUBRIC_MV)).replace("\n  ", " "),
    }


BLANK_LINE = re.compile(r"\n[ \t]*\n\s*")
RULE = re.compile(r"[ \t]*([-*_])[ \t]*(?:\1[ \t]*){2,}")
HEADING = re.compile(r"#{1,6}[ \t][^\n]*")
LIST_ITEM = re.compile(r"^ {0,3}(?:[-*+•]|\d{1,3}[.)])[ \t]+", re.M)
DELIMITER = re.compile(r"\$\$|\\[\[\]]|\\(?:begin|end)\{[A-Za-z]{1,20}\*?\}|^```", re.M)


def displays(text: str) -> list[tuple[int, int]]:
    """Where displayed formulas and blocks of code begin and end, in one pass over the text."""
    spans, begin, closing = [], 0, None
    for m in DELIMITER.finditer(text):
        if closing is None:
            begin = m.start()
            closing = {"\\[": "\\]", "\\]": None}.get(m[0], m[0].replace("\\begin", "\\end"))
            if m[0].startswith("\\end"):
                closing = None
        elif m[0] == closing:
            spans.append((begin, m.end()))
            closing = None
    return spans


def steps(text: str) -> list[str]:
    """A proof in numbered steps: its paragraphs.

    A paragraph ends at a blank line, or after a displayed formula where a new sentence begins. A formula is
    never cut, and goes with the words that lead to it, as a heading goes with the words that follow it.
    """
    text = re.sub("[\ue000\ue001]", "\ufffd", text)
    spans, bare, at = displays(text), [], 0
    for n, (begin, end) in enumerate(spans):
        bare += [text[at:begin], f"\ue000{n}\ue001"]
        at = end
    marked = "".join([*bare, text[at:]])
    marked = re.sub(r"(\ue001[.,;:]?)[ \t]*\n\s*(?=[A-Z*#\d])", r"\1\n\n", marked)
    parts, heading = [], ""
    for part in BLANK_LINE.split(marked.strip("\n")):
        part = part.rstrip()
        if not part.strip() or RULE.fullmatch(part):
            continue
        if HEADING.fullmatch(part):
            heading += part + "\n\n"
            continue
        goes_on = parts and parts[-1].rstrip(".,;: ").endswith("\ue001") and part.lstrip()[0].islower()
        if parts and not heading and (goes_on or part.lstrip()[0] == "\ue000"):
            parts[-1] += "\n\n" + part
        else:
            parts.append(heading + part)
            heading = ""
    if heading:
        parts.append(heading.rstrip())
    if len(parts) == 1 and not spans and all(line.count("$") % 2 == 0 for line in parts[0].splitlines()):
        parts = [line for line in parts[0].splitlines() if line.strip()]
    return [re.sub(r"\ue000(\d+)\ue001", lambda m: text[slice(*spans[int(m[1])])], part) for part in parts]


def claims(text: str) -> list[str]:
    """What a critique claims to be wrong or right, one entry each to confirm or reject: the items of its
    list, else its paragraphs, without what leads to them or gives the score."""
    body = text.partition(V_START)[2] or text
    body = body.partition(V_END)[0].strip("*_# \t\n")
    entries = []  # (whether it is an item of a list, its text)
    for part in steps(body):
        if "\\boxed" in part or HEADING.fullmatch(part.strip()):
            continue
        starts = [m.start() for m in LIST_ITEM.finditer(part)]
        for begin, end in zip([0, *starts], [*starts, len(part)], strict=True):
            if not part[begin:end].strip():
                continue
            if part[begin].isspace() and begin not in starts and entries and entries[-1][0]:
                entries[-1] = (True, entries[-1][1] + "\n\n" + part[begin:end].rstrip())  # the item goes on
            else:
                entries.append((begin in starts, part[begin:end].rstrip()))
    first = next((n for n, (listed, _) in enumerate(entries) if listed), 0)
    lead = max(first - 1, 0)  # the paragraph before the list, or the first one
    leads = entries and not entries[lead][0] and (first == 1 or entries[lead][1].rstrip("*_ ").endswith(":"))
    if leads and len(entries) > 1:
        del entries[lead]
    return [LIST_ITEM.sub("", entry, count=1) if listed else entry for listed, entry in entries]


class Desk:
    """All waiting files of a run, one Queue each, built once and read again when a phase writes the file.

    Its folders are locked: of two servers, one serves a folder. Methods may be called from several threads.
    """

    def __init__(self, run: Path, double: float = 0.0, lease: float = LEASE):
        if not run.is_dir():
            raise InputError(f"{run} is no folder: give the folder of a run")
        self.run, self.double, self.lease, self.domain = run, double, lease, domain_of(run)
        self.lock = threading.RLock()
        self.locks: list[FileLock] = []
        self.queues: dict[Path, Queue] = {}
        self.trouble: dict[Path, str] = {}  # why a file is not served
        self._claim(run)
        for folder in {path.parent for path in waiting_files(run)}:
            self._claim(folder)
        self.files()  # scores of a server that was killed before it delivered them go to the run now

    def _claim(self, folder: Path) -> None:
        """Lock a folder for as long as this desk lives; InputError where another process has it."""
        lock = FileLock(folder.resolve() / ".judging.lock", timeout=0, is_singleton=True)
        try:
            lock.acquire()
        except Timeout as e:
            raise InputError(f"another judging page serves {folder}: use that one, or stop it first") from e
        except OSError as e:
            raise InputError(f"cannot write in {folder} ({e.strerror}): judgements are kept there") from e
        self.locks.append(lock)

    def files(self) -> list[Queue]:
        with self.lock:
            out, self.trouble = [], {}
            for path in waiting_files(self.run):
                try:
                    out.append(self._queue(path))
                except InputError as e:  # half-written, or with another server: the others go on
                    self.trouble[path] = str(e)
            return out

    def _queue(self, path: Path) -> Queue:
        known = self.queues.get(path)
        if known is None:
            self._claim(path.parent)
        elif known.stamp == file_stamp(path):
            known.deliver()  # what a full disk refused
            return known
        queue = Queue(path, self.double, self.lease)
        if known is not None:
            queue.take_over(known)
        self.queues[path] = queue
        return queue

    def find(self, id: str, file: str | None, expert: str) -> Queue:
        """The queue of an item. The same texts may wait in two files: `file` says which is meant."""
        found = [q for q in self.files() if id in q.records and file in (None, self.name(q))]
        if not found:
            raise Late(f"no item {id:.40} waits: here is the next")
        return next((q for q in found if q.held.get(expert) == id), found[0])

    def name(self, queue: Queue) -> str:
        return queue.path.relative_to(self.run).as_posix()

    def judge(self, expert: str, row: dict) -> None:
        """One action of an expert, as the page sends it. InputError (Late) where it is not taken."""
        with self.lock:
            id, file = row.get("id") or "", row.get("file")
            if row.get("action") == "undo" and not id:  # of the file that she is at
                queue = self.current(expert)
                id = queue.last(expert) if queue else None
                if id is None:
                    return
            else:
                queue = self.find(id, file, expert)
            about = {k: row.get(k) for k in ("value", "findings", "seconds", "request")}
            queue.judge(id, expert, row.get("action"), note=row.get("note") or "", **about)

    def current(self, expert: str) -> Queue | None:
        """The queue whose item this expert has before her, else that of her last judgement."""
        queues = self.files()
        held = next((q for q in queues if expert in q.held), None)
        return held or max(queues, key=lambda q: q.last_time(expert), default=None)

    def state(self, expert: str, wanted: tuple[str, str] | None = None) -> dict:
        """What the page shows: an expert's next item, or `wanted` (file, id); progress; what is disputed."""
        with self.lock:
            queues = self.files()
            item = self._next(queues, expert, wanted)
            current = self.current(expert)
            undo = current.last(expert) if current else None
            disputed = [(q, i) for q in queues for i in q.disagreements()]
            trouble = [*self.trouble.values(), *(q.trouble for q in queues if q.trouble)]
            return {
                "item": self.show(*item) if item else None,
                "files": [{"name": self.name(q)} | q.progress() for q in queues],
                "agreement": [q.agreement() for q in queues],
                "disputed": [self.show(q, i) for q, i in disputed[:20]],
                "disputes": len(disputed),
                "elsewhere": sum(len(q.open) for q in queues),  # open, but not to this expert now
                "undo": {"id": undo, "file": self.name(current)} if undo else None,
                "trouble": trouble,
            }

    def _next(self, queues: list[Queue], expert: str, wanted: tuple[str, str] | None):
        def first(queue: Queue) -> int:  # the wanted item's file, then that of the item before her
            return 0 if wanted and self.name(queue) == wanted[0] else 1 if expert in queue.held else 2

        queues = sorted(queues, key=first)
        for again in (False, True):  # what she skipped comes last of all files
            for queue in queues:
                named = wanted[1] if wanted and first(queue) == 0 else None
                if id := queue.next(expert, named, again or named is not None):
                    for other in queues:
                        if other is not queue:
                            other.release(expert)
                    return queue, id
        return None

    def show(self, queue: Queue, id: str) -> dict:
        item = queue.items[id]
        return view(queue.records[id], self.domain) | {
            "id": id,
            "file": self.name(queue),
            "number": queue.ids.index(id) + 1,
            "votes": [{"expert": e, "value": v["value"], "note": v["note"]} for e, v in item.votes.items()],
        }

    def items(self, expert: str) -> list[dict]:
        """A line for each item: at most LISTED of a file, around the one before this expert."""
        out = []
        for queue in self.files():
            with queue.lock:
                at = queue.ids.index(queue.held[expert]) if expert in queue.held else 0
                begin = max(0, min(at - LISTED // 2, len(queue.ids) - LISTED))
                for n, id in enumerate(queue.ids[begin : begin + LISTED], begin + 1):
                    item = queue.items[id]
                    own = item.votes.get(expert)
                    out.append(
                        {
                            "file": self.name(queue),
                            "id": id,
                            "number": n,
                            "title": " ".join(queue.records[id].problem.split())[:80],
                            "state": item.state,
                            "open": item.open_to(expert, time.monotonic()),
                            "skipped": id in queue.skipped.get(expert, {}),
                            "own": own["value"] if own else None,
                        }
                    )
        return out


def make_app(run: Path, double: float = 0.0, token: str = "", hosts: tuple[str, ...] = LOOPBACK, lease=LEASE):
    """The web application. `token`: asked for at the first visit where it is set."""
    from flask import Flask, abort, jsonify, redirect, request, send_from_directory

    app, desk = Flask(__name__, static_folder=None), Desk(run, double, lease)
    app.config["MAX_CONTENT_LENGTH"] = 1 << 20

    @app.before_request
    def guard():
        host = request.host.rsplit(":", 1)[0].strip("[]")
        if not token and host not in hosts:  # another site's name that resolves to this machine
            abort(403, f"this page answers to {', '.join(hosts)}, not to {host}")
        if token:
            shown = request.args.get("token") or request.cookies.get("nanov2_token") or ""
            if not hmac.compare_digest(shown.encode(errors="replace"), token.encode()):
                abort(401, "open the address with ?token=… that the program printed")
        if request.method == "POST" and request.headers.get("X-Nanov2-Judge") != "1":
            abort(403, "not from this page")  # a form of another site cannot set the header

    @app.after_request
    def harden(response):
        response.headers.update(HEADERS)
        return response

    @app.errorhandler(InputError)
    def refuse(error):
        return jsonify({"error": str(error)}), 400

    @app.errorhandler(TimeoutError)
    def hurry(error):
        return jsonify({"error": "the request did not end in time"}), 408

    @app.get("/")
    def page():
        if token and "token" in request.args:  # out of the address bar and the history
            response = redirect("/")
            response.set_cookie("nanov2_token", token, httponly=True, samesite="Strict")
            return response
        return send_from_directory(PAGE, "judge.html")

    @app.get("/page/<path:name>")
    def file(name):
        return send_from_directory(PAGE, name)

    @app.get("/api/next")
    def upcoming():
        wanted = (request.args.get("file", ""), request.args["id"]) if "id" in request.args else None
        return jsonify(desk.state(clean_name(request.args.get("expert")), wanted))

    @app.get("/api/items")
    def items():
        return jsonify(desk.items(clean_name(request.args.get("expert"))))

    @app.post("/api/judge")
    def judge():
        row = request.get_json()
        check_request(row)
        expert = clean_name(row.get("expert"))
        try:
            desk.judge(expert, row)
        except Late as e:
            return jsonify({"error": str(e), **desk.state(expert)}), 409
        return jsonify(desk.state(expert))

    return app


def check_request(row: object) -> None:
    """InputError where what was sent is not as the page sends it."""
    if not isinstance(row, dict):
        raise InputError("expected a JSON object")
    if not all(
        is_text(row.get(k) or "") and len(row.get(k) or "") <= 5000 for k in ("id", "file", "request")
    ):
        raise InputError("id, file and request must be text")
    findings = row.get("findings")
    right = isinstance(findings, list) and all(f is None or isinstance(f, bool) for f in findings)
    if findings is not None and not (right and len(findings) <= 10_000):
        raise InputError("findings must be a list of true, false and null")


class Deadline(io.RawIOBase):
    """What a socket receives until `end`; TimeoutError then, however slowly bytes still come."""

    def __init__(self, socket):
        self.socket, self.end = socket, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request did not end in time")
        self.socket.settimeout(left)
        return self.socket.recv_into(buffer)


def make_server(app, host: str, port: int, seconds: float = 30.0):
    """A server of threads, each of which ends a request, or waits for the next, for at most `seconds`."""
    from werkzeug.serving import WSGIRequestHandler
    from werkzeug.serving import make_server as make

    class Handler(WSGIRequestHandler):
        def setup(self):
            super().setup()
            self.incoming = Deadline(self.connection)
            self.rfile = io.BufferedReader(self.incoming)

        def handle_one_request(self):
            self.incoming.end = time.monotonic() + seconds
            super().handle_one_request()

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listening:
        return make(host, port, app, threaded=True, request_handler=Handler, fd=listening.fileno())


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument(
        "--token", default="", help="what experts must show; made up for a host that others reach"
    )
    parser.add_argument("--double", type=float, default=0.0, help="share of items that two experts score")
    try:
        args = parser.parse_args()
    except InputError as e:
        sys.exit(f"error: {e}")
    token = args.token or ("" if args.host in LOOPBACK else secrets.token_urlsafe(16))
    try:
        import flask  # noqa: F401  (werkzeug alone may be there for TensorBoard)
    except ImportError:
        sys.exit('error: the judging page needs Flask: pip install -e ".[judge]"')
    try:
        if not 0 <= args.double <= 1:
            raise InputError(f"--double is a share from 0 to 1, found {args.double}")
        server = make_server(make_app(args.run, args.double, token), args.host, args.port)
    except InputError as e:
        sys.exit(f"error: {e}")
    except (OSError, OverflowError) as e:
        sys.exit(f"error: cannot listen on {args.host}:{args.port} ({e}): choose another --port")
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # no line for every key
    print(f"http://{args.host}:{server.port}/" + (f"?token={token}" if token else ""), flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
