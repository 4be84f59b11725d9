from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llvq.checkpoints.source import open_tensors
from llvq.errors import CheckpointError

A = {"a": torch.zeros(2)}


def test_no_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        open_tensors(tmp_path / "model.safetensors")


def test_metadata_is_kept(tmp_path: Path) -> None:
    save_file(A, tmp_path / "m.safetensors", metadata={"num_heads": "24"})
    assert open_tensors(tmp_path / "m.safetensors").metadata == {"num_heads": "24"}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int32, torch.bool, torch.float64])
def test_dtypes_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a": torch.ones(4).to(dtype)}, tmp_path / "m.safetensors")
    source = open_tensors(tmp_path / "m.safetensors")
    assert source.spec("a").dtype == source.read("a").dtype == dtype


def test_rows_are_read_alone(tmp_path: Path) -> None:
    values = torch.arange(12.0).reshape(6, 2)
    save_file({"a": values, "one": torch.tensor(2.5)}, tmp_path / "m.safetensors")
    source = open_tensors(tmp_path / "m.safetensors")
    assert torch.equal(source.read_rows("a", 1, 4), values[1:4])
    assert torch.equal(source.read("one"), torch.tensor(2.5))


def test_a_file_that_is_gone_when_it_is_read(tmp_path: Path) -> None:
    save_file(A, tmp_path / "m.safetensors")
    source = open_tensors(tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"m\.safetensors is damaged"):
        source.read_rows("a", 0, 1)
