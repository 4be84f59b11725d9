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
from llvq.quality.report import difference_image, png_uri, write_report
from llvq.quality.tables import all_tables


class Attributes(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.urls += [v for k, v in attrs if k in ("src", "href") and v]


def test_page_needs_nothing_else(found: Comparison, tmp_path: Path) -> None:
    page, data = write_report(found, tmp_path / "report")
    parser = Attributes()
    parser.feed(page.read_text(encoding="utf-8"))
    assert len(parser.urls) == 9
    assert all(url.startswith("data:image/png;base64,") for url in parser.urls)
    assert "script" not in parser.tags and "link" not in parser.tags
    assert parser.tags.count("svg") == 8
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
