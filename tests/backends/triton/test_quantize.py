"""Quantize and dequantize against the reference, which other tools hold; every byte the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llvq import dialect
from llvq.backends.triton.quantize import dequantize, quantize
from llvq.backends.triton.specialize import Launcher
from llvq.formats import nvfp4
from tests.backends.triton.compare import all_same, same_bytes
from tests.backends.triton.compiled import CHIPS, compiled, meta

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
RULES = pytest.mark.parametrize("rule", nvfp4.BLOCK_RULES)
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
ON_CHIPS = pytest.mark.parametrize("chip", CHIPS)


@RULES
@DTYPES
@pytest.mark.parametrize("static", [None, 0.003])
@pytest.mark.parametrize("shape", [(1, 3, 48), (2, 7, 16), (23, 208)])
def test_quantize_is_exact(
    launch: Launcher,
    randn: Any,
    rule: str,
    dtype: torch.dtype,
    static: float | None,
    shape: tuple[int, ...],
) -> None:
    x = randn(*shape, dtype=dtype) * randn(shape[-2], 1, dtype=dtype)
    x[..., 0, 5:7] = -0.0
    g = None if static is None else torch.tensor(static, device=x.device)
    found = quantize(launch, x, rule, g)
    assert all_same(found, dialect.quantize.reference(x, rule, g))
    assert all_same(found, quantize(launch, x, rule, g))
    assert found[2] is not g


@RULES
@pytest.mark.parametrize("static", [2.0**-100, 1.0, 2.0**90])
def test_every_bf16_is_exact(
    launch: Launcher,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    rule: str,
    static: float,
) -> None:
    """Subnormal numbers and scales, what vanishes, what saturates; neighbours share a block."""
    if device.type == "cpu":  # fewer programs to interpret
        monkeypatch.setattr("llvq.backends.triton.quantize.BLOCKS", 1024)
    x = torch.arange(2**16).to(torch.uint16).view(BF16).view(-1, 16)
    x = x[x.isfinite().all(1)].to(device)
    g = torch.tensor(static, device=device)
    found = quantize(launch, x, rule, g)
    assert all_same(found, dialect.quantize.reference(x, rule, g))


@RULES
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_what_is_not_finite_shows(launch: Launcher, randn: Any, rule: str, value: str) -> None:
    x = randn(5, 64)
    x[2, 21] = float(value)
    codes, scales, g = quantize(launch, x, rule)
    assert g.isnan() and scales.float().isnan().all()
    given = torch.tensor(0.01, device=x.device)
    codes, scales, _ = quantize(launch, x, rule, given)
    assert scales.float().isnan().nonzero().tolist() == [[2, 1]]
    wanted = dialect.quantize.reference(x, rule, given)
    assert same_bytes(codes[3:], wanted[0][3:])


@RULES
def test_all_zeros_have_scale_one(launch: Launcher, device: torch.device, rule: str) -> None:
    codes, scales, g = quantize(launch, torch.zeros(3, 32, dtype=BF16, device=device), rule)
    assert g == 1.0 and not codes.any() and not scales.float().any()


def test_a_view_is_quantized_as_its_copy(launch: Launcher, randn: Any) -> None:
    x = randn(6, 5, 96)[1:, :, 16:48]
    assert all_same(quantize(launch, x, "max"), quantize(launch, x.clone(), "max"))


@DTYPES
@pytest.mark.parametrize(("lead", "segments"), [((37,), ()), ((37,), (37,)), ((2, 9), (4, 2, 3))])
def test_dequantize_is_exact(
    launch: Launcher,
    randn: Any,
    dtype: torch.dtype,
    lead: tuple[int, ...],
    segments: tuple[int, ...],
) -> None:
    codes, scales, _ = nvfp4.quantize(randn(*lead, 80))
    g = torch.tensor([0.3, 1e-3, 7.0], device=codes.device)[: len(segments)]
    g = g if segments else torch.tensor(0.3, device=codes.device)
    args = codes, scales, g, list(segments), dtype
    found = dequantize(launch, *args)
    assert same_bytes(found, dialect.dequantize.reference(*args))
    assert same_bytes(found, dequantize(launch, *args))


def packed(rows: int, width: int) -> tuple[Tensor, Tensor]:
    codes = meta(rows, width // 2, dtype=torch.uint8)
    return codes, meta(rows, width // 16, dtype=torch.float8_e4m3fn)


@ON_CHIPS
@RULES
def test_quantize_compiles(chip: str, rule: str) -> None:
    """Blocks stay in their threads, and subnormal numbers are numbers."""
    amax, static = compiled(chip, quantize, meta(7040, 3072), rule)
    for made in (amax, static):
        assert made.resources.spilled == 0 and made.resources.registers <= 64
        assert "ld.global.v4.b32" in made.binary.ptx and ".ftz" not in made.binary.ptx
    assert static.binary.shared == 0
    assert "st.global.v2.b32" in static.binary.ptx


@ON_CHIPS
def test_dequantize_compiles(chip: str) -> None:
    g = meta(3, dtype=FP32)
    (made,) = compiled(chip, dequantize, *packed(9216, 3072), g, [3072, 3072, 3072], BF16)
    assert made.resources.spilled == 0 and made.binary.shared == 0
    assert "st.global.v4.b32" in made.binary.ptx
