"""What the readers share: the JSON beside a file, and sizes in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llvq.checkpoints.checkpoint import all_specs, json_beside, positive_int
from llvq.errors import CheckpointError
from llvq.sources import DictSource, TensorSpec


def test_specs_of_everything_and_no_tensor() -> None:
    tensors = {"a": torch.ones(2, 3), "b": torch.ones((), dtype=torch.bfloat16)}
    assert all_specs(DictSource(tensors)) == {
        "a": TensorSpec(torch.float32, (2, 3)),
        "b": TensorSpec(torch.bfloat16, ()),
    }


def test_json_beside_a_file_or_inside_a_folder(tmp_path: Path) -> None:
    assert json_beside(tmp_path / "m.pt", "config.json") == {}
    (tmp_path / "config.json").write_text('{"height": 64}')
    assert json_beside(tmp_path / "m.pt", "config.json") == {"height": 64}
    assert json_beside(tmp_path, "config.json") == {"height": 64}
    assert json_beside(tmp_path, "vae_config.json") == {}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"{", "config.json is not readable JSON"),
        (b"\xff\xfe", "config.json is not readable JSON"),
        (b"[" * 100_000, "config.json is not readable JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "config.json is not readable JSON"),
        (b"[1]", "config.json does not hold a JSON object"),
        (b"null", "config.json does not hold a JSON object"),
    ],
)
def test_json_that_is_no_object(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=what) as caught:
        json_beside(tmp_path / "m.pt", "config.json")
    lines = str(caught.value).splitlines()
    assert [line.split()[0] for line in lines] == ["error[checkpoint]:", "at", "because", "fix"]
    assert "delete it to use what the tensors say" in lines[3]


@pytest.mark.parametrize("value", [3, "3", "03"])
def test_sizes_are_numbers_or_their_digits(tmp_path: Path, value: object) -> None:
    assert positive_int(value, key="num_heads", where=tmp_path) == 3


@pytest.mark.parametrize(
    "value", [0, -1, 1.0, True, None, "", "-3", "3.0", [3], 2**31, "9" * 5000, 10**4000]
)
def test_what_is_no_size_names_its_key(tmp_path: Path, value: object) -> None:
    with pytest.raises(CheckpointError, match="is not a size") as caught:
        positive_int(value, key="num_heads", where=tmp_path)
    assert caught.value.fix == "correct num_heads in the config beside the checkpoint"
