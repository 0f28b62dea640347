"""A local page on which experts score proofs and critiques.

    python -m nanov2 judge runs/proofworld                        # then open the address that it prints
    python -m nanov2 judge runs/proofworld --double=0.2           # a fifth of the items goes to two experts
    python -m nanov2 judge runs/proofworld --host=0.0.0.0 --token=SECRET     # experts on other machines

Keys: 0, 5, 1 score (0, 0.5, 1) · u undo · s skip · n note · arrows, then c or x, confirm or reject a finding.
Nothing on the page comes from, or goes to, another machine. Judgements are on disk before the next item
shows (judgements.py); a phase with `--expert=page` goes on by itself once all are given.
"""

from __future__ import annotations

import argparse
import hmac
import logging
import re
import secrets
import sys
from pathlib import Path

from nanov2.domains.language import RUBRIC_MV, RUBRIC_V
from nanov2.domains.order.world import parse_critique, parse_problem, parse_proof
from nanov2.errors import InputError
from nanov2.pages.judgements import Queue, item_id, waiting_files
from nanov2.records import read_jsonl

PAGE = Path(__file__).parent / "judge_page"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
WORLD_RUBRIC = {
    "score": "1: every step is a given fact and the chain proves the goal.\n0.5: one slip: a pair given with "
    "another relation, or a chain too weak for the goal.\n0: a pair not given, a wrong end, two slips.",
    "quality": "1: every finding is right, and the score follows from them.\n"
    "0.5: one finding is wrong, invented or missed, and the score is right all the same.\n"
    "0: anything else.",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def steps(text: str) -> list[str]:
    """A proof in numbered steps: the world's pairs, else paragraphs, else lines."""
    if chain := parse_proof(text):
        return [" ".join(step) for step in chain]
    parts = [p.strip() for p in re.split(r"\n\s*\n", text) if p.strip()]
    return parts if len(parts) > 1 else [p for p in text.splitlines() if p.strip()]


def claims(text: str) -> list[str]:
    """What a critique claims to be wrong or right, one entry each to confirm or reject."""
    if critique := parse_critique(text):
        given = [f"{' '.join(f.step)}: given {f.relation}, {f.verdict}" for f in critique.findings]
        return [*given, f"the chain's end: {critique.ends}", f"the chain's strength: {critique.strict}"]
    return [p for p in steps(text) if "\\boxed" not in p]


def view(queue: Queue, id: str) -> dict:
    """An item as the page shows it. All of it is text; the page never treats it as HTML."""
    record = queue.records[id]
    critique = getattr(record, "critique", None)
    natural = parse_problem(record.problem) is None
    rubric = {"score": RUBRIC_V, "quality": RUBRIC_MV} if natural else WORLD_RUBRIC
    return {
        "id": id,
        "problem": record.problem,
        "proof": record.proof,
        "steps": steps(record.proof),
        "critique": critique,
        "claims": claims(critique) if critique is not None else [],
        "rubric": rubric[queue.field],
        "votes": [{"expert": e, "value": v["value"], "note": v["note"]} for e, v in queue.votes[id].items()],
    }


class Desk:
    """All waiting files of a run, read again when one appears or is written by a phase."""

    def __init__(self, run: Path, double: float):
        if not run.is_dir():
            raise InputError(f"{run} is no folder: give the folder of a run")
        self.run, self.double = run, double
        self.queues: dict[Path, tuple[tuple, Queue]] = {}

    def files(self) -> list[Queue]:
        out = []
        for path in waiting_files(self.run):
            stamp = (path.stat().st_mtime_ns, path.stat().st_size)
            known = self.queues.get(path)
            if known is None or (known[0] != stamp and set(known[1].ids) != _ids(path, known[1])):
                known = (stamp, Queue(path, self.double))
            self.queues[path] = (stamp, known[1])
            out.append(self.queues[path][1])
        return out

    def find(self, id: str) -> Queue:
        for queue in self.files():
            if id in queue.records:
                return queue
        raise InputError(f"no item {id:.40} waits: reload the page")

    def state(self, expert: str) -> dict:
        """The next item of an expert, with progress, agreement, and what is to be settled."""
        queues = self.files()
        current = next(((q, i) for q in queues if (i := q.next(expert))), None)
        disputed = [(q, i) for q in queues for i in q.disagreements()]
        return {
            "item": view(*current) if current else None,
            "files": [
                {"name": str(q.path.relative_to(self.run)), "done": len(q.final), "all": len(q.ids)}
                for q in queues
            ],
            "agreement": [q.agreement() for q in queues],
            "disputed": [view(q, i) for q, i in disputed[:20]],
        }


def _ids(path: Path, queue: Queue) -> set[str]:
    return {item_id(r) for r in read_jsonl(path, queue.kind)}


def make_app(run: Path, double: float = 0.0, token: str = "", hosts: tuple[str, ...] = LOOPBACK):
    """The web application. `token`: asked for at the first visit where it is set."""
    from flask import Flask, abort, jsonify, redirect, request, send_from_directory

    app, desk = Flask(__name__, static_folder=None), Desk(run, double)
    app.config["MAX_CONTENT_LENGTH"] = 1 << 20

    @app.before_request
    def guard():
        host = request.host.rsplit(":", 1)[0].strip("[]")
        if not token and host not in hosts:  # another site's name that resolves to this machine
            abort(403, f"this page answers to {', '.join(hosts)}, not to {host}")
        if token:
            shown = request.args.get("token") or request.cookies.get("nanov2_token") or ""
            if not hmac.compare_digest(shown.encode(), token.encode()):
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
        return jsonify(desk.state(_expert(request.args.get("expert"))))

    @app.post("/api/judge")
    def judge():
        row = request.get_json()
        if not isinstance(row, dict):
            raise InputError("expected a JSON object")
        expert, note, findings = _expert(row.get("expert")), row.get("note", ""), row.get("findings")
        if not isinstance(note, str) or not isinstance(row.get("id", ""), str):
            raise InputError("id and note must be text")
        if findings is not None and not (
            isinstance(findings, list) and all(f in (True, False, None) for f in findings)
        ):
            raise InputError("findings must be a list of true, false and null")
        if row.get("action") == "undo":
            undone = next(((q, i) for q in reversed(desk.files()) if (i := q.last(expert))), None)
            if undone:
                undone[0].judge(undone[1], expert, "undo")
        else:
            queue = desk.find(row.get("id", ""))
            queue.judge(row["id"], expert, row.get("action"), row.get("value"), note, findings)
        return jsonify(desk.state(expert))

    return app


def _expert(name: object) -> str:
    if not isinstance(name, str) or not name.strip() or len(name) > 60:
        raise InputError("give your name first (up to 60 characters)")
    return name.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument(
        "--token", default="", help="what experts must show; made up for a host that others reach"
    )
    parser.add_argument("--double", type=float, default=0.0, help="share of items that two experts score")
    args = parser.parse_args()
    token = args.token or ("" if args.host in LOOPBACK else secrets.token_urlsafe(16))
    try:
        from werkzeug.serving import make_server
    except ImportError:
        sys.exit('error: the judging page needs Flask: pip install "nanov2[judge]"')
    try:
        app = make_app(args.run, args.double, token)
        server = make_server(args.host, args.port, app, threaded=True)
    except InputError as e:
        sys.exit(f"error: {e}")
    except OSError as e:
        sys.exit(f"error: cannot listen on {args.host}:{args.port} ({e}): choose another --port")
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # no line for every key
    print(f"http://{args.host}:{server.port}/" + (f"?token={token}" if token else ""), flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
