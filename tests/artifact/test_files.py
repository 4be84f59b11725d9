from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from llvq.artifact.files import check_bytes, check_files, files_in, sha256_of
from llvq.errors import ArtifactError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "a.json").write_bytes(b"{}")
    return tmp_path


TABLE = {"graphs/a.json": {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}}


def test_a_table_that_fits(root: Path) -> None:
    (root / "report").mkdir()
    (root / "report" / "any.md").write_text("any")
    (root / "kernels").mkdir()
    check_files(root, TABLE)
    check_bytes(root, TABLE)
    assert [path for path, _ in files_in(root)] == ["report/any.md", "graphs/a.json"]


def test_many_surplus_files_are_counted(root: Path) -> None:
    for i in range(9):
        (root / "graphs" / f"b{i}.json").touch()
    with pytest.raises(ArtifactError, match=r"'graphs/b0.json'.* and 4 more are not of the box"):
        check_files(root, TABLE)


def test_a_pipe_is_not_opened(root: Path) -> None:
    os.mkfifo(root / "graphs" / "pipe")
    with pytest.raises(ArtifactError, match="graphs/pipe' is not a plain file"):
        check_files(root, TABLE)


def test_weights_may_be_left_unhashed(root: Path) -> None:
    (root / "weights").mkdir()
    (root / "weights" / "0").write_bytes(b"x")
    table = {"weights/0": {"bytes": 1, "sha256": "0" * 64}}
    check_bytes(root, table, skip_weights=True)
    with pytest.raises(ArtifactError, match="weights/0 is damaged"):
        check_bytes(root, table)


def test_sha256_of_a_file(root: Path) -> None:
    assert sha256_of(root / "graphs" / "a.json") == hashlib.sha256(b"{}").hexdigest()
