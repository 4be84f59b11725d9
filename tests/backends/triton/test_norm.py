"""Norms against the references; what is quantized after a norm is exactly what the norm gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llvq import dialect
from llvq.backends.triton.norm import norm_modulate, norm_modulate_quantize, rms_norm
from llvq.backends.triton.specialize import Launcher
from tests.backends.triton.compare import all_same, relative_error, same_bytes
from tests.backends.triton.compiled import CHIPS, compiled, meta

BF16, FP32 = torch.bfloat16, torch.float32
EPS = 1e-6
SHAPES = pytest.mark.parametrize(
    ("batch", "groups", "tokens", "width"), [(2, 2, 1, 48), (1, 2, 9, 80), (1, 1, 1, 1040)]
)
DTYPES = pytest.mark.parametrize(("dtype", "kind"), [(BF16, BF16), (BF16, FP32), (FP32, FP32)])
ON_CHIPS = pytest.mark.parametrize("chip", CHIPS)


def arguments(randn: Any, shape: tuple[int, ...], dtype: Any, kind: Any) -> tuple[Tensor, ...]:
    """x whose rows have means and outliers, and the modulation of each group."""
    batch, groups, tokens, width = shape
    x = randn(batch, groups * tokens, width, dtype=dtype) + randn(groups * tokens, 1, dtype=dtype)
    x[..., 7] *= 30
    return x, *(randn(batch, groups, width, dtype=kind) for _ in range(2))


@SHAPES
@DTYPES
def test_norm_modulate(
    launch: Launcher,
    randn: Any,
    batch: int,
    groups: int,
    tokens: int,
    width: int,
    dtype: torch.dtype,
    kind: torch.dtype,
) -> None:
    args = arguments(randn, (batch, groups, tokens, width), dtype, kind)
    found = norm_modulate(launch, *args, EPS)
    wanted = dialect.norm_modulate.reference(*args, EPS)
    limit = 1e-5 if dtype == FP32 else dialect.norm_modulate.tolerance.relative
    assert relative_error(found, wanted) <= limit
    assert same_bytes(found, norm_modulate(launch, *args, EPS))


@SHAPES
@DTYPES
@pytest.mark.parametrize("static", [None, 0.004])
def test_a_normed_row_is_quantized_as_it_would_be_stored(
    launch: Launcher,
    randn: Any,
    batch: int,
    groups: int,
    tokens: int,
    width: int,
    dtype: torch.dtype,
    kind: torch.dtype,
    static: float | None,
) -> None:
    args = arguments(randn, (batch, groups, tokens, width), dtype, kind)
    g = None if static is None else torch.tensor(static, device=args[0].device)
    normed = norm_modulate(launch, *args, EPS)
    found = norm_modulate_quantize(launch, *args, EPS, "four_over_six", g)
    assert all_same(found, dialect.quantize.reference(normed, "four_over_six", g))


def test_a_row_that_is_not_finite_shows(launch: Launcher, randn: Any) -> None:
    x, scale, shift = arguments(randn, (1, 1, 3, 48), BF16, FP32)
    x[0, 1, 5] = float("inf")
    _, scales, g = norm_modulate_quantize(launch, x, scale, shift, EPS, "max")
    assert g.isnan()
    given = torch.tensor(0.01, device=x.device)
    _, scales, _ = norm_modulate_quantize(launch, x, scale, shift, EPS, "max", given)
    assert scales.float().isnan().all(-1).tolist() == [[False, True, False]]


@pytest.mark.parametrize("shape", [(1, 3, 48), (2, 9, 80), (1, 1, 1040)])
@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("round_first", [True, False])
def test_rms_norm(
    launch: Launcher, randn: Any, shape: tuple[int, ...], dtype: torch.dtype, round_first: bool
) -> None:
    args = randn(*shape, dtype=dtype) * 5, randn(shape[-1], dtype=dtype), EPS, round_first
    found = rms_norm(launch, *args)
    limit = 1e-5 if dtype == FP32 else dialect.rms_norm.tolerance.relative
    assert relative_error(found, dialect.rms_norm.reference(*args)) <= limit
    assert same_bytes(found, rms_norm(launch, *args))


def test_rms_norm_of_a_slice(launch: Launcher, randn: Any) -> None:
    part, weight = randn(1, 5, 144)[..., 48:96], randn(48)
    found = rms_norm(launch, part, weight, EPS, True)
    assert same_bytes(found, rms_norm(launch, part.clone(), weight, EPS, True))


@ON_CHIPS
@pytest.mark.parametrize("kind", [BF16, FP32])
def test_norm_modulate_compiles(chip: str, kind: torch.dtype) -> None:
    x, modulation = meta(1, 7040, 3072), meta(1, 8, 3072, dtype=kind)
    made = compiled(chip, norm_modulate, x, modulation, modulation, EPS)
    args = (x, modulation, modulation, EPS)
    made += compiled(chip, norm_modulate_quantize, *args, "four_over_six")
    made += compiled(chip, norm_modulate_quantize, *args, "max", meta(dtype=FP32))
    for one in made:
        assert one.resources.spilled == 0 and one.resources.registers <= 96
        assert "ld.global.v4.b32" in one.binary.ptx


@ON_CHIPS
def test_rms_norm_compiles(chip: str) -> None:
    for width in (3072, 4096):
        (made,) = compiled(chip, rms_norm, meta(1, 7040, width), meta(width), EPS, False)
        assert made.resources.spilled == 0 and made.resources.registers <= 80
        assert "st.global.v4.b32" in made.binary.ptx
