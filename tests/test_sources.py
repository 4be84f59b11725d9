"""Sources in memory, under other names, and joined."""

from __future__ import annotations

import pytest
import torch

from llvq.errors import CheckpointError
from llvq.sources import DictSource, JoinedSource, RenamedSource, TensorSource, TensorSpec

A, ONE = torch.arange(12.0).reshape(6, 2), torch.tensor(2.5)
HELD = DictSource({"a": A, "one": ONE})
JOINED = JoinedSource([("x.", HELD), ("", RenamedSource(HELD, {"b": "a"}))])


@pytest.mark.parametrize(
    ("source", "name"), [(HELD, "a"), (RenamedSource(HELD, {"b": "a"}), "b"), (JOINED, "x.a")]
)
def test_a_tensor_is_seen_read_and_read_by_rows(source: TensorSource, name: str) -> None:
    assert name in source.names()
    assert source.spec(name) == TensorSpec(torch.float32, (6, 2))
    assert torch.equal(source.read(name), A)
    assert torch.equal(source.read_rows(name, 2, 5), A[2:5])


def test_names_of_a_joined_source_have_the_prefix() -> None:
    assert JOINED.names() == ("x.a", "x.one", "b")


def test_a_weight_that_no_file_holds() -> None:
    with pytest.raises(CheckpointError, match="no file holds the weight 'zzz'"):
        JOINED.read_rows("zzz", 0, 1)
    with pytest.raises(CheckpointError, match="no tensor 'zzz'"):
        HELD.spec("zzz")


def test_bytes_of_a_spec() -> None:
    assert TensorSpec(torch.bfloat16, (3, 5)).nbytes == 30
    assert TensorSpec(torch.float32, ()).nbytes == 4
