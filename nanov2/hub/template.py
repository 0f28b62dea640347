"""Chat templates, which are programs that came with a model folder: rendered with limits.

Jinja's sandbox keeps a template from reading files or running code, but not from looping for hours or filling
memory. So a template is rendered in a process of its own, with at most SECONDS of CPU time, MEMORY bytes and
an output of at most LENGTH characters. What it makes of a chat hangs on the roles alone (chat.py renders
placeholders), so it is rendered a few times a run.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys

SECONDS, MEMORY, LENGTH = 5, 1 << 29, 1 << 20


class TemplateError(Exception):
    """Why a template cannot show a chat, in one line."""


@functools.lru_cache(maxsize=256)
def render(template: str, values: str) -> str:
    """The template with `values`, a JSON object of its variables."""
    command = [sys.executable, "-P", __file__]
    request = json.dumps([template, json.loads(values)])
    try:
        done = subprocess.run(command, input=request.encode(), capture_output=True, timeout=20 * SECONDS)
    except subprocess.TimeoutExpired as e:
        raise TemplateError(f"it takes more than {SECONDS} s") from e
    try:
        text, error = json.loads(done.stdout)
    except ValueError as e:  # killed by a limit
        raise TemplateError(f"it takes more than {SECONDS} s or {MEMORY >> 20} MiB of memory") from e
    if error:
        raise TemplateError(error)
    return text


def _render(template: str, values: dict) -> str:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def refuse(reason: object) -> None:
        raise jinja2.TemplateError(str(reason))

    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    out, length = [], 0
    for piece in environment.from_string(template).generate(**values):
        out.append(piece)
        length += len(piece)
        if length > LENGTH:
            raise jinja2.TemplateError(f"it writes more than {LENGTH:,} characters for one chat")
    return "".join(out)


def _limit() -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    for kind, most in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, MEMORY)):
        resource.setrlimit(kind, (most, most))


def main() -> None:
    """Answers the request on standard input with [text, error] on standard output."""
    template, values = json.loads(sys.stdin.buffer.read())
    _limit()
    try:
        found = [_render(template, values), ""]
    except MemoryError:
        found = ["", f"it takes more than {MEMORY >> 20} MiB of memory"]
    except Exception as e:  # a template can raise anything that Python can
        found = ["", " ".join(f"{type(e).__name__}: {e}".split())[:200]]
    sys.stdout.buffer.write(json.dumps(found).encode())


if __name__ == "__main__":
    main()
