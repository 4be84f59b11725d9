"""The picture of a trace has a bar per span; the committed picture is of the committed trace."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from docs.draw_timeline import LEFT, WIDTH, draw, main
from docs.generate import DOCS
from llvq.runtime.timeline import Span, spans_of, trace_of

IMAGES = DOCS / "images"
SPANS = [
    Span("denoise", "denoise", 0.0, 2.0, 0),
    Span("decode <1>", "decode & copy", 2.0, 4.0, 0),
    Span("denoise", "denoise", 2.0, 3.0, 1),
]
NAMESPACE = "{http://www.w3.org/2000/svg}"


def bars(text: str) -> list[ET.Element]:
    root = ET.fromstring(text)
    return [e for e in root.iter(f"{NAMESPACE}rect") if e.find(f"{NAMESPACE}title") is not None]


def test_a_bar_lies_where_its_span_does() -> None:
    first, later, decode = bars(draw(SPANS))
    assert first.get("y") == later.get("y") != decode.get("y")
    assert float(first.get("x") or 0) == LEFT
    assert float(later.get("x") or 0) == float(decode.get("x") or 0)
    ends = [float(bar.get("x") or 0) + float(bar.get("width") or 0) for bar in (first, decode)]
    assert ends[0] == pytest.approx((LEFT + WIDTH - 10) / 2, abs=0.2)
    assert ends[1] == pytest.approx(WIDTH - 10, abs=0.2)
    assert first.get("fill") == decode.get("fill") != later.get("fill"), "a colour per chunk"


def test_a_part_is_cut_out() -> None:
    found = bars(draw(SPANS, 2.5, 3.5))
    assert len(found) == 2
    assert [float(bar.get("x") or 0) for bar in found] == [LEFT, LEFT]


def test_seconds_are_written_below() -> None:
    texts = [e.text for e in ET.fromstring(draw(SPANS)).iter(f"{NAMESPACE}text")]
    assert {"0 s", "1 s", "4 s", "denoise", "decode & copy", "denoise 0"} <= set(texts)


def test_a_trace_becomes_a_file(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(trace_of(SPANS)))
    main([str(tmp_path / "t.json"), str(tmp_path / "t.svg"), "--end", "3"])
    assert (tmp_path / "t.svg").read_text() == draw(SPANS, 0.0, 3.0)


def test_the_committed_picture_is_of_the_committed_trace() -> None:
    spans = spans_of(json.loads((IMAGES / "overlap.json").read_text()))
    assert (IMAGES / "overlap.svg").read_text() == draw(spans, 5.2, 8.2)
