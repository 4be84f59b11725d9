"""Activations in FP8 against the dialect's reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llvq.backends.triton.fp8_quantize import gelu_quantize_fp8, quantize_fp8
from llvq.backends.triton.specialize import Launcher
from llvq.dialect import DIALECT
from tests.backends.triton.compiled import compiled, meta
from tests.backends.triton.test_fp8_window import RandN

SHAPES = [(1, 5, 48), (3, 1040), (2, 3, 96)]


def as_bytes(parts: tuple[Tensor, ...]) -> list[list[int]]:
    return [part.contiguous().view(torch.uint8).flatten().tolist() for part in parts]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_byte_is_the_reference_s(
    launch: Launcher, randn: RandN, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = randn(*shape, dtype=dtype) * 37
    x[..., 1, :] = 0.0
    found = quantize_fp8(launch, x)
    assert as_bytes(found) == as_bytes(DIALECT["quantize_fp8"].reference(x))
    assert as_bytes(found) == as_bytes(quantize_fp8(launch, x))


def test_a_slice_is_read_where_it_lies(launch: Launcher, randn: RandN) -> None:
    whole = randn(4, 7, 3 * 64)
    x = whole[..., 64:128]
    assert as_bytes(quantize_fp8(launch, x)) == as_bytes(DIALECT["quantize_fp8"].reference(x))


@pytest.mark.parametrize("poison", [float("nan"), float("-inf")])
def test_what_is_not_finite_shows(launch: Launcher, randn: RandN, poison: float) -> None:
    x = randn(3, 64)
    x[1, 9] = poison
    values, scale = quantize_fp8(launch, x)
    assert scale.isfinite().flatten().tolist() == [True, False, True]
    assert not (values.float() * scale)[1].isfinite().any()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("smoothed", [False, True])
def test_gelu_on_the_way(launch: Launcher, randn: RandN, approximate: str, smoothed: bool) -> None:
    x = randn(2, 9, 112)
    smooth = randn(112).abs() + 0.5 if smoothed else None
    values, scale = gelu_quantize_fp8(launch, x, approximate, smooth)
    op = DIALECT["gelu_quantize_fp8"]
    wanted_values, wanted_scale = op.reference(x, approximate, smooth)
    assert torch.allclose(scale, wanted_scale, rtol=2**-7)
    found, wanted = values.float() * scale, wanted_values.float() * wanted_scale
    assert (found - wanted).abs().max() <= op.tolerance.relative * wanted.abs().max()
    assert (found - wanted).norm() <= 0.01 * wanted.norm()


@pytest.mark.parametrize("channels", [3072, 14336])
def test_it_compiles_without_spills(channels: int) -> None:
    x = meta(1, 7040, channels)
    for made in compiled("sm_90a", gelu_quantize_fp8, x, "tanh") + compiled(
        "sm_90a", quantize_fp8, x
    ):
        assert made.resources.spilled == 0
        assert "ld.global.v4" in made.binary.ptx  # 16 bytes at a time
