"""The two drawings of the report, as SVG by hand: curves, and before-and-after lines."""

from __future__ import annotations

import json
from html import escape

# Okabe and Ito: safe for colour-blind readers
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def chart(
    title: str, series: dict[str, list[tuple[float, float]]], width: int = 460, height: int = 220
) -> str:
    """Lines as SVG; points are thinned to 150 a line."""
    series = {k: v[:: max(1, len(v) // 150)] for k, v in series.items() if v}
    points = [p for line in series.values() for p in line]
    if not points:
        return ""
    x0, x1 = min(x for x, _ in points), max(max(x for x, _ in points), 1e-9)
    y0, y1 = min(0.0, *(y for _, y in points)), max(*(y for _, y in points), 1e-9)
    left, top, w, h = 44, 26, width - 60, height - 60

    def place(x: float, y: float) -> tuple[float, float]:
        return left + w * (x - x0) / ((x1 - x0) or 1), top + h * (1 - (y - y0) / ((y1 - y0) or 1))

    # what explore.js reads values from
    data = escape(json.dumps([[k, [[x, float(f"{y:.5g}")] for x, y in v]] for k, v in series.items()]))
    box = json.dumps([left, top, w, h, x0, x1])
    full = height + 14 * ((len(series) - 1) // 2)  # a line of the legend for two names
    parts = [
        f'<svg viewBox="0 0 {width} {full}" role="img" aria-label="{escape(title)}" '
        f'data-series="{data}" data-box="{box}">'
    ]
    parts.append(f'<text x="{left}" y="16" class="ct">{escape(title)}</text>')
    for i in range(5):
        y = y0 + (y1 - y0) * i / 4
        _, py = place(x0, y)
        parts.append(f'<path d="M{left} {py:.1f}h{w}" class="grid"/>')
        parts.append(f'<text x="{left - 5}" y="{py + 4:.1f}" text-anchor="end">{y:.3g}</text>')
    for x in (x0, (x0 + x1) / 2, x1):
        px, _ = place(x, y0)
        parts.append(f'<text x="{px:.1f}" y="{top + h + 15}" text-anchor="middle">{x:.0f}</text>')
    for i, (name, line) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(x, y) for x, y in line))
        dash = ("", "5 3", "2 2")[i % 3]
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8" '
            f'stroke-dasharray="{dash}"><title>{escape(name)}: ends at {line[-1][1]:.3f}</title></polyline>'
        )
        x, y = left + 200 * (i % 2), height - 6 + 14 * (i // 2)
        parts.append(
            f'<path d="M{x} {y - 4}h16" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        )
        parts.append(f'<text x="{x + 20}" y="{y}">{escape(name)}</text>')
    return "".join(parts) + "</svg>"


def dumbbells(rows: list[dict], width: int = 860) -> str:
    """The headline as a picture: for each step a line from before (ring) to after (dot), from 0 to 1."""
    rows = [r for r in rows if r["after"] is not None and r["before"] is not None]
    left, step, w = 360, 26, width - 440
    height = step * len(rows) + 40
    style = ".t{fill:#1b2433}.l{stroke:#8895a8}@media(prefers-color-scheme:dark){.t{fill:#e6ecf5}}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="system-ui,sans-serif" font-size="13" role="img" aria-label="before and after">'
        f"<style>{style}</style>"
    ]
    for i in range(6):
        x = left + w * i / 5
        parts.append(f'<path d="M{x} 8V{height - 24}" class="l" stroke-width=".5"/>')
        parts.append(f'<text x="{x}" y="{height - 8}" class="t" text-anchor="middle">{i / 5:.1f}</text>')
    for i, r in enumerate(rows):
        y = 20 + step * i
        x0, x1 = (left + w * min(max(v, 0.0), 1.0) for v in (r["before"], r["after"]))
        name = escape(f"{r['step']}: {r['metric']}")
        parts.append(
            f'<text x="{left - 12}" y="{y + 4}" class="t" text-anchor="end">{name}</text>'
            f'<path d="M{x0:.1f} {y}H{x1:.1f}" stroke="#0072b2" stroke-width="3"/>'
            f'<circle cx="{x0:.1f}" cy="{y}" r="5" fill="#fff" stroke="#d55e00" stroke-width="2"/>'
            f'<circle cx="{x1:.1f}" cy="{y}" r="6" fill="#0072b2"/>'
            f'<text x="{left + w + 14}" y="{y + 4}" class="t">{r["before"]:.2f} → {r["after"]:.2f}</text>'
        )
    return "".join(parts) + "</svg>"
