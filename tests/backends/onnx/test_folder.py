"""A folder of models: whole or not there, and nothing else is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from llvq.backends.onnx.folder import OnnxFolder, check_replaceable
from llvq.errors import OutputError


def fill(path: Path, text: str, *, overwrite: bool = False) -> None:
    with OnnxFolder(path, overwrite=overwrite) as folder:
        (folder / "a.onnx").write_text(text)
        (folder / "weights.onnx.data").write_text(text)


def test_it_appears_when_it_is_whole(tmp_path: Path) -> None:
    with OnnxFolder(tmp_path / "m") as folder:
        (folder / "a.onnx").write_text("x")
        assert not (tmp_path / "m").exists()
    assert (tmp_path / "m" / "a.onnx").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_behind(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), OnnxFolder(tmp_path / "m") as folder:
        (folder / "a.onnx").write_text("x")
        raise error
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    full = OSError(28, "No space left on device")
    with pytest.raises(OutputError, match="could not") as caught, OnnxFolder(tmp_path / "m"):
        raise full
    assert caught.value.because == "No space left on device"
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError):
        fill(tmp_path / "missing" / "m", "x")


def test_models_are_replaced_when_asked_for(tmp_path: Path) -> None:
    fill(tmp_path / "m", "old")
    with pytest.raises(OutputError, match="is there already") as caught:
        fill(tmp_path / "m", "new")
    assert "--force" in str(caught.value.fix)
    fill(tmp_path / "m", "new", overwrite=True)
    assert (tmp_path / "m" / "a.onnx").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("kind", ["empty", "other", "file", "link"])
def test_nothing_else_is_replaced(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    if kind == "file":
        path.write_text("x")
    elif kind == "link":
        fill(tmp_path / "real", "x")
        path.symlink_to(tmp_path / "real")
    else:
        path.mkdir()
        (path / "a.onnx").write_text("x")
        (path / ("a.onnx" if kind == "empty" else "thesis.txt")).write_text("x")
    if kind == "empty":
        (path / "a.onnx").unlink()
    with pytest.raises(OutputError) as caught:
        check_replaceable(path, overwrite=True)
    assert "--force" not in str(caught.value.fix)
