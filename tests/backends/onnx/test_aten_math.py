"""ATen operators that compute: torch against onnx.reference and onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.backends.onnx.aten_math import TABLE
from llvq.errors import TargetError
from tests.backends.onnx.conftest import error, run_as, traced, translated

aten = torch.ops.aten
RANDOM = torch.Generator().manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=RANDOM)


ROWS, KERNEL = rand(6, 8), rand(4, 3, 1, 2, 2)

CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "add": (lambda x, y: aten.add.Tensor(x, y), (rand(2, 3, 8), rand(3, 1))),
    "add-number": (lambda x: aten.add.Tensor(x, 3), (rand(2, 8),)),
    "sub": (lambda x, y: aten.sub.Tensor(x, y), (rand(2, 8), rand(8))),
    "mul": (lambda x, y: aten.mul.Tensor(x, y), (rand(2, 8), rand(2, 1))),
    "mul-inexact": (lambda x: aten.mul.Tensor(x, 11.313708498984761), (rand(2, 8),)),
    "div": (lambda x, y: aten.div.Tensor(x, y), (rand(2, 8), rand(8))),
    "neg": (lambda x: aten.neg.default(x), (rand(2, 8),)),
    "cos": (lambda x: aten.cos.default(x), (rand(2, 8).double() * 900,)),
    "sin": (lambda x: aten.sin.default(x), (rand(2, 8).double() * 900,)),
    "clamp-min": (lambda x: aten.clamp_min.default(x, 0.25), (rand(2, 8),)),
    "silu": (lambda x: aten.silu.default(x), (rand(2, 8) * 9,)),
    "gelu": (lambda x: aten.gelu.default(x), (rand(2, 8) * 9,)),
    "gelu-tanh": (lambda x: aten.gelu.default(x, approximate="tanh"), (rand(2, 8) * 9,)),
    "norm": (lambda x: aten.linalg_vector_norm.default(x, 2.0, [1], True), (rand(2, 8, 3),)),
    "norm-dropped": (lambda x: aten.linalg_vector_norm.default(x, 2.0, [-1]), (rand(2, 8),)),
    "layer-norm": (lambda x: aten.layer_norm.default(x, [8], None, None, 1e-6), (rand(2, 8),)),
    "layer-norm-affine": (
        lambda x, w, b: aten.layer_norm.default(x, [8], w, b, 1e-6, False),
        (rand(2, 5, 8), rand(8), rand(8)),
    ),
    "linear": (lambda x: aten.linear.default(x, ROWS), (rand(2, 3, 8),)),
    "linear-bias": (lambda x, w, b: aten.linear.default(x, w, b),
                    (rand(3, 8), rand(6, 8), rand(6))),
    "conv2d": (lambda x, w: aten.conv2d.default(x, w, None, [1, 2], [1, 0]),
               (rand(2, 3, 5, 7), rand(4, 3, 3, 3))),
    "conv2d-groups": (
        lambda x, w, b: aten.conv2d.default(x, w, b, [1, 1], [2, 2], [2, 2], 6),
        (rand(1, 6, 5, 7), rand(6, 1, 3, 3), rand(6)),
    ),
    "conv3d": (lambda x: aten.conv3d.default(x, KERNEL, None, [1, 2, 2]),
               (rand(1, 3, 2, 4, 6),)),
    "to": (lambda x: aten.to.dtype(x, torch.float32), (rand(2, 8).double(),)),
}  # fmt: skip


@pytest.mark.parametrize("dialect", ["standard", "portable"])
@pytest.mark.parametrize("name", CASES)
def test_others_compute_what_torch_does(name: str, dialect: str, tmp_path: Path) -> None:
    function, tensors = CASES[name]
    (found,) = run_as(dialect, tmp_path, function, *tensors)
    assert error(found, function(*tensors)) < 1e-6


IN_FP32 = ("cos", "sin", "to", "linear", "conv3d")
"""Positions, a cast, and those that close over fp32 weights."""


@pytest.mark.parametrize("name", [name for name in CASES if name not in IN_FP32])
def test_bf16_is_rounded_as_torch_does(name: str, tmp_path: Path) -> None:
    """A bias is added after the product is rounded, which is one rounding more than torch's."""
    function, tensors = CASES[name]
    halves = [x.bfloat16() for x in tensors]
    (found,) = run_as("standard", tmp_path, function, *halves)
    assert found.dtype.name == "bfloat16"
    assert error(found, function(*halves)) < 2**-8


def test_a_number_that_bf16_does_not_hold_is_multiplied_in_fp32(tmp_path: Path) -> None:
    x = rand(64).bfloat16()
    (found,) = run_as("standard", tmp_path, lambda a: aten.mul.Tensor(a, 11.313708498984761), x)
    assert error(found, x * 11.313708498984761) == 0


def test_what_an_operator_may_do_elsewhere_is_refused() -> None:
    with pytest.raises(TargetError, match="order 1"):
        translated("standard", lambda x: aten.linalg_vector_norm.default(x, 1), rand(3))
    with pytest.raises(TargetError, match=r"aten\.add\.Tensor is called in a form") as caught:
        translated("standard", lambda x: aten.add.Tensor(x, x, alpha=2), rand(3))
    assert caught.value.because is not None and "alpha" in caught.value.because


def test_every_operator_is_tried() -> None:
    tried = {str(node.target) for function, tensors in CASES.values()
             for node in traced(function, *tensors)[0].graph.nodes
             if node.op == "call_function"}  # fmt: skip
    assert tried == set(TABLE)
