"""Rotary positions against the reference: exact alone, near after a norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llvq import dialect
from llvq.backends.triton.rope import rms_norm_rope, rms_norm_rope_fp8, rope
from llvq.backends.triton.specialize import Launcher
from llvq.errors import KernelError
from llvq.formats import fp8
from tests.backends.triton.compare import relative_error, same_bytes
from tests.backends.triton.compiled import CHIPS, compiled, meta

BF16, FP32 = torch.bfloat16, torch.float32
EPS = 1e-6
SHAPES = pytest.mark.parametrize("shape", [(1, 3, 2, 32), (2, 5, 3, 64), (1, 9, 5, 16)])
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP32])


def tables(tokens: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    places = torch.outer(torch.arange(1.0, tokens + 1), 0.7 ** torch.arange(head_dim // 2))
    return places.cos().to(device), places.sin().to(device)


@SHAPES
@DTYPES
def test_rope_is_exact(
    launch: Launcher, randn: Any, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = randn(*shape, dtype=dtype)
    rotation = tables(shape[1], shape[3], x.device)
    found = rope(launch, x, *rotation)
    assert same_bytes(found, dialect.rope.reference(x, *rotation))
    part = randn(*shape[:3], 2 * shape[3], dtype=dtype).flatten(2)[..., : shape[2] * shape[3]]
    part = part.unflatten(-1, shape[2:])
    assert same_bytes(rope(launch, part, *rotation), rope(launch, part.clone(), *rotation))


@SHAPES
@DTYPES
@pytest.mark.parametrize("round_first", [True, False])
def test_rms_norm_rope(
    launch: Launcher, randn: Any, shape: tuple[int, ...], dtype: torch.dtype, round_first: bool
) -> None:
    batch, tokens, heads, head_dim = shape
    width = heads * head_dim
    x, weight = randn(batch, tokens, width, dtype=dtype), randn(width, dtype=dtype)
    args = (x, weight, *tables(tokens, head_dim, x.device), heads, EPS, round_first)
    found = rms_norm_rope(launch, *args)
    limit = 1e-5 if dtype == FP32 else dialect.rms_norm_rope.tolerance.relative
    assert relative_error(found, dialect.rms_norm_rope.reference(*args)) <= limit
    assert same_bytes(found, rms_norm_rope(launch, *args))


@SHAPES
@DTYPES
@pytest.mark.parametrize("round_first", [True, False])
@pytest.mark.parametrize("rotated", [True, False])
def test_rms_norm_rope_fp8(
    launch: Launcher,
    randn: Any,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    round_first: bool,
    rotated: bool,
) -> None:
    batch, tokens, heads, head_dim = shape
    width = heads * head_dim
    x, weight = randn(batch, tokens, width, dtype=dtype), randn(width, dtype=dtype)
    scale = dialect.fp8_norm_scale.reference(weight, (2 * width) ** 0.5)
    angles = tables(tokens, head_dim, x.device) if rotated else (None, None)
    args = (x, weight, *angles, scale, heads, EPS, round_first)
    found = rms_norm_rope_fp8(launch, *args)
    wanted = dialect.rms_norm_rope_fp8.reference(*args)
    assert (found.dtype, found.shape) == (fp8.DTYPE, shape)
    # A norm that is summed in another order may round to the neighbour, which few values do.
    steps = (found.view(torch.uint8).int() - wanted.view(torch.uint8).int()).abs()
    assert steps.max() <= 1 and (steps > 0).float().mean() < 0.02
    assert same_bytes(found, rms_norm_rope_fp8(launch, *args))


def test_what_a_scale_does_not_cover_saturates(launch: Launcher, randn: Any) -> None:
    x, weight = randn(1, 5, 64, dtype=BF16), randn(64, dtype=BF16)
    scale = torch.full((1,), 1e-3, device=x.device)
    args = (x, weight, *tables(5, 32, x.device), scale, 2, EPS, True)
    found = rms_norm_rope_fp8(launch, *args)
    assert found.float().abs().max() == 448.0
    assert same_bytes(found, dialect.rms_norm_rope_fp8.reference(*args))


def test_heads_that_split_a_block_are_refused(launch: Launcher, randn: Any) -> None:
    with pytest.raises(KernelError, match="rows of 24 channels"):
        rope(launch, randn(1, 3, 2, 24), *tables(3, 24, randn(1).device))


@pytest.mark.parametrize("chip", CHIPS)
def test_rope_compiles(chip: str) -> None:
    table = meta(7040, 64, dtype=FP32)
    stacked = meta(1, 7040, 9216)[..., 3072:6144]
    made = compiled(chip, rope, meta(1, 7040, 24, 128), table, table)
    made += compiled(chip, rms_norm_rope, stacked, meta(3072), table, table, 24, EPS, False)
    for one in made:
        assert one.resources.spilled == 0 and one.resources.registers <= 80
        assert all(f"{way}.global.v4.b32" in one.binary.ptx for way in ("ld", "st"))


@pytest.mark.parametrize("rotated", [True, False])
def test_queries_in_fp8_compile(rotated: bool) -> None:
    angles = (meta(7040, 64, dtype=FP32),) * 2 if rotated else (None, None)
    args = (meta(1, 7040, 9216)[..., :3072], meta(3072), *angles, meta(1, dtype=FP32), 24, EPS)
    (made,) = compiled("sm_90a", rms_norm_rope_fp8, *args, True)
    assert made.resources.spilled == 0 and made.resources.registers <= 80
    assert "ld.global.v4.b32" in made.binary.ptx and "st.global.v2.b32" in made.binary.ptx
