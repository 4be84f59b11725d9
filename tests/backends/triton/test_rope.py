"""Rotary positions against the reference: exact alone, near after a norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llvq import dialect
from llvq.backends.triton.rope import rms_norm_rope, rope
from llvq.backends.triton.specialize import Launcher
from llvq.errors import KernelError
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
