"""FP8 ops: codes and scales are those of torchao, products those of torch's own fp8 GEMM, and fused
ops are their parts, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchao.quantization.quant_primitives import _choose_scale_float8, _quantize_affine_float8

from llvq.dialect import (
    add_norm_quantize_fp8,
    dequantize,
    fp8_linear,
    fp8_norm_scale,
    gate_residual,
    gelu_quantize_fp8,
    norm_modulate,
    norm_modulate_quantize_fp8,
    quantize_fp8,
    rms_norm_rope,
    rms_norm_rope_fp8,
    widen,
)
from llvq.formats import fp8, nvfp4

BF16, FP32, E4M3 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP32])
SHAPES = pytest.mark.parametrize("shape", [(1, 16), (7, 48), (1, 3, 33), (2, 5, 3, 16)])


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Equal byte for byte; fp8 has no `torch.equal` everywhere."""
    pairs = zip(found, expected, strict=True)
    return all(
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
        for a, b in pairs
    )


def held(randn: Any, rows: Sequence[int], k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of very different size, quantized one by one and stacked."""
    parts = [nvfp4.quantize(randn(count, k) * 4.0**i) for i, count in enumerate(rows)]
    codes, scales = (torch.cat([part[i].view(torch.uint8) for part in parts]) for i in (0, 1))
    return codes, scales.view(E4M3), torch.stack([part[2] for part in parts])


def scaled_mm(x: Tensor, w: Tensor) -> Tensor:
    """The fp8 GEMM of torch, whole tensors with scale 1: x [N, K] with w [F, K], fp32."""
    one = torch.ones(())
    return torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, out_dtype=FP32)


@DTYPES
@SHAPES
def test_quantize_fp8_is_that_of_torchao(
    check_op: Any, randn: Any, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x = randn(*shape, dtype=dtype)
    values, scale = check_op(quantize_fp8, x)
    assert values.shape == shape and scale.shape == (*shape[:-1], 1)
    rows = (*[1] * (len(shape) - 1), shape[-1])
    assert torch.equal(scale, _choose_scale_float8(x.float(), rows, E4M3))
    assert same([values], [_quantize_affine_float8(x.float(), scale, E4M3)])


def test_quantize_fp8_of_a_strided_view(check_op: Any, randn: Any) -> None:
    x = randn(2, 33, 5).transpose(1, 2)
    assert same(check_op(quantize_fp8, x), quantize_fp8.reference(x.contiguous()))


def test_a_row_of_zeros_is_zero_and_one_with_nan_is_nan(check_op: Any, randn: Any) -> None:
    x = randn(1, 4, 33)
    x[0, 1], x[0, 2, 7] = 0, torch.nan
    values, scale = check_op(quantize_fp8, x)
    assert scale[0, 1] == 1 and not values.float()[0, 1].any()
    assert scale[0, 2].isnan() and (values.float() * scale)[0, ::3].isfinite().all()


@pytest.mark.parametrize(("rows", "k"), [((1,), 16), ((11,), 48), ((3, 1, 7), 80)])
def test_widen_gives_each_row_its_own_scale(
    check_op: Any, randn: Any, rows: tuple[int, ...], k: int
) -> None:
    weight = held(randn, rows, k)
    values, scale = check_op(widen, *weight, list(rows))
    wide = dequantize.overload(*weight, list(rows), FP32)
    assert torch.equal(scale.unsqueeze(-1), _choose_scale_float8(wide, (1, k), E4M3))
    assert same([values], [_quantize_affine_float8(wide, scale.unsqueeze(-1), E4M3)])
    error = (values.float() * scale.unsqueeze(-1) - wide).norm(dim=-1) / wide.norm(dim=-1)
    assert (error < 0.04).all()


def test_widen_of_zeros_is_zero_and_of_nan_is_nan(check_op: Any, randn: Any) -> None:
    w = randn(5, 32)
    w[2] = 0
    codes, scales, g = nvfp4.quantize(w)
    scales.view(torch.uint8)[3, 1] = 0x7F  # NaN
    values, scale = check_op(widen, codes, scales, g.reshape(1), [5])
    assert scale[2] == 1 and not values[2].float().any()
    assert scale[3].isnan() and scale[:3].isfinite().all() and scale[4].isfinite()


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("tokens", "rows", "k"), [(1, 11, 48), (7, 1, 16), (33, 65, 80)])
def test_fp8_linear_is_the_fp8_gemm_of_torch(
    check_op: Any, randn: Any, dtype: torch.dtype, bias: bool, tokens: int, rows: int, k: int
) -> None:
    x = quantize_fp8.overload(randn(1, tokens, k, dtype=dtype))
    w = widen.overload(*held(randn, (rows,), k), [rows])
    b = randn(rows, dtype=dtype) if bias else None
    found = check_op(fp8_linear, *x, *w, b, dtype)
    product = scaled_mm(x[0][0], w[0]) * x[1][0] * w[1]
    expected = (product if b is None else product + b.float()).to(dtype)
    close = {"rtol": 2**-8, "atol": 1e-5} if dtype == BF16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found[0], expected, **close)


def test_fp8_linear_is_near_the_linear(randn: Any) -> None:
    """Nearer than NVFP4 on both sides, which is within 0.15: 0.09 of NVFP4 weights, 0.03 of FP8."""
    x, w = randn(1, 64, 256), randn(128, 256)
    weight = nvfp4.quantize(w, block_rule="four_over_six")
    wide = widen.reference(*weight[:2], weight.global_scale.reshape(1), [128])
    found = fp8_linear.reference(*quantize_fp8.reference(x), *wide, None, FP32)
    exact = F.linear(x, w)
    same_weight = F.linear(x, nvfp4.dequantize(*weight, FP32))
    assert (found - exact).norm() / exact.norm() < 0.1
    assert (found - same_weight).norm() / exact.norm() < 0.05


def test_fp8_linear_refuses_reduction_dims_that_differ() -> None:
    x, w = (torch.empty(n, k, dtype=E4M3, device="meta") for n, k in ((2, 32), (3, 48)))
    scales = (torch.empty(n, device="meta") for n in (2, 3))
    with pytest.raises(ValueError, match="x has K = 32, the weight has K = 48"):
        fp8_linear.overload(x, next(scales).unsqueeze(-1), w, next(scales), None, BF16)


@DTYPES
@pytest.mark.parametrize("modulation", [BF16, FP32])
@pytest.mark.parametrize(("groups", "tokens"), [(1, 1), (1, 7), (3, 9), (5, 5)])
def test_norm_modulate_quantize_fp8_is_its_parts(
    check_op: Any,
    randn: Any,
    dtype: torch.dtype,
    modulation: torch.dtype,
    groups: int,
    tokens: int,
) -> None:
    x = randn(2, tokens, 48, dtype=dtype)
    scale, shift = (randn(2, groups, 48, dtype=modulation) for _ in range(2))
    found = check_op(norm_modulate_quantize_fp8, x, scale, shift, 1e-6)
    assert same(found, quantize_fp8.overload(norm_modulate.overload(x, scale, shift, 1e-6)))


@DTYPES
@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("tokens", [1, 7])
def test_gelu_quantize_fp8_is_its_parts(
    check_op: Any, randn: Any, dtype: torch.dtype, approximate: str, tokens: int
) -> None:
    x = randn(1, tokens, 48, dtype=dtype)
    y = F.gelu(x, approximate=approximate)
    for smooth in (None, randn(48, dtype=dtype)):
        found = check_op(gelu_quantize_fp8, x, approximate, smooth)
        assert same(found, quantize_fp8.overload(y if smooth is None else y * smooth))


@DTYPES
@pytest.mark.parametrize("gate", [None, BF16, FP32])
@pytest.mark.parametrize("norm", ["modulated", "modulated in fp32", "affine", "without bias"])
@pytest.mark.parametrize(("groups", "tokens"), [(1, 1), (1, 7), (3, 9), (5, 5)])
def test_add_norm_quantize_fp8_is_its_parts(
    check_op: Any,
    randn: Any,
    dtype: torch.dtype,
    gate: torch.dtype | None,
    norm: str,
    groups: int,
    tokens: int,
) -> None:
    x, y = (randn(2, tokens, 48, dtype=dtype) for _ in range(2))
    gates = None if gate is None else randn(2, groups, 48, dtype=gate)
    scale, shift = (randn(2, groups, 48, dtype=FP32 if "fp32" in norm else dtype) for _ in range(2))
    weight, bias = (randn(48, dtype=dtype) for _ in range(2))
    total = x + y if gates is None else gate_residual.overload(x, y, gates)
    if "modulated" in norm:
        parameters = (scale, shift, None, None)
        normed = norm_modulate.overload(total, scale, shift, 1e-6)
    else:
        parameters = (None, None, weight, bias if norm == "affine" else None)
        normed = torch.layer_norm(total, (48,), *parameters[2:], 1e-6)
    found = check_op(add_norm_quantize_fp8, x, y, gates, *parameters, 1e-6)
    assert same(found, (total, *quantize_fp8.overload(normed)))


def test_add_norm_quantize_fp8_of_strided_views(check_op: Any, randn: Any) -> None:
    x, y = (randn(1, 48, 5).transpose(1, 2) for _ in range(2))
    found = check_op(add_norm_quantize_fp8, x, y, None, None, None, None, None, 1e-6)
    assert all(t.is_contiguous() for t in found)


def test_a_norm_has_one_kind_of_parameters() -> None:
    x, vector = torch.empty(1, 3, 48, device="meta"), torch.empty(1, 1, 48, device="meta")
    call = add_norm_quantize_fp8.overload
    with pytest.raises(ValueError, match="a scale and a shift, or there is none"):
        call(x, x, None, vector, None, None, None, 1e-6)
    with pytest.raises(ValueError, match="modulated, or it has weight and bias, not both"):
        call(x, x, None, vector, vector, vector[0, 0], None, 1e-6)


@DTYPES
def test_a_norm_never_leaves_its_scale(check_op: Any, randn: Any, dtype: torch.dtype) -> None:
    """One channel has all of a row, and its pair is turned so that it grows most."""
    width, weight = 48, randn(48, dtype=dtype)
    rows = torch.eye(width, dtype=dtype) * 7.0
    pairs = rows + rows.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    for x, turn in ((rows, 1.0), (pairs, 2**0.5)):
        scale = check_op(fp8_norm_scale, weight, width**0.5 * turn)
        normed = F.rms_norm(x.float(), (width,), weight.float(), 0.0)
        angle = torch.pi / 4 if turn > 1 else 0.0
        even, odd = normed.unflatten(-1, (-1, 2)).unbind(-1)
        longest = (even * torch.tensor(angle).cos() + odd * torch.tensor(angle).sin()).abs().max()
        assert scale.shape == (1,) and longest <= scale * 448 * (1 + 1e-6)
    assert check_op(fp8_norm_scale, torch.zeros_like(weight), 4.0) == 1.0


@DTYPES
@pytest.mark.parametrize("round_first", [True, False])
@pytest.mark.parametrize("rotated", [True, False])
def test_rms_norm_rope_fp8_is_its_parts(
    check_op: Any, randn: Any, dtype: torch.dtype, round_first: bool, rotated: bool
) -> None:
    x, weight = randn(2, 5, 48, dtype=dtype), randn(48, dtype=dtype)
    angles = randn(5, 8)
    cos, sin = (angles.cos(), angles.sin()) if rotated else (None, None)
    still = torch.ones(5, 8), torch.zeros(5, 8)
    scale = fp8_norm_scale.overload(weight, 96**0.5)
    found = check_op(rms_norm_rope_fp8, x, weight, cos, sin, scale, 3, 1e-6, round_first)
    turn = (cos, sin) if rotated else still
    parts = rms_norm_rope.overload(x, weight, *turn, 3, 1e-6, round_first)
    assert same([found], [fp8.encode(parts, scale)])
    assert found.float().abs().max() > 32


def test_a_rotation_has_cos_and_sin() -> None:
    x, half = torch.empty(1, 3, 48, device="meta"), torch.empty(3, 8, device="meta")
    with pytest.raises(ValueError, match="cos and sin, or there is none"):
        rms_norm_rope_fp8.overload(x, x[0, 0], half, None, x[0, 0, :1], 3, 1e-6, True)
