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


@pytest.mark.parametrize("names", [("dit", "vae"), ("m-00001-of-00001", "m-00002-of-00001"), ()])
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


@pytest.mark.parametrize("there", [("m-00001-of-00003",), ("m-00001-of-00003", "m-00003-of-00003")])
def test_missing_shards_of_a_numbered_set(tmp_path: Path, there: tuple[str, ...]) -> None:
    write(tmp_path, **{name: {name: torch.zeros(1)} for name in there})
    with pytest.raises(CheckpointError, match=f"{3 - len(there)} of 3 shards") as caught:
        open_tensors(tmp_path)
    assert "m-00002-of-00003.safetensors" in str(caught.value)


def test_one_shard_named_instead_of_the_folder(tmp_path: Path) -> None:
    write(tmp_path, **{"m-00001-of-00002": A, "m-00002-of-00002": B})
    with pytest.raises(CheckpointError, match="one shard of 2") as caught:
        open_tensors(tmp_path / "m-00001-of-00002.safetensors")
    assert caught.value.fix == f"name the folder: {tmp_path}"


@pytest.mark.parametrize(
    ("index", "because"),
    [
        ({"a": "one.safetensors"}, "b is in one.safetensors"),
        ({"a": "one.safetensors", "b": "two.safetensors"}, "b is not in two.safetensors"),
        (
            {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"},
            "d is in two.safetensors",
        ),
    ],
)
def test_an_index_that_disagrees_with_the_shards(
    tmp_path: Path, index: dict[str, str], because: str
) -> None:
    write(tmp_path, one=A | B, two={"c": torch.zeros(1), "d": torch.zeros(1)})
    write_index(tmp_path, index)
    with pytest.raises(CheckpointError, match="the index and the shards disagree") as caught:
        open_tensors(tmp_path)
    assert because in str(caught.value)


def test_an_empty_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, **{"m-00001-of-00002": A})
    (tmp_path / "m-00002-of-00002.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00002\.safetensors is empty"):
        open_tensors(tmp_path)


def test_pickled_shards_are_to_be_converted(tmp_path: Path) -> None:
    torch.save(A, tmp_path / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(CheckpointError, match="not one checkpoint") as caught:
        open_tensors(tmp_path)
    assert "save_pretrained" in str(caught.value)


BAD = [
    {"a": "../a.safetensors"},
    {"a": 3},
    {"a": "one.bin"},
    {"a": "o\0.safetensors"},
    {},
    [],
    None,
]


@pytest.mark.parametrize("weight_map", BAD)
def test_a_bad_index(tmp_path: Path, weight_map: object) -> None:
    write(tmp_path, one=A)
    write_index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match="not an index"):
        open_tensors(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    write(tmp_path, **{"m-00001-of-00002": A, "m-00002-of-00002": A})
    with pytest.raises(CheckpointError, match="more than one shard"):
        open_tensors(tmp_path)
