"""The error that a user can mend: the scripts print its message in one line, without a traceback."""


class InputError(Exception):
    """Bad input: says what was wrong, where, and what to do."""
