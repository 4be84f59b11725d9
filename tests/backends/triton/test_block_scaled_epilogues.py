"""Linears of Blackwell with epilogues: the numbers of the ops that they replace, bit for
bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor

from llvq import dialect
from llvq.backends.triton.block_scaled_gemm import nvfp4_linear, nvfp4_linear_sm120
from llvq.backends.triton.epilogue_linears import ON_SM100, ON_SM120
from llvq.dialect import DIALECT
from llvq.formats import nvfp4
from llvq.runtime.self_check import distance
from tests.backends.triton.compare import all_same, relative_error, same_bytes
from tests.backends.triton.test_block_scaled_gemm import ON_BLACKWELL, stacked
from tests.backends.triton.test_gelu import activated

BF16, FP32 = torch.bfloat16, torch.float32
LINEARS = {"": nvfp4_linear, "_sm120": nvfp4_linear_sm120}
TILES = pytest.mark.parametrize("tile", LINEARS, ids=["sm100", "sm120"])
CASES = pytest.mark.parametrize(
    ("lead", "segments", "features", "bias", "dtype"),
    [
        ((1, 1), (16,), 16, False, BF16),
        ((2, 65), (112, 32), 80, True, BF16),
        ((1, 5), (272,), 48, True, FP32),
    ],
)
FORMS = pytest.mark.parametrize(
    ("approximate", "rule", "smoothed"), [("tanh", "four_over_six", False), ("none", "max", True)]
)


def wrapper(op: str, tile: str) -> Any:
    return getattr(ON_SM120 if tile else ON_SM100, op)


def operands(
    randn: Any,
    lead: tuple[int, ...],
    segments: tuple[int, ...],
    features: int,
    bias: bool,
    dtype: torch.dtype,
) -> tuple[Any, ...]:
    """What the linear takes, scales of the weight in atoms as a loader leaves them."""
    x = nvfp4.quantize(randn(*lead, features), block_rule="four_over_six")
    codes, scales, g = stacked(randn, segments, features)
    b = randn(sum(segments), dtype=dtype) if bias else None
    listed = [] if len(segments) == 1 else list(segments)
    return (*x, codes, DIALECT["swizzle_scales"].reference(scales), g, b, listed, dtype)


def activation(launch: Any, y: Tensor, approximate: str, smooth: Tensor | None) -> Tensor:
    """Of the kernel, which `test_gelu` holds against torch; then smoothed by torch."""
    parts = [activated(launch, part, approximate) for part in y.flatten().split(2048)]
    value = torch.cat(parts).view(y.shape)
    assert relative_error(value, F.gelu(y, approximate=approximate)) <= 2**-7
    return value if smooth is None else value * smooth


@ON_BLACKWELL
@TILES
@CASES
@FORMS
def test_codes_are_those_of_two_ops(
    launch: Any,
    randn: Any,
    device: torch.device,
    tile: str,
    lead: tuple[int, ...],
    segments: tuple[int, ...],
    features: int,
    bias: bool,
    dtype: torch.dtype,
    approximate: str,
    rule: str,
    smoothed: bool,
) -> None:
    given = operands(randn, lead, segments, features, bias, dtype)
    smooth = randn(sum(segments), dtype=dtype) if smoothed else None
    g = torch.tensor(0.03, device=device)
    y = activation(launch, LINEARS[tile](launch, *given), approximate, smooth)
    arguments = (*given, approximate, rule, g, smooth)
    found = wrapper("gelu_quantize", tile)(launch, *arguments)
    assert all_same(found, dialect.quantize.reference(y, rule, g))


@ON_BLACKWELL
@TILES
@CASES
@FORMS
def test_a_dynamic_scale_is_that_of_the_whole_tensor(
    launch: Any,
    randn: Any,
    tile: str,
    lead: tuple[int, ...],
    segments: tuple[int, ...],
    features: int,
    bias: bool,
    dtype: torch.dtype,
    approximate: str,
    rule: str,
    smoothed: bool,
) -> None:
    """Rows and columns that a tile has beyond the tensor are no part of it."""
    given = operands(randn, lead, segments, features, bias, dtype)
    smooth = randn(sum(segments), dtype=dtype) if smoothed else None
    y = activation(launch, LINEARS[tile](launch, *given), approximate, smooth)
    arguments = (*given, approximate, rule, smooth)
    found = wrapper("gelu", tile)(launch, *arguments)
    assert all_same(found, (y, nvfp4.global_scale(nvfp4.amax_of(y), rule)))


@ON_BLACKWELL
@TILES
@pytest.mark.parametrize("at", [(0, 0), (70, 255)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_scale_is_that_of_what_is_not_finite_too(
    launch: Any, randn: Any, tile: str, at: tuple[int, int], value: float
) -> None:
    """In the first tile and in the last; and of a tensor of zeros."""
    given = list(operands(randn, (1, 71), (256,), 32, True, BF16))
    if value == 0.0:
        given[5], given[6] = given[5] * 0, given[6] * 0
    else:
        given[6][at[1]] = value
    _, found = wrapper("gelu", tile)(launch, *given, "tanh", "max")
    wanted = 1.0 if value == 0.0 else float("nan")
    assert same_bytes(found, torch.tensor(wanted, device=found.device))


@ON_BLACKWELL
@TILES
@CASES
@pytest.mark.parametrize(
    ("stream", "kind", "groups"), [(BF16, BF16, 1), (BF16, FP32, 5), (FP32, FP32, 1)]
)
def test_residuals_are_those_of_two_ops(
    launch: Any,
    randn: Any,
    tile: str,
    lead: tuple[int, ...],
    segments: tuple[int, ...],
    features: int,
    bias: bool,
    dtype: torch.dtype,
    stream: torch.dtype,
    kind: torch.dtype,
    groups: int,
) -> None:
    """The residual and the gate are slices of something wider."""
    given = operands(randn, lead, segments, features, bias, dtype)
    groups, width = groups if lead[1] % groups == 0 else 1, sum(segments)
    residual = randn(*lead, 2 * width, dtype=stream)[..., width:]
    gate = randn(lead[0], groups, 3 * width, dtype=kind)[..., width : 2 * width]
    y = LINEARS[tile](launch, *given)
    found = wrapper("gate_residual", tile)(launch, *given, residual, gate)
    assert same_bytes(found, dialect.gate_residual.reference(residual, y, gate))


@ON_BLACKWELL
@TILES
def test_they_are_within_the_tolerance_of_their_ops(launch: Any, randn: Any, tile: str) -> None:
    """Whose references round operands before they multiply; and they give the same bytes again."""
    given = operands(randn, (1, 40), (64,), 96, True, BF16)
    g = torch.tensor(0.05, device=given[0].device)
    calls = {
        "gelu_quantize": ("tanh", "four_over_six", g),
        "gelu": ("tanh", "four_over_six"),
        "gate_residual": (randn(1, 40, 64), randn(1, 4, 64)),
    }
    for name, rest in calls.items():
        op = DIALECT[f"nvfp4_linear_{name}"]
        runs = [wrapper(name, tile)(launch, *given, *rest) for _ in range(2)]
        results = [pytree.tree_leaves(run) for run in (*runs, op.reference(*given, *rest))]
        for found, again, wanted in zip(*results, strict=True):
            assert same_bytes(found, again)
            if found.itemsize == 1:
                off, allowed = distance(op, found, wanted)
                assert off <= allowed == op.tolerance.flipped
            else:
                assert relative_error(found, wanted) <= op.tolerance.relative
