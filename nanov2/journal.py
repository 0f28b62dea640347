"""Append-only JSON lines that outlive kills and full disks: one reader, one writer.

A line counts once it ends in a line feed. A last line without one was cut off in writing and was never
confirmed to anyone: readers leave it out, and the next `append` removes it. A write that fails leaves the
file as it was. One process at a time may append (the run folder's lock sees to that).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from nanov2.errors import InputError


def read(path: str | Path, lenient: bool = False) -> list[dict]:
    """The objects of a journal in order; no file is an empty one.

    Raises InputError naming file and line where a whole line is not a JSON object; `lenient`: leaves it out.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e
    rows = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            row, why = None, str(e)
        else:
            why = f"expected an object, found {type(row).__name__}"
        if isinstance(row, dict):
            rows.append(row)
        elif not lenient:
            raise InputError(f"{path}, line {number}: not valid JSON of a journal ({why}); mend the line")
    return rows


def append(path: str | Path, rows: Iterable[dict], sync: bool = False) -> None:
    """Add rows, one line each, all or none. `sync`: they are on the disk when this returns.

    Raises InputError where the disk does not take them.
    """
    path, data = Path(path), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", buffering=0) as f:
            end = _whole(f)
            f.truncate(end)
            try:
                written = 0
                while written < len(data):
                    written += f.write(data[written:])
                if sync:
                    os.fsync(f.fileno())
            except OSError:
                f.truncate(end)
                raise
    except OSError as e:
        raise InputError(
            f"cannot write {path}: {e.strerror}; free space or fix permissions and run again: "
            "what was finished before is kept"
        ) from e


def _whole(f) -> int:
    """Bytes of the whole lines of an open journal."""
    size = f.seek(0, os.SEEK_END)
    if size:
        f.seek(size - 1)
        if f.read(1) != b"\n":
            f.seek(0)
            return f.read().rfind(b"\n") + 1
    return size
