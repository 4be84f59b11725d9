"""Where the rows of a weight lie in its bytes."""

from __future__ import annotations

import torch

from llvq.backends.onnx.records import Weight


def test_rows_of_a_weight() -> None:
    weight = Weight("w", torch.bfloat16, (6, 4, 2))
    rows = weight.rows(2, 3)
    assert (weight.offset, weight.nbytes) == (0, 96)
    assert (rows.shape, rows.offset, rows.nbytes) == ((3, 4, 2), 32, 48)


def test_one_of_several_scalars() -> None:
    scalar = Weight("g", torch.float32, (3,)).rows(2, 1)
    assert (scalar.offset, scalar.nbytes) == (8, 4)
