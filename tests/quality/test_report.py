from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from llvq.errors import OutputError
from llvq.quality.comparison import Comparison
from llvq.quality.report import difference_image, html, png_uri, write_report
from llvq.quality.tables import all_tables

VOID = {"meta", "img"}


class Attributes(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.urls: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.urls += [v for k, v in attrs if k in ("src", "href") and v]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_what_a_judge_said_is_drawn_for_both_sides(found: Comparison) -> None:
    ((name, sides),) = found.video.judged.items()
    frames = [chunk.frames for chunk in found.video.quantized]
    assert frames[2] is not None
    assert name == "<brightness>" and sides["nvfp4"][2] == frames[2].float().mean()
    page = html(found)
    assert "<h2>&lt;brightness&gt;</h2>" in page
    chart = page.partition("&lt;brightness&gt;</h2>")[2].partition("</svg>")[0]
    assert chart.count("<polyline") == 2 and chart.count("<circle") == 4
    rows = {table.title: table.rows for table in all_tables(found)}["Judged"]
    assert [row[:2] for row in rows] == [(name, "BF16"), (name, "NVFP4")]
    assert found.to_dict()["judged"][name]["bf16"][0] == "nan"


def test_page_needs_nothing_else(found: Comparison, tmp_path: Path) -> None:
    page, data = write_report(found, tmp_path / "report")
    parser = Attributes()
    parser.feed(page.read_text(encoding="utf-8"))
    assert len(parser.urls) == 9
    assert all(url.startswith("data:image/png;base64,") for url in parser.urls)
    assert "script" not in parser.tags and "link" not in parser.tags
    assert parser.tags.count("svg") == 10
    assert parser.open == []
    assert json.loads(data.read_text())["measured"]["device"].startswith("cpu")


def test_tables_are_rectangular(found: Comparison) -> None:
    for table in all_tables(found):
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_unwritable_folder(found: Comparison, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="report"):
        write_report(found, tmp_path / "file")


def test_png_keeps_the_pixels() -> None:
    frame = torch.randint(0, 256, (6, 9, 3), dtype=torch.uint8)
    data = base64.b64decode(png_uri(frame).partition(",")[2])
    pixels = torch.tensor(list(Image.open(io.BytesIO(data)).getdata())).reshape(6, 9, 3)
    assert torch.equal(pixels.to(torch.uint8), frame)


def test_difference_is_amplified_and_saturates() -> None:
    a = torch.tensor([[[0, 100, 255]]], dtype=torch.uint8)
    b = torch.tensor([[[3, 90, 0]]], dtype=torch.uint8)
    assert difference_image(a, b).tolist() == [[[12, 40, 255]]]
