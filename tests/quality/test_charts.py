"""Charts: the place and length of what is drawn, and SVG that any reader takes."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import pytest

from llvq.quality.charts import (
    CHUNKS_NAMED,
    COLORS,
    DASHES,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    bars,
    curves,
)

ODD = [math.inf, -math.inf, math.nan, -3.0, 0.0]


def parse(svg: str) -> Element:
    return ElementTree.fromstring(svg)


def points(svg: str) -> list[np.ndarray]:
    """The points [n, 2] of every curve."""
    lines = parse(svg).findall("polyline")
    return [np.array([p.split(",") for p in ln.attrib["points"].split()], float) for ln in lines]


def test_bars_are_as_long_as_their_values() -> None:
    values = {"q": 10.0, "k": 20.0, "ffn.0": 5.0}
    svg = parse(bars(list(values.items()), unit="dB"))
    lengths = [float(rect.attrib["width"]) for rect in svg.findall("rect")]
    whole = WIDTH - LEFT - RIGHT
    np.testing.assert_allclose(lengths, [whole / 2, whole, whole / 4], atol=0.05)
    texts = [text.text for text in svg.findall("text")]
    assert texts == ["q", "10.00 dB", "k", "20.00 dB", "ffn.0", "5.00 dB"]


def test_bars_without_length_keep_their_label() -> None:
    svg = parse(bars([("<a & b>", value) for value in ODD], unit="dB"))
    assert {rect.attrib["width"] for rect in svg.findall("rect")} == {"0.0"}
    assert [text.text for text in svg.findall("text")][::2] == ["<a & b>"] * len(ODD)
    assert parse(bars([], unit="dB")).findall("rect") == []


def test_a_curve_is_an_affine_map_of_its_values() -> None:
    values = [30.0, 28.0, 29.5, 25.0]
    (found,) = points(curves({"free": values}, unit="dB"))
    steps = np.diff(found[:, 0])
    assert (steps > 0).all()
    np.testing.assert_allclose(steps, steps[0], atol=0.11)  # chunks are evenly spaced
    slope, _ = np.polyfit(values, found[:, 1], 1)
    assert slope < 0  # up is larger
    np.testing.assert_allclose(np.polyval(np.polyfit(values, found[:, 1], 1), values),
                               found[:, 1], atol=0.1)  # fmt: skip


def test_curves_share_one_scale_and_stay_inside() -> None:
    low, high = points(curves({"a": [0.0, 0.0], "b": [100.0, 100.0]}, unit="dB"))
    assert (low[:, 1] > high[:, 1]).all()
    svg = parse(curves({"a": [0.0], "b": [100.0]}, unit="dB"))
    grid = [float(line.attrib["y1"]) for line in svg.findall("line")]
    circles = [float(dot.attrib["cy"]) for dot in svg.findall("circle")]
    assert min(grid) < min(circles) < max(circles) < max(grid) < float(svg.attrib["height"])


def test_points_that_are_not_finite_are_left_out() -> None:
    svg = curves({"a": [1.0, math.inf, 3.0], "gone": [math.nan] * 3}, unit="dB")
    (found,) = points(svg)
    assert len(found) == len(parse(svg).findall("circle")) == 2
    assert "gone" not in svg


def test_a_line_keeps_its_colour_and_dash_beside_one_that_is_gone() -> None:
    lines = {"gone": [math.nan], "here": [1.0]}
    (line,) = parse(curves(lines, unit="dB")).findall("polyline")
    assert (line.attrib["stroke"], line.attrib["stroke-dasharray"]) == (COLORS[1], DASHES[1])


def test_names_follow_each_other_and_have_the_stroke_of_their_line() -> None:
    svg = parse(curves({"gone": [math.nan], "a": [1.0], "b": [2.0]}, unit="dB"))
    lines = svg.findall("line")[-2:]
    heights = [float(t.attrib["y"]) for t in svg.findall("text") if t.text in ("a", "b")]
    assert heights[0] < TOP + 18 < heights[1] < TOP + 36
    strokes = [line.attrib["stroke"] for line in svg.findall("polyline")]
    assert [line.attrib["stroke"] for line in lines] == strokes


@pytest.mark.parametrize("count", [0, 1, 20, 21, 90, 1500])
def test_numbers_of_chunks_do_not_lie_on_each_other(count: int) -> None:
    svg = parse(curves({"a": [1.0] * count}, unit="dB"))
    texts = [t for t in svg.findall("text") if t.attrib.get("text-anchor") == "middle"]
    assert len(texts) <= CHUNKS_NAMED and all(int(text.text or "") < count for text in texts)
    places = [float(text.attrib["x"]) for text in texts]
    assert all(b - a > 25 for a, b in pairwise(places))


@pytest.mark.parametrize("lines", [{"a": ODD, "b": [1.0] * 5}, {"a": [5.0]}, {"a": [math.nan]}, {}])
def test_charts_are_xml_whatever_the_numbers(lines: dict[str, list[float]]) -> None:
    svg = parse(curves(lines, unit="<dB>"))
    assert "nan" not in ElementTree.tostring(svg, encoding="unicode")
    assert [t.text for t in svg.findall("text")].count("chunk; vertical: <dB>") == 1
