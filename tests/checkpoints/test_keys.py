from __future__ import annotations

import pytest
import torch

from llvq.checkpoints.keys import check_keys
from llvq.errors import CheckpointError
from llvq.sources import TensorSpec


def specs(**shapes: tuple[int, ...]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(torch.bfloat16, shape) for name, shape in shapes.items()}


def test_equal_keys_pass_whatever_their_precision() -> None:
    check_keys({"a": TensorSpec(torch.float32, (2,))}, specs(a=(2,)), "the model")


def test_one_error_says_everything() -> None:
    with pytest.raises(CheckpointError) as caught:
        check_keys(specs(a=(2,), c=(3,), d=(5,)), specs(a=(4,), b=(1,), d=(5,)), "the model")
    text = str(caught.value)
    assert "1 missing, 1 surplus, 1 misshapen" in text
    assert "missing: b [1]" in text
    assert "surplus: c [3]" in text
    assert "misshapen: a is [2], not [4]" in text


def test_integers_where_floats_belong() -> None:
    with pytest.raises(CheckpointError, match="misshapen") as caught:
        check_keys({"a": TensorSpec(torch.int8, (2,))}, specs(a=(2,)), "the model")
    assert "torch.int8, not floating point" in str(caught.value)


def test_long_lists_are_grouped_by_block_and_no_pattern_is_lost() -> None:
    expected = specs(**{f"blocks.{i}.{n}.0.weight": (2,) for i in range(30) for n in ("q", "k")})
    with pytest.raises(CheckpointError) as caught:
        check_keys({}, expected | specs(**{"head.0.weight": (2,)}), "the model")
    text = str(caught.value)
    assert "61 missing" in text
    assert "blocks.*.q.0.weight [2] (x30)" in text
    assert "blocks.*.k.0.weight [2] (x30)" in text
    assert "head.0.weight [2]" in text
    assert len(text) < 400
