"""Linears with what follows them are, by reference, the ops that they replace, one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.dialect import (
    gate_residual,
    gelu_quantize,
    nvfp4_linear,
    nvfp4_linear_gate_residual,
    nvfp4_linear_gelu,
    nvfp4_linear_gelu_quantize,
    quantize,
    swizzle_scales,
)
from llvq.formats import nvfp4
from tests.backends.triton.compare import all_same

BF16, FP32 = torch.bfloat16, torch.float32
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP32])
FORMS = pytest.mark.parametrize(
    ("approximate", "rule"), [("tanh", "four_over_six"), ("none", "max")]
)


def operands(randn: Any, dtype: torch.dtype) -> tuple[tuple[Any, ...], Tensor]:
    """What such an op begins with, its weight two matrices; and what the linear gives."""
    x = nvfp4.quantize(randn(2, 6, 80))
    codes, scales, g = nvfp4.quantize(randn(48, 80), block_rule="four_over_six")
    rest = (torch.stack([g, g * 2]), randn(48, dtype=dtype), [16, 32], dtype)
    y = nvfp4_linear.reference(*x, codes, scales, *rest)
    return (*x, codes, swizzle_scales.reference(scales), *rest), y


@DTYPES
@FORMS
@pytest.mark.parametrize("smoothed", [True, False])
def test_gelu_quantize(
    check_op: Any, randn: Any, dtype: torch.dtype, approximate: str, rule: str, smoothed: bool
) -> None:
    given, y = operands(randn, dtype)
    smooth = randn(48, dtype=dtype) if smoothed else None
    rest = (approximate, rule, torch.tensor(0.02), smooth)
    found = check_op(nvfp4_linear_gelu_quantize, *given, *rest)
    assert all_same(found, gelu_quantize.reference(y, *rest))


@DTYPES
@FORMS
@pytest.mark.parametrize("smoothed", [True, False])
def test_gelu_with_the_scale_that_quantize_would_find(
    check_op: Any, randn: Any, dtype: torch.dtype, approximate: str, rule: str, smoothed: bool
) -> None:
    given, y = operands(randn, dtype)
    smooth = randn(48, dtype=dtype) if smoothed else None
    value, scale = check_op(nvfp4_linear_gelu, *given, approximate, rule, smooth)
    found = quantize.reference(value, rule, scale)
    assert all_same(found, gelu_quantize.reference(y, approximate, rule, None, smooth))


@DTYPES
@pytest.mark.parametrize("kind", [BF16, FP32])
@pytest.mark.parametrize("groups", [1, 3])
def test_gate_residual(
    check_op: Any, randn: Any, dtype: torch.dtype, kind: torch.dtype, groups: int
) -> None:
    given, y = operands(randn, dtype)
    rest = (randn(2, 6, 48, dtype=dtype), randn(2, groups, 48, dtype=kind))
    found = check_op(nvfp4_linear_gate_residual, *given, *rest)
    assert torch.equal(found, gate_residual.reference(rest[0], y, rest[1]))


def test_what_does_not_fit_is_refused(randn: Any) -> None:
    given, _ = operands(randn, BF16)
    on_meta = [t.to("meta") if isinstance(t, Tensor) else t for t in given]
    gate = torch.empty(2, 1, 48, device="meta")
    with pytest.raises(ValueError, match=r"gives \[2, 6, 48\], the residual \[2, 6, 32\]"):
        wrong = torch.empty(2, 6, 32, device="meta")
        nvfp4_linear_gate_residual.overload(*on_meta, wrong, gate)
    with pytest.raises(ValueError, match=r"w_scales is \[512\]"):
        on_meta[4] = torch.empty(512, dtype=torch.float8_e4m3fn, device="meta")
        nvfp4_linear_gelu.overload(*on_meta, "tanh", "max")
