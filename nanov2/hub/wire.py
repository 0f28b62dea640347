"""JSON over HTTP by the standard library, to servers that run for days: each reply whole within a deadline.

What can pass (no connection, a cut or unreadable reply, status 429 or 5xx) is `Broken`, and may be asked
again; what would be the same again (any other status) is an InputError.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from nanov2.errors import InputError

LARGEST = 1 << 30  # bytes of a reply: a group of 16 rows of 64K tokens takes a tenth


class Broken(Exception):
    """A request that failed in a way that can pass."""


class Wire:
    """Requests from any number of threads; `seconds` is the deadline of each, its last byte included."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._lock, self._open = threading.Lock(), set()

    def get(self, url: str, path: str) -> Any:
        return self._request("GET", url, path, None)

    def post(self, url: str, path: str, body: dict | None = None) -> Any:
        """The reply as JSON; None where it is empty."""
        return self._request("POST", url, path, body)

    def hang_up(self) -> None:
        """End all requests: what waits for their replies finds them broken."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            _cut(connection)

    def _request(self, method: str, url: str, path: str, body: dict | None) -> Any:
        where = urlsplit(url)
        kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
        headers = _headers()
        connection = kind(where.hostname, where.port, timeout=self.seconds)
        with self._lock:
            self._open.add(connection)
        # A socket's time-out is for each piece of a reply: a reply that drips has no end of its own.
        deadline = threading.Timer(self.seconds, _cut, [connection])
        deadline.daemon = True
        deadline.start()
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, where.path.rstrip("/") + path, data, headers)
            reply = connection.getresponse()
            raw = reply.read(LARGEST + 1)
            if reply.status == 429 or reply.status >= 500:
                raise Broken(f"status {reply.status}: {_short(raw)}")
            if reply.status >= 300:
                raise InputError(f"{url}{path}: status {reply.status}: {_short(raw)}")
            if len(raw) > LARGEST:
                raise InputError(f"{url}{path}: a reply of more than {LARGEST >> 20} MiB")
            return json.loads(raw) if raw.strip() else None
        except (OSError, http.client.HTTPException) as e:
            raise Broken(f"{type(e).__name__}: {e}") from e
        except (ValueError, RecursionError) as e:
            raise Broken(f"a reply that is no JSON: {e}") from e
        finally:
            deadline.cancel()
            with self._lock:
                self._open.discard(connection)
            connection.close()


def _cut(connection: http.client.HTTPConnection) -> None:
    with suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)


def key_from_environment() -> str:
    """OPENAI_API_KEY, or ""; InputError, without the key, where no header can carry it."""
    key = os.environ.get("OPENAI_API_KEY") or ""
    if not all(33 <= ord(c) <= 126 for c in key):
        raise InputError("OPENAI_API_KEY holds a character that no request can carry, such as a line break")
    return key


def _headers() -> dict[str, str]:
    key = key_from_environment()
    return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})


def _short(raw: bytes) -> str:
    return " ".join(raw[:400].decode(errors="replace").split())[:300]
