"""Draw a trace of `llvq run --trace` as an SVG: `python -m docs.draw_timeline TRACE SVG`.

One row per lane, one colour per chunk; --begin and --end cut seconds out of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from llvq.runtime.timeline import Span, spans_of

WIDTH, LEFT, ROW, BAR, TOP = 960, 110, 30, 22, 14  # pixels
COLOURS = ("#4878a8", "#d98b3a", "#5a9e6f", "#b05a7a", "#8a7fb8", "#8c8c8c")
LETTER = 7  # pixels of one, about
TICKS = 8  # at most


def draw(spans: Sequence[Span], begin: float = 0.0, end: float | None = None) -> str:
    """Spans between two moments, seconds, as the text of an SVG."""
    last = max(span.end for span in spans) if end is None else end
    shown = [span for span in spans if span.end > begin and span.begin < last]
    lanes = list(dict.fromkeys(span.lane for span in shown))
    scale = (WIDTH - LEFT - 10) / (last - begin)
    height = TOP + ROW * len(lanes) + 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        *_axis(begin, last, scale, TOP + ROW * len(lanes)),
    ]
    for row, lane in enumerate(lanes):
        y = TOP + ROW * row
        parts.append(f'<text x="8" y="{y + 15}" fill="#222222">{escape(lane)}</text>')
        for span in shown:
            if span.lane == lane:
                parts += _bar(span, begin, last, scale, y)
    return "\n".join([*parts, "</svg>", ""])


def _bar(span: Span, begin: float, end: float, scale: float, y: int) -> list[str]:
    left = LEFT + (max(span.begin, begin) - begin) * scale
    width = max((min(span.end, end) - max(span.begin, begin)) * scale, 0.5)
    colour = COLOURS[span.chunk % len(COLOURS)]
    bar = (
        f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}" '
        f'stroke="#ffffff" stroke-width="0.5"><title>{escape(span.name)}, chunk {span.chunk}: '
        f"{(span.end - span.begin) * 1e3:.2f} ms</title></rect>"
    )
    for text in (f"{span.name} {span.chunk}", str(span.chunk)):
        if width > LETTER * len(text):
            label = f'<text x="{left + 3:.1f}" y="{y + 15}" fill="#ffffff">{escape(text)}</text>'
            return [bar, label]
    return [bar]


def _axis(begin: float, end: float, scale: float, y: int) -> list[str]:
    """A line and a number at round seconds."""
    steps = [base * 10.0**power for power in range(-4, 4) for base in (1, 2, 5)]
    step = next(step for step in steps if (end - begin) / step <= TICKS)
    ticks = [n * step for n in range(round(begin / step), int(end / step) + 1) if n * step >= begin]
    parts = []
    for tick in ticks:
        x = LEFT + (tick - begin) * scale
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{y}" stroke="#dddddd"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{y + 15}" fill="#222222" text-anchor="middle">{tick:g} s</text>'
        )
    return parts


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("svg", type=Path)
    parser.add_argument("--begin", type=float, default=0.0, help="seconds")
    parser.add_argument("--end", type=float, help="seconds")
    options = parser.parse_args(given)
    spans = spans_of(json.loads(options.trace.read_text(encoding="utf-8")))
    options.svg.write_text(draw(spans, options.begin, options.end), encoding="utf-8")


if __name__ == "__main__":
    main()
