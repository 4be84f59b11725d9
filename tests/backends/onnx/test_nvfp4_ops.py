"""Operators on NVFP4 values: their references against ONNX by its FP4 type, and by table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.errors import TargetError
from llvq.formats import nvfp4
from tests.backends.onnx.conftest import error, run_as, translated

llvq = torch.ops.llvq
RANDOM = torch.Generator().manual_seed(2)
DIALECTS = ("standard", "portable", "trt")


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=RANDOM)


def rules_of(dialect: str) -> tuple[str, ...]:
    return ("max",) if dialect == "trt" else ("max", "four_over_six")


PAIRS = [(dialect, rule) for dialect in DIALECTS for rule in rules_of(dialect)]


def there_and_back(rule: str, static: Tensor | None = None) -> Any:
    def function(x: Tensor) -> Tensor:
        packed = llvq.quantize.default(x, rule, static)
        parts = [packed[index] for index in range(3)]
        return llvq.dequantize.default(*parts, [], torch.float32)

    return function


@pytest.mark.parametrize("shape", [(3, 5, 64), (7, 16)])
@pytest.mark.parametrize(("dialect", "rule"), PAIRS)
def test_values_are_those_of_the_reference(
    dialect: str, rule: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """fp32 noise has no ties, so a quotient that is an ulp off moves nothing."""
    x = rand(*shape) * torch.rand(shape, generator=RANDOM).exp2()
    (found,) = run_as(dialect, tmp_path, there_and_back(rule), x)
    assert error(found, there_and_back(rule)(x)) < 1e-6


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(("dialect", "rule"), PAIRS)
def test_zeros_small_and_large_blocks(dialect: str, rule: str, tmp_path: Path) -> None:
    x = torch.zeros(6, 32)
    x[1], x[2, :16], x[3, 3], x[4] = 1e-30, 300.0, -2.5e5, rand(32) * 1e-9
    (found,) = run_as(dialect, tmp_path, there_and_back(rule), x)
    assert error(found, there_and_back(rule)(x)) < 1e-6
    (nothing,) = run_as(dialect, tmp_path, there_and_back(rule), torch.zeros(2, 16))
    assert not nothing.any()


@pytest.mark.parametrize(("dialect", "rule"), PAIRS)
def test_a_static_scale_saturates(dialect: str, rule: str, tmp_path: Path) -> None:
    x, static = rand(4, 32) * 9, torch.tensor(1.0 / 2688)
    (found,) = run_as(dialect, tmp_path, there_and_back(rule, static), x)
    assert abs(found).max() <= 1.0
    assert error(found, there_and_back(rule, static)(x)) < 1e-6


def stacked(rows: tuple[int, ...], k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices of different magnitude, each with its own global scale."""
    parts = [nvfp4.quantize(rand(n, k) * 10.0**i) for i, n in enumerate(rows)]
    codes, scales = (torch.cat([part[i].view(torch.uint8) for part in parts]) for i in (0, 1))
    return codes, scales.view(torch.float8_e4m3fn), torch.stack([part[2] for part in parts])


def linear(rule: str, rows: tuple[int, ...], k: int, *, bias: bool) -> Any:
    weight, vector = stacked(rows, k), rand(sum(rows)) if bias else None

    def function(x: Tensor) -> Tensor:
        packed = llvq.quantize.default(x, rule)
        parts = [packed[index] for index in range(3)]
        return llvq.nvfp4_linear.default(*parts, *weight, vector, list(rows), torch.float32)

    return function


@pytest.mark.parametrize("rows", [(16,), (16, 32, 8)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_linear_of_stacked_weights(
    dialect: str, bias: bool, rows: tuple[int, ...], tmp_path: Path
) -> None:
    function, x = linear("max", rows, 48, bias=bias), rand(2, 5, 48)
    (found,) = run_as(dialect, tmp_path, function, x)
    assert error(found, function(x)) < 1e-6


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_weight_is_decoded(dialect: str, tmp_path: Path) -> None:
    weight = stacked((8, 8), 32)

    def function(x: Tensor) -> Tensor:
        decoded = llvq.dequantize.default(*weight, [8, 8], torch.float32)
        return torch.ops.aten.add.Tensor(decoded, x)

    (found,) = run_as(dialect, tmp_path, function, torch.zeros(1))
    assert error(found, function(torch.zeros(1))) == 0


FUSED: dict[str, tuple[Any, tuple[Tensor, ...]]] = {
    "norm": (lambda x, a, b: llvq.norm_modulate_quantize.default(x, a, b, 1e-6, "max"),
             (rand(1, 6, 32), rand(1, 3, 32), rand(1, 3, 32))),
    "gelu": (lambda x: llvq.gelu_quantize.default(x, "tanh", "max"), (rand(2, 3, 32),)),
}  # fmt: skip
SMOOTH = rand(32).exp()
FUSED["gelu-smooth"] = (
    lambda x: llvq.gelu_quantize.default(x, "tanh", "max", None, SMOOTH), (rand(2, 3, 32),)
)  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_producers_that_quantize(dialect: str, name: str, tmp_path: Path) -> None:
    producer, tensors = FUSED[name]

    def unpacked(packed: Any) -> Tensor:
        parts = [packed[index] for index in range(3)]
        return llvq.dequantize.default(*parts, [], torch.float32)

    functions = {
        1: lambda x: unpacked(producer(x)),
        3: lambda x, a, b: unpacked(producer(x, a, b)),
    }
    function = functions[len(tensors)]
    (found,) = run_as(dialect, tmp_path, function, *tensors)
    assert error(found, function(*tensors)) < 1e-5


def test_a_rule_that_a_dialect_cannot_express_is_refused_with_a_recipe_that_works() -> None:
    with pytest.raises(TargetError, match="four_over_six") as caught:
        translated("trt", there_and_back("four_over_six"), rand(2, 16))
    fix = str(caught.value.fix)
    assert 'activation_rule = "max"' in fix and "--dialect standard" in fix
    with pytest.raises(TargetError, match="mse_sweep"):
        translated("portable", there_and_back("mse_sweep"), rand(2, 16))


def test_codes_are_no_output() -> None:
    with pytest.raises(TargetError, match="returns NVFP4 codes"):
        translated("standard", lambda x: llvq.quantize.default(x, "max")[0], rand(2, 16))
