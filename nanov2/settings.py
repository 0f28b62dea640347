"""Settings as typed dataclasses: a field's type holds its bounds or its choices, `setting` its help.

    @dataclass(frozen=True)
    class BaseConfig:
        steps: Count = setting(3000, "optimiser steps")
        shard: Literal["none", "full"] = setting("none", "how ranks hold a model")

`build` makes such a dataclass from a nested dict (a TOML section, JSON) and refuses what does not fit, in one
line that names the field, what it may be, and what was found. Every room's settings are declared with it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from nanov2.errors import InputError
from nanov2.records import is_text

LONGEST = 4096  # characters of a setting that is text


@dataclass(frozen=True)
class Within:
    """Bounds of a number, both included unless `above`; `or_zero`: 0 is valid too, as "off"."""

    low: float
    high: float
    above: bool = False  # low itself is too little
    or_zero: bool = False

    def __contains__(self, x: float) -> bool:
        """NaN is within nothing."""
        if self.or_zero and x == 0:
            return True
        return (self.low < x if self.above else self.low <= x) and x <= self.high

    def __str__(self) -> str:
        low, high = (f"{x:,}" if isinstance(x, int) else f"{x:g}" for x in (self.low, self.high))
        first = f"above {low}, up to" if self.above else f"from {low} to"
        return f"{'0, or ' if self.or_zero else ''}{first} {high}"


Count = Annotated[int, Within(0, 10_000_000)]
Positive = Annotated[int, Within(1, 10_000_000)]
Few = Annotated[int, Within(1, 1000)]
Rate = Annotated[float, Within(0, 1)]
Weight = Annotated[float, Within(0, 1000)]
Above0 = Annotated[float, Within(0, 1e12, above=True)]
LearningRate = Annotated[float, Within(0, 10, above=True)]
Temperature = Annotated[float, Within(0.01, 100)]
TemperatureOrGreedy = Annotated[float, Within(0.01, 100, or_zero=True)]
Tokens = Annotated[int, Within(1, 1 << 24)]
Width = Annotated[int, Within(1, 1 << 20)]


def setting(default: Any, text: str) -> Any:
    """A field with its default and its line in --help."""
    return dataclasses.field(default=default, metadata={"help": text})


def hints(kind: type) -> dict[str, Any]:
    """Field → type, with its bounds."""
    found = typing.get_type_hints(kind, include_extras=True)
    return {f.name: found[f.name] for f in dataclasses.fields(kind)}


def build(
    kind: Any, tree: dict, prefix: str = "", where: str = "settings", others: dict[str, type] | None = None
):
    """A settings dataclass from nested dicts. Raises InputError, headed by `where`, naming the nearest field.

    `others` are sections that may stand beside the fields and were read before.
    """
    known, values = hints(kind), {}
    for name, value in tree.items():
        if name not in known:
            refuse_unknown(name, (others or {}) | known, prefix, where)
        values[name] = convert(value, known[name], prefix + name, where)
    try:
        return kind(**values)
    except (ValueError, TypeError) as e:
        raise InputError(f"{where}: {e}") from e


def refuse_unknown(name: str, known: dict[str, Any], prefix: str, where: str) -> None:
    """InputError with the sections that have such a field, or else the nearest name of `known`."""
    sections = {key: kind for key, kind in known.items() if dataclasses.is_dataclass(kind)}
    inside = [f"{key}.{name}" for key, kind in _roots(sections).items() if name in hints(kind)]
    near = inside or difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {' or '.join(prefix + n for n in near)}?" if near else f"known: {', '.join(known)}"
    raise InputError(f"{where}: unknown field {prefix}{name:.80}; {hint}")


def _roots(kinds: dict[str, Any]) -> dict[str, Any]:
    """Those that are derived from no other: [grpo] speaks for the sections that it is spread over."""
    every = list(kinds.values())
    return {key: kind for key, kind in kinds.items() if not any(k in kind.__mro__[1:] for k in every)}


def convert(value: object, kind: Any, name: str, where: str) -> Any:
    """A TOML or JSON value as the field's type: ints serve as floats, lists as tuples; else it must fit."""
    if typing.get_origin(kind) is Annotated:
        kind, bounds = typing.get_args(kind)
        value = convert(value, kind, name, where)
        if value not in bounds:
            raise InputError(f"{where}: {name} must be {bounds}, found {_shown(value)}")
        return value
    if typing.get_origin(kind) is Literal:
        try:
            choose(value, typing.get_args(kind), name)
        except ValueError as e:
            raise InputError(f"{where}: {e}") from e
        return value
    if typing.get_origin(kind) in (typing.Union, types.UnionType):  # SomeSection | None
        if value is None:
            return None
        return _one_of(value, [k for k in typing.get_args(kind) if k is not type(None)], name, where)
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        if parts[1:] == (...,):  # of any length; one element may stand for itself
            items = value if isinstance(value, (list, tuple)) else [value]
            return tuple(convert(v, parts[0], name, where) for v in items)
        if not isinstance(value, (list, tuple)) or len(value) != len(parts):
            raise InputError(f"{where}: {name} must be a list of {len(parts)} numbers, found {_shown(value)}")
        return tuple(convert(v, part, name, where) for v, part in zip(value, parts, strict=True))
    if dataclasses.is_dataclass(kind):
        return build(kind, check_section(value, name, where), f"{name}.", where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e300 else math.inf
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        found = f"{_shown(value)} ({type(value).__name__})"
        raise InputError(f"{where}: {name} must be {kind.__name__}, found {found}")
    if kind is str and not _plain(value):
        raise InputError(f"{where}: {name} must be text without control characters, found {_shown(value)}")
    return value


def check_section(value: object, name: str, where: str) -> dict:
    if not isinstance(value, dict):
        raise InputError(f"{where}: {name} must be a section, found {_shown(value)}")
    return value


def describe(kind: type, hide: Any = None) -> list[str]:
    """A line for each field: name, default, help, and what it may be; without the fields of `hide`."""
    hidden = hints(hide) if hide else {}
    lines = []
    for field in dataclasses.fields(kind):
        if field.name in hidden and field.default == hide.__dataclass_fields__[field.name].default:
            continue
        default = f'"{field.default}"' if isinstance(field.default, str) else field.default
        text = field.metadata.get("help", "")
        lines.append(f"    {field.name:18} {default!s:10} {text}{_allowed(hints(kind)[field.name])}".rstrip())
    return lines


def choose(value: object, choices: tuple, name: str, otherwise: str = "") -> None:
    """ValueError, with the nearest choice, unless the value is one. `otherwise`: what else is valid."""
    if isinstance(value, str) and value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1)
    listed = ", ".join(f'"{c}"' for c in choices) + (f", {otherwise}" if otherwise else "")
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{name} must be one of {listed}, found {_shown(value)}{hint}")


def _one_of(value: object, kinds: list, name: str, where: str) -> Any:
    """The first of the types that takes the value; the error is that of the first where none does."""
    first = None
    for kind in kinds:
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, kind):
            return value
        try:
            return convert(value, kind, name, where)
        except InputError as e:
            first = first or e
    raise first


def _allowed(kind: Any) -> str:
    """What a field may be, for --help: its choices, or its bounds."""
    if typing.get_origin(kind) is Literal:
        return " (" + ", ".join(f'"{c}"' for c in typing.get_args(kind)) + ")"
    return f" ({typing.get_args(kind)[1]})" if typing.get_origin(kind) is Annotated else ""


def _plain(text: str) -> bool:
    return is_text(text) and len(text) <= LONGEST and not any(ord(c) < 32 or ord(c) == 127 for c in text)


def _shown(value: object) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:  # an integer of thousands of digits
        return "a number of thousands of digits"
