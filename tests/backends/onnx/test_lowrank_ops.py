"""The low-rank branch: its references against two runtimes of ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backends.onnx.conftest import error, run_as
from tests.backends.onnx.test_nvfp4_ops import DIALECTS, rand, stacked

llvq = torch.ops.llvq


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_branch_is_added(dialect: str, tmp_path: Path) -> None:
    down, up = rand(4, 32), rand(6, 4)
    tensors = rand(2, 3, 6), rand(2, 3, 32)

    def function(y: Tensor, x: Tensor) -> Tensor:
        return llvq.lowrank_add.default(y, x, down, up)

    (found,) = run_as(dialect, tmp_path, function, *tensors)
    assert error(found, function(*tensors)) < 1e-6


@pytest.mark.parametrize("rows", [(16,), (16, 8)])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_linear_with_branches(dialect: str, rows: tuple[int, ...], tmp_path: Path) -> None:
    weight, bias = stacked(rows, 32), rand(sum(rows))
    down, up = rand(3 * len(rows), 32), rand(sum(rows), 3)

    def function(x: Tensor) -> Any:
        packed = llvq.quantize_lowrank.default(x, down, "max")
        parts = [packed[index] for index in range(4)]
        return llvq.nvfp4_linear_lowrank.default(
            *parts[:3], *weight, bias, parts[3], up, list(rows), torch.float32
        )

    x = rand(2, 5, 32)
    (found,) = run_as(dialect, tmp_path, function, x)
    assert error(found, function(x)) < 1e-6
