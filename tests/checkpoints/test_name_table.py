from __future__ import annotations

from pathlib import Path

import pytest

from llvq.checkpoints.name_table import NameTable
from llvq.errors import CheckpointError

TABLE = NameTable(
    "ours", "theirs", (("a.{}.b.2", "x.{}.y"), ("a.{}.b.{}", "x.{}.z.{}"), ("same", "same"))
)
PATH = Path("m.pt")


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("a.0.b.2", "x.0.y"),
        ("a.10.b.2.weight", "x.10.y.weight"),
        ("a.3.b.4.bias", "x.3.z.4.bias"),
        ("same.weight", "same.weight"),
    ],
)
def test_it_goes_both_ways(left: str, right: str) -> None:
    assert TABLE.to_right(left) == right
    assert TABLE.to_left(right) == left


@pytest.mark.parametrize(
    "name", ["", ".", "a", "a.x.b.2", "a.{}.b.2", "a.{}.b.{}.weight", "a.0.b.2.c.d", "a.\u0663.b.2"]
)
def test_what_it_does_not_know(name: str) -> None:
    assert TABLE.to_right(name) is None and TABLE.to_left(name) is None


def test_names_are_put_into_the_left_spelling() -> None:
    names = {"x.1.y.weight": "file.1", "same.weight": "file.2", "odd": "file.3"}
    assert TABLE.in_left(names, PATH) == (
        {"a.1.b.2.weight": "file.1", "same.weight": "file.2", "odd": "file.3"},
        "theirs",
    )
    assert TABLE.in_left({"a.1.b.2.weight": "w"}, PATH) == ({"a.1.b.2.weight": "w"}, "ours")
    assert TABLE.in_left({"same.weight": "w"}, PATH) == ({"same.weight": "w"}, None)


def test_two_spellings_in_one_file_are_refused_with_one_name_of_each() -> None:
    with pytest.raises(CheckpointError, match=r"m\.pt mixes two spellings") as caught:
        TABLE.in_left({"a.1.b.2.weight": "f.ours", "x.1.y.weight": "f.theirs"}, PATH)
    assert caught.value.because == "f.ours is ours, f.theirs is theirs"
