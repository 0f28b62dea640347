"""Geometry of the report's drawings; templates/charts.html and templates/picture.svg only show it.

Text is measured before it is placed: axis labels, minus signs included, lie within the picture.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

# Okabe and Ito: safe for colour-blind readers
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("", "6 3", "2 2")
MOST_POINTS = 150  # drawn of a line
CHARACTER = 6.6  # width of one at the 11 px of labels, the widest digits' measure

Point = tuple[float, float]
Band = tuple[float, float, float]  # x, low, high


@dataclass(frozen=True)
class Series:
    """A line of a chart, with the band around it where one is known."""

    name: str
    points: list[Point]
    band: list[Band] = field(default_factory=list)


@dataclass(frozen=True)
class Tick:
    at: float  # pixels
    text: str


@dataclass(frozen=True)
class Line:
    name: str
    colour: str
    dash: str
    path: str
    band: str  # path of the band; empty where there is none
    end: str  # the last value
    key: Point  # where the legend's stroke begins


@dataclass(frozen=True)
class Chart:
    """A chart as drawn: all in pixels."""

    title: str
    sentence: str
    width: int
    height: float
    left: float
    top: float
    w: float
    h: float
    y_ticks: list[Tick]
    x_ticks: list[Tick]
    lines: list[Line]
    fill: str  # path of the area between the first two lines, where it is asked for
    data: str  # JSON of all lines, from which the page's script reads values
    box: str  # JSON of the frame and the range of x


def finite(x: object) -> bool:
    """Whether a value is a number that can be drawn."""
    return isinstance(x, (int, float)) and not isinstance(x, bool) and -1e300 < x < 1e300


def number(x: float, step: float = 0.0) -> str:
    """A value as text, with the decimals that a `step` between values calls for; a true minus sign."""
    if x == 0:
        return "0"
    if abs(x) >= 1e6 or (abs(x) < 1e-4 and step < 1e-4):
        mantissa, exponent = f"{x:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−")
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 3
    if step and round(step * 10**decimals, 6) != round(step * 10**decimals):
        decimals += 1  # steps of 0.25
    return f"{x:.{decimals}f}".replace("-", "−")


def round_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round values that cover [low, high], about so many steps of 1, 2, 2.5 or 5 · 10^k apart."""
    span = high - low
    if span <= max(abs(low), abs(high)) * 1e-9 or span < 1e-290:
        span = abs(high) or 1.0
        low, high = (low, low + span) if low >= 0 else (low, low + span / 2)
    rough = span / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def whole_ticks(low: float, high: float) -> list[float]:
    """Round steps of training within [low, high]."""
    return [t for t in round_ticks(low, high) if low <= t <= high and t == int(t)] or [low]


def thin(points: list) -> list:
    """At most MOST_POINTS of them, the last one among them."""
    every = math.ceil(len(points) / MOST_POINTS)
    return points if every <= 1 else points[:-1:every] + points[-1:]


def draw(
    title: str, series: list[Series], sentence: str = "", fill: bool = False, width: int = 460
) -> Chart | None:
    """The chart of some lines; None where no line has a point. Values that are not finite are left out.

    `fill`: the area between the first two lines is shaded.
    """
    series = [
        Series(
            s.name,
            thin([p for p in s.points if finite(p[0]) and finite(p[1])]),
            thin([b for b in s.band if all(map(finite, b))]),
        )
        for s in series
    ]
    series = [s for s in series if s.points]
    if not series:
        return None
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points] + [y for s in series for _, *b in s.band for y in b]
    ticks = round_ticks(min(0.0, *ys), max(ys) if max(ys) > 0 else 0.0)
    y0, y1, x0, x1 = ticks[0], ticks[-1], min(xs), max(xs)
    labels = [number(t, ticks[1] - ticks[0]) for t in ticks]
    left = 14 + max(map(len, labels)) * CHARACTER
    top, h = 28.0, 160.0
    w = width - left - 16

    def place(x: float, y: float) -> Point:
        return left + w * (x - x0) / ((x1 - x0) or 1), top + h * (1 - (y - y0) / ((y1 - y0) or 1))

    def path(points: list[Point]) -> str:
        if len(points) == 1:  # a dot: round caps show a line of no length
            points = points * 2
        return "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in (place(x, y) for x, y in points))

    lines, key_x, key_y = [], left, top + h + 36
    for i, s in enumerate(series):
        room = 28 + len(s.name) * CHARACTER
        if key_x > left and key_x + room > width:
            key_x, key_y = left, key_y + 16
        band = [(x, low) for x, low, _ in s.band] + [(x, high) for x, _, high in reversed(s.band)]
        lines.append(
            Line(
                s.name,
                COLOURS[i % len(COLOURS)],
                DASHES[i % len(DASHES)],
                path(s.points),
                path(band) + "Z" if len(s.band) > 1 else "",
                f"{s.points[-1][1]:.4g}".replace("-", "−"),
                (key_x, key_y),
            )
        )
        key_x += room
    between = ""
    if fill and len(series) > 1 and min(len(series[0].points), len(series[1].points)) > 1:
        between = path(series[0].points + series[1].points[::-1]) + "Z"
    data = [[s.name, [[x, float(f"{y:.5g}")] for x, y in s.points]] for s in series]
    return Chart(
        title,
        sentence,
        width,
        key_y + 10,
        left,
        top,
        w,
        h,
        [Tick(place(x0, t)[1], text) for t, text in zip(ticks, labels, strict=True)],
        [Tick(place(t, y0)[0], number(t, 1)) for t in whole_ticks(x0, x1)],
        lines,
        between,
        json.dumps(data),
        json.dumps([left, top, w, h, x0, x1]),
    )


@dataclass(frozen=True)
class Range:
    """A figure before and after, for the headline's picture."""

    name: str
    before: float
    after: float
    low: float  # interval of `after`
    high: float


@dataclass(frozen=True)
class RangeLine:
    name: str
    y: int
    x0: float
    x1: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Picture:
    width: int
    height: int
    ticks: list[Tick]
    rows: list[RangeLine]
    label_x: float
    text_x: float


def picture(ranges: list[Range], width: int = 860) -> Picture:
    """The headline as a picture: for each step a line from before (ring) to after (dot), from 0 to 1."""
    left = 24 + 6.8 * max((len(r.name) for r in ranges), default=0)
    w = width - left - 110

    def at(value: float) -> float:
        return left + w * min(max(value, 0.0), 1.0)

    rows = [
        RangeLine(
            r.name,
            20 + 26 * i,
            at(r.before),
            at(r.after),
            at(r.low),
            at(r.high),
            f"{number(r.before, 0.01)} → {number(r.after, 0.01)}",
        )
        for i, r in enumerate(ranges)
    ]
    ticks = [Tick(at(i / 5), f"{i / 5:.1f}") for i in range(6)]
    return Picture(width, 26 * len(ranges) + 40, ticks, rows, left - 12, left + w + 14)
