"""NVFP4 ops: what they return is what the format says; fused ones are their parts, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.dialect import (
    dequantize,
    gelu_quantize,
    norm_modulate,
    norm_modulate_quantize,
    nvfp4_linear,
    quantize,
)
from llvq.formats import nvfp4

BF16, FP32 = torch.bfloat16, torch.float32
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP32])
RULES = pytest.mark.parametrize("block_rule", nvfp4.BLOCK_RULES)


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    """Equal byte for byte; fp8 has no `torch.equal` everywhere."""
    pairs = zip(found, expected, strict=True)
    return all(
        a.dtype == b.dtype
        and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
        for a, b in pairs
    )


@DTYPES
@RULES
@pytest.mark.parametrize("shape", [(1, 16), (7, 48), (1, 3, 32), (2, 5, 3, 16)])
def test_quantize_is_the_format(
    check_op: Any, randn: Any, dtype: torch.dtype, block_rule: str, shape: tuple[int, ...]
) -> None:
    x = randn(*shape, dtype=dtype)
    found = check_op(quantize, x, block_rule)
    assert same(found, tuple(nvfp4.quantize(x, block_rule=block_rule)))
    assert found[0].shape == (*shape[:-1], shape[-1] // 2)
    assert found[1].shape == (*shape[:-1], shape[-1] // 16)


@RULES
@pytest.mark.parametrize("g", [1e-4, 2e-3, 1.0])
def test_quantize_with_a_static_scale_is_the_format(
    check_op: Any, randn: Any, block_rule: str, g: float
) -> None:
    """Too small a scale saturates, too large a one loses small values; neither is an error."""
    x, scale = randn(7, 48), torch.tensor(g)
    found = check_op(quantize, x, block_rule, scale)
    assert same(found, tuple(nvfp4.quantize(x, block_rule=block_rule, global_scale=scale)))
    assert found[2] == scale and found[2].data_ptr() != scale.data_ptr()


@pytest.mark.parametrize("times", [1.0, 4.0, 0.5])
def test_quantize_with_a_static_scale_is_that_of_modelopt(randn: Any, times: float) -> None:
    """Block scales that the static scale cannot reach saturate there as here."""
    oracle = pytest.importorskip("modelopt.torch.quantization.qtensor").NVFP4QTensor
    x = randn(24, 64)
    scale = x.abs().amax() / (6 * 448) * times
    codes, scales, _ = quantize.overload(x, "max", scale)
    packed, wanted, _ = oracle.quantize(x.clone(), 16, weights_scaling_factor_2=scale)
    assert same((codes, scales), (packed._quantized_data, wanted))


def test_quantize_of_a_strided_view(check_op: Any, randn: Any) -> None:
    x = randn(5, 4, 32).transpose(0, 1)
    assert same(check_op(quantize, x, "max"), quantize.reference(x.contiguous(), "max"))


def test_quantize_of_zeros_is_zero(check_op: Any) -> None:
    codes, scales, global_scale = check_op(quantize, torch.zeros(3, 32), "four_over_six")
    assert not codes.any() and not scales.float().any() and global_scale == 1


@DTYPES
@pytest.mark.parametrize("shape", [(1, 16), (7, 48), (1, 3, 32)])
def test_dequantize_is_the_format(
    check_op: Any, randn: Any, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    held = nvfp4.quantize(randn(*shape), block_rule="max")
    found = check_op(dequantize, *held, [], dtype)
    assert torch.equal(found, nvfp4.dequantize(*held, dtype))


def stacked(randn: Any, rows: tuple[int, ...], features: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of very different size, quantized one by one and stacked."""
    parts = [nvfp4.quantize(randn(count, features) * 4.0**i) for i, count in enumerate(rows)]
    codes, scales = (torch.cat([part[i].view(torch.uint8) for part in parts]) for i in (0, 1))
    return codes, scales.view(torch.float8_e4m3fn), torch.stack([part[2] for part in parts])


def test_dequantize_gives_each_segment_its_own_global_scale(check_op: Any, randn: Any) -> None:
    codes, scales, globals_ = stacked(randn, (3, 1, 5), 32)
    found = check_op(dequantize, codes, scales, globals_, [3, 1, 5], FP32)
    bounds = ((0, 3), (3, 4), (4, 9))
    expected = [nvfp4.dequantize(codes[a:b], scales[a:b], globals_[i], FP32)
                for i, (a, b) in enumerate(bounds)]  # fmt: skip
    assert torch.equal(found, torch.cat(expected))


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("tokens", "segments"), [(1, ()), (7, ()), (5, (3, 8))])
def test_nvfp4_linear_is_its_parts(
    check_op: Any,
    randn: Any,
    dtype: torch.dtype,
    bias: bool,
    tokens: int,
    segments: tuple[int, ...],
) -> None:
    x = quantize.overload(randn(1, tokens, 48, dtype=dtype), "four_over_six")
    if segments:
        w = stacked(randn, segments, 48)
    else:
        w = tuple(nvfp4.quantize(randn(11, 48), block_rule="four_over_six"))
    b = randn(11, dtype=dtype) if bias else None
    found = check_op(nvfp4_linear, *x, *w, b, list(segments), dtype)
    wide = dequantize.overload(*w, list(segments), dtype)
    assert torch.equal(found, F.linear(dequantize.overload(*x, [], dtype), wide, b))


def test_nvfp4_linear_is_near_the_linear(randn: Any) -> None:
    x, w = randn(1, 64, 256), randn(128, 256)
    held_x, held_w = (nvfp4.quantize(t, block_rule="four_over_six") for t in (x, w))
    found = nvfp4_linear.reference(*held_x, *held_w, None, (), FP32)
    error = (found - F.linear(x, w)).norm() / F.linear(x, w).norm()
    assert error < 0.15


def test_nvfp4_linear_refuses_reduction_dims_that_differ(randn: Any) -> None:
    x, w = nvfp4.quantize(randn(2, 32)), nvfp4.quantize(randn(3, 48))
    arguments = [t.to("meta") for t in (*x, *w)]
    with pytest.raises(ValueError, match="x has K = 32, the weight has K = 48"):
        nvfp4_linear.overload(*arguments, None, [], BF16)


@DTYPES
@pytest.mark.parametrize("modulation", [BF16, FP32])
@pytest.mark.parametrize(("groups", "tokens"), [(1, 1), (1, 7), (3, 9), (5, 5)])
def test_norm_modulate_quantize_is_its_parts(
    check_op: Any,
    randn: Any,
    dtype: torch.dtype,
    modulation: torch.dtype,
    groups: int,
    tokens: int,
) -> None:
    x = randn(1, tokens, 48, dtype=dtype)
    scale, shift = (randn(1, groups, 48, dtype=modulation) for _ in range(2))
    for static in (None, torch.tensor(2e-3)):
        found = check_op(norm_modulate_quantize, x, scale, shift, 1e-6, "four_over_six", static)
        y = norm_modulate.overload(x, scale, shift, 1e-6)
        assert same(found, quantize.overload(y, "four_over_six", static))


@DTYPES
@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("tokens", [1, 7])
def test_gelu_quantize_is_its_parts(
    check_op: Any, randn: Any, dtype: torch.dtype, approximate: str, tokens: int
) -> None:
    x = randn(1, tokens, 48, dtype=dtype)
    y = F.gelu(x, approximate=approximate)
    for smooth in (None, randn(48, dtype=dtype)):
        for static in (None, torch.tensor(2e-3)):
            found = check_op(gelu_quantize, x, approximate, "four_over_six", static, smooth)
            wanted = y if smooth is None else y * smooth
            assert same(found, quantize.overload(wanted, "four_over_six", static))
