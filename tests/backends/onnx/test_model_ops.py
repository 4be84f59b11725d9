"""Operators of a video transformer: their references in PyTorch against two runtimes of ONNX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.backends.onnx.model_ops import TABLE
from llvq.errors import TargetError
from tests.backends.onnx.conftest import error, run_as, traced, translated

llvq = torch.ops.llvq
RANDOM = torch.Generator().manual_seed(1)


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=RANDOM)


def angles(tokens: int, width: int) -> tuple[Tensor, Tensor]:
    turned = rand(tokens, width) * 3
    return turned.cos(), turned.sin()


COS, SIN = angles(6, 4)
CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "attention": (lambda q, k, v: llvq.attention.default(q, k, v),
                  (rand(2, 6, 3, 8), rand(2, 5, 3, 8), rand(2, 5, 3, 4))),
    "attention-scaled": (lambda q, k, v: llvq.attention.default(q, k, v, None, 0.3),
                         (rand(1, 1, 1, 8), rand(1, 7, 1, 8), rand(1, 7, 1, 8))),
    "rms-norm": (lambda x, w: llvq.rms_norm.default(x, w, 1e-6, True), (rand(2, 5, 8), rand(8))),
    "rms-norm-late": (lambda x, w: llvq.rms_norm.default(x, w, 1e-6, False),
                      (rand(3, 16), rand(16))),
    "rope": (lambda x: llvq.rope.default(x, COS, SIN), (rand(2, 6, 3, 8),)),
    "rms-norm-rope": (lambda x, w: llvq.rms_norm_rope.default(x, w, COS, SIN, 2, 1e-6, True),
                      (rand(1, 6, 16), rand(16))),
    "norm-modulate": (lambda x, a, b: llvq.norm_modulate.default(x, a, b, 1e-6),
                      (rand(2, 6, 8), rand(2, 3, 8), rand(2, 3, 8))),
    "norm-modulate-one": (lambda x, a, b: llvq.norm_modulate.default(x, a, b, 1e-6),
                          (rand(1, 7, 8), rand(1, 1, 8), rand(1, 1, 8))),
    "gate-residual": (lambda x, y, g: llvq.gate_residual.default(x, y, g),
                      (rand(2, 6, 8), rand(2, 6, 8), rand(2, 2, 8))),
}  # fmt: skip


@pytest.mark.parametrize("dialect", ["standard", "portable"])
@pytest.mark.parametrize("name", CASES)
def test_others_compute_what_the_reference_does(name: str, dialect: str, tmp_path: Path) -> None:
    function, tensors = CASES[name]
    (found,) = run_as(dialect, tmp_path, function, *tensors)
    assert error(found, function(*tensors)) < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_bf16_is_rounded_where_the_reference_rounds(name: str, tmp_path: Path) -> None:
    function, tensors = CASES[name]
    halves = [x.bfloat16() for x in tensors]
    (found,) = run_as("standard", tmp_path, function, *halves)
    assert found.dtype.name == "bfloat16"
    assert error(found, function(*halves)) < 2**-8


@pytest.mark.parametrize("name", ["norm-modulate", "gate-residual"])
def test_an_fp32_vector_rounds_once(name: str, tmp_path: Path) -> None:
    """Nothing but the last rounding: almost every element is the same."""
    function, (x, *vectors) = CASES[name]
    given = [x.bfloat16(), *vectors]
    if name == "gate-residual":
        given[1] = given[1].bfloat16()
    (found,) = run_as("standard", tmp_path, function, *given)
    assert error(found, function(*given)) < 2**-11


def test_a_mask_is_refused() -> None:
    x, mask = rand(1, 4, 1, 8), torch.ones(4, 4, dtype=torch.bool)
    with pytest.raises(TargetError, match="attention with a mask"):
        translated("standard", lambda q, m: llvq.attention.default(q, q, q, m), x, mask)


def test_every_operator_is_tried() -> None:
    tried = {str(node.target) for function, tensors in CASES.values()
             for node in traced(function, *tensors)[0].graph.nodes
             if node.op == "call_function"}  # fmt: skip
    assert tried == set(TABLE)
