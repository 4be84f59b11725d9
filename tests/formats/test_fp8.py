"""FP8 with scales: bit for bit what ModelOpt gives, half a step from x, nothing lost silently."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llvq.formats import fp8


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dims", [(-1,), (0, 1, 2), (-2, -1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_codes_and_scales_are_those_of_modelopt(dims: tuple[int, ...], dtype: torch.dtype) -> None:
    oracle = pytest.importorskip("modelopt.torch.quantization.qtensor").FP8QTensor
    x = (randn(3, 7, 33) * 5).to(dtype)
    codes, _ = fp8.quantize(x, dims)
    theirs, _ = oracle.quantize(x.float(), scales=x.float().abs().amax(dims, keepdim=True) / 448.0)
    assert same(codes, theirs._quantized_data)


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e30])
def test_a_value_is_within_half_a_step(size: float) -> None:
    x = randn(5, 64) * size
    codes, scale = fp8.quantize(x, (-1,))
    error = (codes.double() * scale.double() - x.double()).abs()
    assert (codes.float().abs().amax(-1) == 448).all()
    assert (error <= (x.double().abs() / 16).clamp(min=float(scale.max()) * 2**-10) * 1.0001).all()


def test_what_a_scale_cannot_reach_saturates() -> None:
    codes = fp8.encode(torch.tensor([-1e9, -465.0, 463.0, 500.0, torch.inf]), torch.tensor(1.0))
    assert codes.float().tolist() == [-448, -448, 448, 448, 448]


def test_zeros_have_scale_one() -> None:
    tiny = torch.tensor([[0.0, -0.0], [1e-45, 0.0], [1.0, 0.0]])
    codes, scale = fp8.quantize(tiny, (-1,))
    assert scale.flatten().tolist()[:2] == [1, 1]
    assert not codes.float()[:2].any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nothing_non_finite_is_silent(bad: float) -> None:
    """The row of it, and no other."""
    x = randn(3, 16)
    x[1, 5] = bad
    codes, scale = fp8.quantize(x, (-1,))
    values = codes.float() * scale
    assert values[1, 5].isnan() and not values[1].isfinite().any()
    assert values[::2].isfinite().all()


def test_codes_are_contiguous() -> None:
    x = randn(4, 6, 16).permute(2, 0, 1)
    codes, _ = fp8.quantize(x, (-1,))
    assert codes.is_contiguous() and same(codes, fp8.quantize(x.contiguous(), (-1,))[0])
