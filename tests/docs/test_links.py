"""What the pages point at is there, and the index has every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate import DOCS

ROOT = DOCS.parent
PAGES = sorted(DOCS.glob("*.md"))


def name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    links = re.findall(r"\]\(([^)#:]+)\)", prose)
    assert [link for link in links if not (DOCS / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:llvq|tests|examples|docs)/[\w./-]+)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "README.md"], ids=name)
def test_the_index_has_every_page(page: Path) -> None:
    assert f"]({page.name})" in (DOCS / "README.md").read_text(encoding="utf-8")
