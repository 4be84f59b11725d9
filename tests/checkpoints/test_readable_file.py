from __future__ import annotations

from pathlib import Path

import pytest

from llvq.checkpoints.readable_file import check_readable
from llvq.errors import CheckpointError


def test_a_file_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"x")
    check_readable(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_what_is_no_file_to_read(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        check_readable(tmp_path / "m.pt")
    assert words in str(caught.value) and len(str(caught.value).splitlines()) == 4


def test_a_folder_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        check_readable(tmp_path)
