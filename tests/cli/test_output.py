"""Where results may go."""

from __future__ import annotations

from pathlib import Path

import pytest

from llvq.cli.output import Kind, check_output
from llvq.errors import OutputError


def test_a_free_path_is_fine(tmp_path: Path) -> None:
    check_output(tmp_path / "a.mp4", force=False)
    check_output(tmp_path / "a.llvq", force=False, kind="box")


def test_a_taken_path_needs_force(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.touch()
    with pytest.raises(OutputError, match="there already"):
        check_output(video, force=False)
    check_output(video, force=True, kind="file")


@pytest.mark.parametrize("kind", ["box", "file"])
def test_force_never_takes_a_folder_of_somebody_else(tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(OutputError, match="not replaced"):
        check_output(tmp_path / "photos", force=True, kind=kind)


@pytest.mark.parametrize("kind", ["box", "file"])
def test_force_is_not_advised_where_it_would_not_help(tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(OutputError, match="there already") as caught:
        check_output(tmp_path / "photos", force=False, kind=kind)
    assert "--force" not in str(caught.value)


def test_a_link_to_a_box_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "manifest.json").touch()
    (tmp_path / "link").symlink_to("box")
    with pytest.raises(OutputError, match="not replaced"):
        check_output(tmp_path / "link", force=True, kind="box")


def test_a_dangling_link_is_taken_too(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match="there already"):
        check_output(tmp_path / "a.mp4", force=False)


def test_a_report_may_go_to_a_folder_that_is_there(tmp_path: Path) -> None:
    check_output(tmp_path, force=True)


def test_a_box_may_replace_a_box(tmp_path: Path) -> None:
    (tmp_path / "a.llvq").mkdir()
    (tmp_path / "a.llvq" / "manifest.json").touch()
    check_output(tmp_path / "a.llvq", force=True, kind="box")
