from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from llvq.checkpoints.source import open_tensors
from llvq.errors import CheckpointError
from llvq.sources import TensorSpec

TENSORS = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}


def save_as(name: str, path: Path) -> None:
    if name.endswith(".safetensors"):
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=not name.startswith("old"))


def refused(path: Path, *words: str) -> None:
    """Opening `path` gives one error of four lines that holds `words`."""
    with pytest.raises(CheckpointError) as caught:
        open_tensors(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.pth", "x.ckpt", "old.pth"])
def test_a_file_gives_its_tensors(tmp_path: Path, name: str) -> None:
    save_as(name, tmp_path / name)
    source = open_tensors(tmp_path / name)
    assert sorted(source.names()) == sorted(TENSORS)
    for key, tensor in TENSORS.items():
        assert source.spec(key) == TensorSpec(tensor.dtype, tuple(tensor.shape))
        assert torch.equal(source.read(key), tensor)


@pytest.mark.parametrize("kind", ["x.safetensors", "x.pt", "old.pt"])
@pytest.mark.parametrize("name", ["weights", "y.bin", "y.pt"])
def test_the_content_decides_and_not_the_name(tmp_path: Path, kind: str, name: str) -> None:
    save_as(kind, tmp_path / kind)
    (tmp_path / kind).rename(tmp_path / name)
    assert sorted(open_tensors(tmp_path / name).names()) == sorted(TENSORS)


def test_a_torch_file_named_as_safetensors(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "x.pt")
    (tmp_path / "x.pt").rename(tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "not a safetensors file")


def test_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "no.pt", "no such file")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_an_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    refused(tmp_path / name, "empty", "0 bytes")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"1234")
    refused(tmp_path / "film.mp4", "no known checkpoint kind", "torch.save")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_a_git_lfs_pointer(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(tmp_path / name, "git-lfs pointer", "git lfs pull")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "old.pth"])
@settings(max_examples=120, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_a_checkpoint_error_or_read(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    whole = tmp_path / f"whole-{name}"
    if not whole.exists():
        save_as(name, whole)
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    damaged = tmp_path / name
    damaged.write_bytes(content)
    try:
        source = open_tensors(damaged)
        for key in source.names():
            assert tuple(source.read(key).shape) == source.spec(key).shape
    except CheckpointError as error:
        assert error.because and error.fix
