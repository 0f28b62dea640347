"""The error that a user can mend: the scripts print its message in one line, without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(Exception):
    """Bad input: says what was wrong, where, and what to do.

    One line that no character of a hostile file can break, or turn into commands of the terminal.
    """

    def __str__(self) -> str:
        return "".join(c if c.isprintable() else " " for c in super().__str__())


@contextmanager
def as_written(folder: Path) -> Iterator[None]:
    """Inside, what cannot be made of the files of a run folder is an InputError: someone changed them."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as e:
        what = " ".join(f"{type(e).__name__}: {e}".split())
        raise InputError(f"{folder} holds files that are not as nanov2 writes them ({what:.200})") from e
