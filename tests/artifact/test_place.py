"""A folder takes the place of another, or nothing has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from llvq.artifact.place import take_place


def folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def test_it_takes_an_empty_place_and_one_that_is_taken(tmp_path: Path) -> None:
    place, old = tmp_path / "box", tmp_path / ".old"
    for content in ("first", "second"):
        take_place(folder(tmp_path / ".part", content), place, old)
        assert (place / "file").read_text() == content
        assert [entry.name for entry in tmp_path.iterdir()] == ["box"]


def test_what_was_there_stays_when_the_new_cannot_come(tmp_path: Path) -> None:
    place = folder(tmp_path / "box", "first")
    with pytest.raises(FileNotFoundError):
        take_place(tmp_path / "missing", place, tmp_path / ".old")
    assert (place / "file").read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["box"]
