from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llvq.checkpoints.source import open_tensors
from llvq.errors import CheckpointError

A, B = {"a": torch.zeros(2)}, {"b": torch.ones(3)}


def write(folder: Path, **shards: dict[str, torch.Tensor]) -> None:
    for name, tensors in shards.items():
        save_file(tensors, folder / f"{name}.safetensors")


def write_index(folder: Path, weight_map: object) -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def test_a_folder_with_an_index_reads_the_listed_shards_only(tmp_path: Path) -> None:
    write(tmp_path, one=A, two=B, vae={"a": torch.ones(9)})
    write_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    source = open_tensors(tmp_path)
    assert source.names() == ("a", "b")
    assert torch.equal(source.read("b"), B["b"])


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    write(tmp_path, model=A)
    assert open_tensors(tmp_path).names() == ("a",)


def test_a_folder_with_a_numbered_set_and_no_index(tmp_path: Path) -> None:
    write(tmp_path, **{"m-00001-of-00002": A, "m-00002-of-00002": B})
    assert open_tensors(tmp_path).names() == ("a", "b")


@pytest.mark.parametrize("names", [("dit", "vae"), ("m-00001-of-00003", "m-00002-of-00003"), ()])
def test_a_folder_that_is_not_one_checkpoint(tmp_path: Path, names: tuple[str, ...]) -> None:
    write(tmp_path, **{name: {name: torch.zeros(1)} for name in names})
    with pytest.raises(CheckpointError, match="not one checkpoint"):
        open_tensors(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, one=A)
    write_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(CheckpointError, match="1 of 2 shards") as caught:
        open_tensors(tmp_path)
    assert "two.safetensors" in str(caught.value)


@pytest.mark.parametrize("weight_map", [{"a": "../a.safetensors"}, {"a": 3}, [], None])
def test_a_bad_index(tmp_path: Path, weight_map: object) -> None:
    write(tmp_path, one=A)
    write_index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match="not an index"):
        open_tensors(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    write(tmp_path, **{"m-00001-of-00002": A, "m-00002-of-00002": A})
    with pytest.raises(CheckpointError, match="more than one shard"):
        open_tensors(tmp_path)


def test_no_tensors(tmp_path: Path) -> None:
    write(tmp_path, model={})
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
