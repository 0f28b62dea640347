"""An OpenAI-compatible server with an answer for every test: what it does hangs on the model's name.

    python tests/scripted_endpoint.py [GRADED.jsonl]

prints its port. `judge` verifies and meta-verifies proofs of the graded file with known error rates, and
proves and refines; the other models fail in one way each. GET /stats tells what was asked so far.
"""

import contextlib
import gzip
import hashlib
import json
import random
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FORM = (
    "Here is my evaluation of the solution:\n{}\nBased on my evaluation, the final overall score should be:\n"
)
META = (
    'Here is my analysis of the "solution evaluation":\n{}\n'
    'Based on my analysis, I will rate the "solution evaluation" as:\n'
)
LOCK, SEEN, STATS, TRUTH = threading.Lock(), {}, {"requests": 0, "most": 0}, {}
running = 0


def judge(text: str, rng: random.Random) -> str:
    """Right proofs pass with 80%, else an issue is invented; of wrong ones 75% are found. Issues are
    recognised as invented or real with 90%."""
    if text.startswith("Prove"):
        score = 1 if "earlier proof" in text else 0.5
        proof = f"## Solution\nBy induction on {rng.randrange(10**6)}."
        return f"<think>hm</think>{proof}\n\n## Self Evaluation\n{FORM}\\boxed{{{score}}}"
    if text.startswith("Judge an evaluation"):
        real = ("invented issue" not in text) == (rng.random() < 0.9)
        return META.format("Looked up.") + f"\\boxed{{{int(real)}}}"
    truth = next((score for proof, score in TRUTH.items() if proof in text), 0.0)
    if truth == 1:
        found, score = ("No issue.", 1) if rng.random() < 0.8 else ("An invented issue.", 0)
    else:
        found, score = ("A gap in step 2.", 0) if rng.random() < 0.75 else ("No issue.", 1)
    return f"<think>\\boxed{{0.5}}</think>{FORM.format(found)}\\boxed{{{score}}}"


def leave() -> None:
    global running
    with LOCK:
        running -= 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        with LOCK:
            data = json.dumps(STATS).encode()
            STATS.update(requests=0, most=0)
        self.send(200, data)

    def do_POST(self):
        global running
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = hashlib.sha256(json.dumps(body).encode()).hexdigest()
        with LOCK:
            running += 1
            SEEN[key] = SEEN.get(key, 0) + 1
            STATS["requests"] += 1
            STATS["most"] = max(STATS["most"], running)
        self.behave(body, SEEN[key] == 1)

    def behave(self, body: dict, first: bool) -> None:
        model, text = body["model"], body["messages"][-1]["content"]
        if model == "judge":
            return self.complete(judge(text, random.Random(f"{body['seed']} {text}")))
        if model == "slow":
            time.sleep(3)
        if model == "busy":
            time.sleep(0.03)
        if model == "broken" and "good" not in text:
            return self.fail(500, f"out of memory, {self.headers['Authorization']}")
        if model == "html":
            return self.send(200, b"<html>welcome</html>", "text/html")
        if model == "drip":
            return self.drip()
        if model == "flood":
            return self.flood()
        if model.startswith("odd "):  # a reply made of the model's name
            return self.send(200, model.removeprefix("odd ").encode())
        if model == "nested":
            return self.send(200, b'{"choices": ' + b"[" * 10**6)
        if model == "packed":
            data = gzip.compress(b" " * 10**8)
            return self.send(200, data, headers=[("Content-Encoding", "gzip")])
        if model == "not-json":
            return self.send(200, b'{"choices": [')
        if model == "context" and "long" in text:
            return self.fail(400, "the request exceeds the available context size")
        if model == "no-model":
            return self.fail(404, "model not found")
        if model in ("length", "empty"):
            return self.complete("\\boxed{0}" if model == "length" else None, model)
        if first and model == "429":
            return self.fail(429, "busy", [("Retry-After", "1")])
        if first and model == "500":
            return self.fail(500, "broken")
        if first and model == "drop":
            leave()
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        return self.complete(f"{text} {body['seed']}", cut=20 if first and model == "half" else 0)

    def drip(self) -> None:
        """A byte each tenth of a second, for ever."""
        leave()
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b" ")
                time.sleep(0.1)

    def flood(self) -> None:
        """More than any memory holds."""
        leave()
        self.send_response(200)
        self.send_header("Content-Length", str(10**10))
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(10**4):
                self.wfile.write(b" " * 10**6)

    def complete(self, text, reason="stop", cut=0) -> None:
        reason = "length" if reason == "length" else "stop"
        choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}
        usage = {"completion_tokens": 7, "prompt_tokens": 1, "total_tokens": 8}
        reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        self.send(200, json.dumps(reply | {"usage": usage}).encode(), cut=cut)

    def fail(self, status: int, message: str, headers=()) -> None:
        self.send(status, json.dumps({"error": {"message": message}}).encode(), headers=headers)

    def send(self, status, data, kind="application/json", headers=(), cut=0) -> None:
        if self.command == "POST":
            leave()  # before the client can know, or its next request would be counted beside this one
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(data))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) - cut])
        self.close_connection = bool(cut)


if __name__ == "__main__":
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as f:
            TRUTH.update((row["proof"], row["score"]) for row in map(json.loads, f))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
