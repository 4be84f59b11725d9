"""Small charts as SVG text: horizontal bars, and curves over chunks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, LEFT, RIGHT = 860, 260, 70
ROW, TOP, BOTTOM, HEIGHT = 15, 10, 36, 220
COLORS = ("#3b6ea8", "#c4572b", "#5b8c3e", "#7a5aa6", "#444444")
DASHES = ("none", "6 5", "2 3")  # curves may lie on each other
TICKS, CHUNKS_NAMED = 4, 20  # on the axes; of many chunks only every n-th has its number


def bars(values: Sequence[tuple[str, float]], *, unit: str) -> str:
    """One bar per (label, value), from 0; a value that is not finite has a label alone."""
    largest = max((v for _, v in values if math.isfinite(v)), default=0.0) or 1.0
    rows = [_bar(i, label, v, v / largest, unit) for i, (label, v) in enumerate(values)]
    return _svg(TOP + ROW * len(values) + 4, rows)


def _bar(index: int, label: str, value: float, share: float, unit: str) -> str:
    y, text = TOP + ROW * index, f"{value:.2f} {unit}"
    width = max(0.0, share) * (WIDTH - LEFT - RIGHT) if math.isfinite(share) else 0.0
    return (
        f'<text x="{LEFT - 8}" y="{y + 10}" text-anchor="end">{escape(label)}</text>'
        f'<rect x="{LEFT}" y="{y + 1}" width="{width:.1f}" height="{ROW - 4}" fill="{COLORS[0]}"/>'
        f'<text x="{LEFT + width + 6:.1f}" y="{y + 10}">{text}</text>'
    )


def curves(lines: Mapping[str, Sequence[float]], *, unit: str) -> str:
    """One curve per name over the chunks 0, 1, ...; points that are not finite are left out.

    A line keeps its colour where another chart has no points for its neighbour.
    """
    finite = [v for line in lines.values() for v in line if math.isfinite(v)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    margin = max(0.5, 0.1 * (high - low))
    scale = (low - margin, high + margin)
    count = max((len(line) for line in lines.values()), default=1)
    parts = [_grid(scale, count, unit)]
    numbered = enumerate(lines.items())
    shown = [(index, name) for index, (name, line) in numbered if any(map(math.isfinite, line))]
    for row, (index, name) in enumerate(shown):
        parts.append(_curve(lines[name], scale, count, index))
        parts.append(_legend(row, name, index))
    return _svg(HEIGHT, parts)


def _grid(scale: tuple[float, float], count: int, unit: str) -> str:
    low, high = scale
    parts = []
    for tick in range(TICKS + 1):
        value = low + (high - low) * tick / TICKS
        y = _y(value, scale)
        parts.append(
            f'<line x1="60" x2="{WIDTH - 200}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="54" y="{y + 4:.1f}" text-anchor="end">{value:.1f}</text>'
        )
    for chunk in range(0, count, max(1, math.ceil(count / CHUNKS_NAMED))):
        x = _x(chunk, count)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 18}" text-anchor="middle">{chunk}</text>')
    parts.append(f'<text x="60" y="{HEIGHT - 3}">chunk; vertical: {escape(unit)}</text>')
    return "".join(parts)


def _curve(line: Sequence[float], scale: tuple[float, float], count: int, index: int) -> str:
    color = COLORS[index % len(COLORS)]
    points = [(_x(i, count), _y(v, scale)) for i, v in enumerate(line) if math.isfinite(v)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in points)
    return f'<polyline points="{path}" fill="none" {_stroke(index)}/>{dots}'


def _legend(row: int, name: str, index: int) -> str:
    y = TOP + 18 * row + 6
    return (
        f'<line x1="{WIDTH - 190}" x2="{WIDTH - 166}" y1="{y}" y2="{y}" {_stroke(index)}/>'
        f'<text x="{WIDTH - 160}" y="{y + 4}">{escape(name)}</text>'
    )


def _stroke(index: int) -> str:
    color, dash = COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]
    return f'stroke="{color}" stroke-width="2" stroke-dasharray="{dash}"'


def _x(index: int, count: int) -> float:
    return 80 + (WIDTH - 300) * (index / (count - 1) if count > 1 else 0.5)


def _y(value: float, scale: tuple[float, float]) -> float:
    low, high = scale
    return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)


def _svg(height: float, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">'
    return head + "".join(parts) + "</svg>"
