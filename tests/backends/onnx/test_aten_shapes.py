"""ATen operators that move elements: torch against onnx.reference and onnxruntime, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.backends.onnx.aten_shapes import TABLE
from llvq.errors import TargetError
from tests.backends.onnx.conftest import error, run_as, traced, translated

aten = torch.ops.aten


def count(*shape: int) -> Tensor:
    """Whole numbers up to 256, which bf16 holds."""
    return (torch.arange(torch.Size(shape).numel()) % 251).float().reshape(shape)


CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "reshape": (lambda x: aten.reshape.default(x, [3, -1]), (count(2, 3, 4),)),
    "permute": (lambda x: aten.permute.default(x, [0, -1, 1]), (count(2, 3, 4),)),
    "expand": (lambda x: aten.expand.default(x, [5, -1, 4]), (count(2, 1),)),
    "expand-same": (lambda x: aten.expand.default(x, [-1, 4]), (count(2, 4),)),
    "expand-as": (lambda x, y: aten.expand_as.default(x, y), (count(2, 1), count(2, 3))),
    "clone": (lambda x: aten.clone.default(x), (count(2, 3),)),
    "cat": (lambda x, y: aten.cat.default([x, y], -1), (count(2, 3), count(2, 1))),
    "cat-empty": (lambda x, y: aten.cat.default([x, y]), (count(0, 3), count(2, 3))),
    "split": (lambda x: aten.split_with_sizes.default(x, [1, 3], -1), (count(2, 4),)),
    "chunk": (lambda x: aten.chunk.default(x, 3, 1), (count(2, 7),)),
    "unbind": (lambda x: aten.unbind.int(x, 1), (count(2, 3, 4),)),
    "select": (lambda x: aten.select.int(x, -1, 2), (count(2, 3, 4),)),
    "index-select": (lambda x: aten.index_select.default(x, 1, torch.tensor([2, 0, 2])),
                     (count(2, 3, 4),)),
    "slice": (lambda x: aten.slice.Tensor(x, 2, -2, 2**63 - 1), (count(2, 3, 4),)),
    "slice-step": (lambda x: aten.slice.Tensor(x, -1, 1, None, 2), (count(2, 9),)),
    "upsample": (lambda x: aten._upsample_nearest_exact2d.vec(x, None, [2.0, 3.0]),
                 (count(2, 3, 4, 5),)),
}  # fmt: skip


@pytest.mark.parametrize("dialect", ["standard", "portable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_others_move_elements_as_torch_does(
    name: str, dtype: torch.dtype, dialect: str, tmp_path: Path
) -> None:
    function, tensors = CASES[name]
    given = [x.to(dtype) for x in tensors]
    wanted = function(*given)
    wanted = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
    found = run_as(dialect, tmp_path, function_of_results(function), *given)
    assert [error(a, b) for a, b in zip(found, wanted, strict=True)] == [0.0] * len(wanted)


def function_of_results(function: Callable[..., Any]) -> Callable[..., Any]:
    """A stage returns a tuple of tensors; what gives a list is taken apart."""
    parts = {CASES["split"][0]: 2, CASES["chunk"][0]: 3, CASES["unbind"][0]: 3}
    if function not in parts:
        return function

    def taken_apart(x: Tensor) -> tuple[Tensor, ...]:
        results = function(x)
        return tuple(results[index] for index in range(parts[function]))

    return taken_apart


def test_an_upsampling_by_a_fraction_is_refused() -> None:
    with pytest.raises(TargetError, match="from 4x4 to"):
        translated(
            "standard",
            lambda x: aten._upsample_nearest_exact2d.vec(x, None, [1.5, 1.5]),
            count(1, 1, 4, 4),
        )


def test_every_operator_is_tried() -> None:
    tried = {str(node.target) for function, tensors in CASES.values()
             for node in traced(function_of_results(function), *tensors)[0].graph.nodes
             if node.op == "call_function"}  # fmt: skip
    assert set(TABLE) <= tried
