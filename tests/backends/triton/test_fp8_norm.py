"""Residual, norm and FP8 against the dialect's reference, with and without each of their parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llvq.backends.triton.fp8_norm import add_norm_quantize_fp8, norm_modulate_quantize_fp8
from llvq.backends.triton.specialize import Launcher
from llvq.dialect import DIALECT
from tests.backends.triton.compiled import compiled, meta
from tests.backends.triton.test_fp8_window import RandN

EPS = 1e-6
BATCH, GROUPS, TOKENS = 2, 3, 12


def agree(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], relative: float) -> None:
    """Scales are equal up to a rounding of bf16, values up to a step of FP8, most are the same."""
    assert torch.allclose(found[1], wanted[1], rtol=2**-7)
    a, b = (values.float() * scale for values, scale in (found, wanted))
    assert (a - b).abs().max() <= relative * b.abs().max()
    assert (a - b).norm() <= 0.01 * b.norm()


@pytest.mark.parametrize("channels", [48, 1008])
@pytest.mark.parametrize("groups", [1, GROUPS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_modulated_norm(
    launch: Launcher, randn: RandN, channels: int, groups: int, dtype: torch.dtype
) -> None:
    x = randn(BATCH, TOKENS, channels) * 3 + 1
    scale, shift = (randn(BATCH, groups, channels, dtype=dtype) for _ in range(2))
    op = DIALECT["norm_modulate_quantize_fp8"]
    found = norm_modulate_quantize_fp8(launch, x, scale, shift, EPS)
    agree(found, op.reference(x, scale, shift, EPS), op.tolerance.relative)


@pytest.mark.parametrize("gate_dtype", [None, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("norm", ["modulated", "affine", "bare"])
def test_a_residual_and_its_norm(
    launch: Launcher, randn: RandN, gate_dtype: torch.dtype | None, norm: str
) -> None:
    channels = 80
    x, y = randn(BATCH, TOKENS, channels), randn(BATCH, TOKENS, channels)
    gate = randn(BATCH, GROUPS, channels, dtype=gate_dtype) if gate_dtype else None
    vectors = (
        [randn(BATCH, GROUPS, channels) for _ in range(2)] if norm == "modulated" else [None] * 2
    )
    affine = [randn(channels) for _ in range(2)] if norm == "affine" else [None] * 2
    args = (x, y, gate, *vectors, *affine, EPS)
    op = DIALECT["add_norm_quantize_fp8"]
    total, *found = add_norm_quantize_fp8(launch, *args)
    wanted_total, *wanted = op.reference(*args)
    assert torch.equal(total, wanted_total)
    agree(tuple(found), tuple(wanted), op.tolerance.relative)
    again = add_norm_quantize_fp8(launch, *args)
    assert torch.equal(again[1].view(torch.uint8), found[0].view(torch.uint8))


def test_a_row_that_is_constant_is_zero(launch: Launcher, randn: RandN) -> None:
    x, vector = torch.full_like(randn(1, 2, 64), 3.0), torch.zeros_like(randn(1, 1, 64))
    values, scale = norm_modulate_quantize_fp8(launch, x, vector, vector, EPS)
    assert not values.float().any() and scale.flatten().tolist() == [1.0, 1.0]


def test_it_compiles_without_spills() -> None:
    x, gate, vector = meta(1, 7040, 3072), meta(1, 8, 3072), meta(3072)
    variants = (
        (x, x, gate, None, None, vector, vector, EPS),
        (x, x, None, gate, gate, None, None, EPS),
        (x, x, gate, gate, gate, None, None, EPS),
    )
    for variant in variants:
        for made in compiled("sm_90a", add_norm_quantize_fp8, *variant):
            assert made.resources.spilled == 0
            assert "ld.global.v4" in made.binary.ptx
            assert "fma.rn.bf16" not in made.binary.ptx
