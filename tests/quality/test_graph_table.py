from __future__ import annotations

from html.parser import HTMLParser

import pytest

from llvq.quality.graph_table import graph_table, numbers
from llvq.quality.side_by_side import Call, Likeness, Row

KEPT = Call("aten.add", "bf16[2,4]", "ffn")
GONE = Call("aten.linear", "bf16[2,4]", "ffn.0 <b>")
CAME = Call("llvq.nvfp4_linear", "bf16[2,4]", "ffn.0", rule="nvfp4-linear")


class Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.classes: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "td":
            self.classes.append(dict(attrs).get("class"))


def test_sides_are_told_apart_and_text_is_escaped() -> None:
    rows = (Row(KEPT, KEPT), Row(GONE, CAME, changed=True), Row(GONE, None, changed=True))
    page = graph_table("denoise", [Likeness((0, 1), rows)], 2)
    cells = Cells()
    cells.feed(page)
    assert cells.classes == ["same", "same", "gone", "come", "gone", None]
    assert "Stage denoise, blocks 0-1 of 2" in page
    assert "&lt;b&gt;" in page and page.count("nvfp4-linear</span>") == 1


@pytest.mark.parametrize(
    ("blocks", "text"),
    [((3,), "block 3"), ((0, 1, 2), "blocks 0-2"), ((0, 1, 5, 7, 8), "blocks 0-1 5 7-8")],
)
def test_numbers_of_blocks(blocks: tuple[int, ...], text: str) -> None:
    assert numbers(blocks) == text
