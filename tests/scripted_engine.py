"""A server with the interfaces of vLLM and SGLang that samples by nanov2's own sampler, and fails on demand.

    python tests/scripted_engine.py FOLDER --port PORT …      # as rollout.command starts it

`faults` holds what goes wrong, one for each request to sample, first of all first.
"""

import json
import os
import socket
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from safetensors.torch import load_file

from nanov2.hub import hf
from nanov2.model.decoder import Model
from nanov2.model.rollout import Sampling
from nanov2.model.sampler import sample


class Ends:
    def __init__(self, ends):
        self.ends, self.end = tuple(ends), ends[0]


class ScriptedEngine(ThreadingHTTPServer):
    """Serves whatever weights it is told to read."""

    daemon_threads = True
    request_queue_size = 256  # connections that wait: as many as an engine may open at a time

    def __init__(self, port=0, tells=True):
        super().__init__(("127.0.0.1", port), Handler)
        self.model, self.version, self.tells = None, "default", tells
        self.faults, self.requests, self.loads, self.running, self.most = deque(), [], [], 0, 0
        self.lock, self.sampling = threading.Lock(), threading.Lock()
        self.gone = False  # whoever asks finds nobody, until `come_back`
        self.url = f"http://127.0.0.1:{self.server_port}"

    def come_back(self):
        """As a server that was started again, with the weights of its start."""
        self.model, self.version, self.gone = None, "default", False
        self.faults.clear()

    def load(self, folder):
        config = hf.to_config(Path(folder) / "config.json")
        tensors = {}
        for path in Path(folder).glob("*.safetensors"):
            tensors |= load_file(path)
        model = Model(config).to(next(iter(tensors.values())).dtype)
        model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items()})
        self.loads.append(str(folder))
        self.model = model.float()  # whose weights are those that were sent; sampled in fp32

    @contextmanager
    def in_a_thread(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()

    def choices(self, ids, n, most, temperature, ends, seed):
        with self.sampling:
            how = Sampling(temperature, most, 64)
            return sample(self.model, Ends(ends), [ids], n, how, [seed])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.server.gone:
            return self.hang_up()
        self.send(200, b"")

    def do_POST(self):
        server = self.server
        if server.gone:
            return self.hang_up()
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(raw) if raw else {}
        path = self.path.split("?")[0]
        if path == "/collective_rpc":
            server.load(body["kwargs"]["weights_path"])
            return self.reply({"results": [None]})
        if path == "/update_weight_version":
            server.version = body["new_version"]
            return self.reply({"success": True})
        if path == "/update_weights_from_disk":
            server.load(body["model_path"])
            server.version = body["weight_version"]
            return self.reply({"success": True, "message": ""})
        if path not in ("/generate", "/inference/v1/generate"):
            return self.reply({"status": path})
        with server.lock:
            server.requests.append(body)
            fault = server.faults.popleft() if server.faults else ""
            server.running += 1
            server.most = max(server.most, server.running)
        try:
            self.sampled(path, body, fault)
        finally:
            server.running -= 1

    def sampled(self, path, body, fault):
        if fault == "die":
            os._exit(3)
        if fault == "gone":
            self.server.gone = True
        if fault in ("drop", "gone"):
            return self.hang_up()
        if fault in ("500", "503", "429", "400"):
            return self.send(int(fault), b'{"error": {"message": "out of memory"}}')
        if fault == "html":
            return self.send(200, b"<html>welcome</html>")
        if fault == "wait":
            time.sleep(0.3)
        how = body["sampling_params"]
        version = "of an older step" if fault == "stale" else self.server.version
        vllm = path != "/generate"
        ids = body["token_ids" if vllm else "input_ids"]
        most = how["max_tokens" if vllm else "max_new_tokens"]
        seed = how.get("seed" if vllm else "sampling_seed", 0)
        rollouts = self.server.choices(ids, how["n"], most, how["temperature"], how["stop_token_ids"], seed)
        rows = [(r.ids, r.logprobs, r.truncated) for r in rollouts]
        if fault == "short":
            rows = [(ids[:1], logprobs[:1], True) for ids, logprobs, _ in rows]
        if fault == "few":
            rows = rows[:-1]
        if fault == "nan":
            rows = [(ids, [float("nan")] * len(ids), cut) for ids, _, cut in rows]
        told, spans = self.server.tells, [{"version": version, "start": 0, "end": 1}]
        if vllm:
            choices = [
                {
                    "index": i,
                    "token_ids": ids,
                    "finish_reason": "length" if cut else "stop",
                    "logprobs": {"content": [{"token": "", "logprob": p} for p in logprobs]},
                    **({"weight_versions": spans} if told else {}),
                }
                for i, (ids, logprobs, cut) in enumerate(rows)
            ]
            answer = {"request_id": "x", "choices": choices[::-1]}
        else:
            answer = [
                {
                    "output_ids": ids,
                    "meta_info": {
                        "finish_reason": {"type": "length" if cut else "stop"},
                        "output_token_logprobs": [[p, i, None] for p, i in zip(logprobs, ids)],
                        **({"weight_version": version} if told else {}),
                    },
                }
                for ids, logprobs, cut in rows
            ]
            answer = answer[0] if how["n"] == 1 else answer
        data = json.dumps(answer).encode()
        if fault == "drip":
            return self.drip(data)
        self.send(200, data, cut=len(data) // 2 if fault == "half" else 0)

    def hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def drip(self, data):
        """A byte each tenth of a second."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            for byte in data:
                self.wfile.write(bytes([byte]))
                time.sleep(0.1)
        except OSError:
            self.close_connection = True

    def reply(self, value):
        self.send(200, json.dumps(value).encode())

    def send(self, status, data, cut=0):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) - cut])
        self.close_connection = bool(cut)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "--unwilling" in sys.argv:
        sys.exit("no GPU was found")
    engine = ScriptedEngine(int(sys.argv[sys.argv.index("--port") + 1]))
    if "--dies" in sys.argv:  # once: the file tells whether it has died before
        mark = Path(sys.argv[sys.argv.index("--dies") + 1])
        if not mark.exists():
            mark.touch()
            engine.faults.extend(["", "die"])
    print("serving", flush=True)
    engine.serve_forever()
