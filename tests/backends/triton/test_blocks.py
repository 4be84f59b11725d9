"""Blocks in registers: their scale, their codes, their largest magnitude, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.blocks import (
    BLOCK,
    amax_bits,
    amax_of_blocks,
    choose_scale,
    load_blocks,
    round_e4m3,
    store_blocks,
)
from llvq.backends.triton.specialize import Launcher
from llvq.formats import nvfp4
from tests.backends.triton.compare import same_bytes

COUNT = 64


@triton.jit
def amax(x, out, COUNT: tl.constexpr):
    block = tl.arange(0, COUNT)
    low, high = load_blocks(x, block * BLOCK, block < COUNT)
    tl.store(out + block, amax_of_blocks(low, high))
    tl.store(out + COUNT, amax_bits(low, high).to(tl.float32, bitcast=True))


@triton.jit
def copy(x, out, count, COUNT: tl.constexpr):
    block = tl.arange(0, COUNT)
    low, high = load_blocks(x, block * BLOCK, block < count)
    store_blocks(out, block * BLOCK, low, high, block < COUNT)


@triton.jit
def scale(x, g, out, RULE: tl.constexpr, COUNT: tl.constexpr):
    block = tl.arange(0, COUNT)
    low, high = load_blocks(x, block * BLOCK, block < COUNT)
    tl.store(out + block, choose_scale(low, high, tl.load(g), RULE))


@triton.jit
def to_e4m3(x, out, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    tl.store(out + i, round_e4m3(tl.load(x + i)))


def scales(launch: Launcher, x: Tensor, g: Tensor, rule: str) -> Tensor:
    out = torch.empty(COUNT, dtype=torch.float8_e4m3fn, device=x.device)
    launch(scale, (1,), x, g, out, exact=True, RULE=rule, COUNT=COUNT)
    return out


@pytest.mark.parametrize("rule", nvfp4.BLOCK_RULES)
@pytest.mark.parametrize("g", [2.0**-117, 1e-4, 0.01, 3.0, 2.0**100])
def test_the_scale_is_that_of_the_format(launch: Launcher, randn: Any, rule: str, g: float) -> None:
    """Blocks that need each E4M3 binade, subnormal scales, none, and more than there is."""
    x = randn(COUNT, 16, dtype=torch.float32) * g
    x *= torch.logspace(-14, 12, COUNT, base=2, device=x.device)[:, None]
    given = torch.tensor(g, device=x.device)
    wanted = nvfp4._choose_scale(x.abs(), given, rule).to(torch.float8_e4m3fn)
    assert same_bytes(scales(launch, x, given, rule), wanted)


@pytest.mark.parametrize("rule", nvfp4.BLOCK_RULES)
def test_what_is_not_finite_shows_in_its_block(launch: Launcher, randn: Any, rule: str) -> None:
    x = randn(COUNT, 16)
    x[1, 3], x[4, 15], x[9, 8] = float("nan"), float("inf"), float("-inf")
    found = scales(launch, x, torch.tensor(0.01, device=x.device), rule).float()
    assert found.isnan().nonzero().flatten().tolist() == [1, 4, 9]


def test_the_largest_magnitude_counts_nan_as_largest(launch: Launcher, randn: Any) -> None:
    x = randn(COUNT, 16)
    out = torch.empty(COUNT + 1, device=x.device)
    x[2, 5] = float("-inf")
    launch(amax, (1,), x, out, COUNT=COUNT)
    wanted = x.abs().amax(1).float()
    assert same_bytes(out, torch.cat([wanted, wanted.amax(0, keepdim=True)]))
    x[3, 9], x[3, 10] = float("nan"), float("inf")
    launch(amax, (1,), x, out, COUNT=COUNT)
    assert out.isnan().nonzero().flatten().tolist() == [3, COUNT]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_masked_blocks_are_zeros(launch: Launcher, randn: Any, dtype: torch.dtype) -> None:
    x = randn(COUNT, 16, dtype=dtype)
    out = torch.empty_like(x)
    launch(copy, (1,), x, out, 50, COUNT=COUNT)
    x[50:] = 0.0
    assert same_bytes(out, x)


def test_e4m3_is_rounded_as_torch_does_and_saturates(
    launch: Launcher, device: torch.device
) -> None:
    x = torch.logspace(-16, 12, 2046, base=2).to(device)
    x = torch.cat([x, torch.tensor([0.0, float("nan")], device=device)])
    out = torch.empty(2048, dtype=torch.float8_e4m3fn, device=device)
    launch(to_e4m3, (1,), x, out, COUNT=2048)
    assert same_bytes(out, x.clamp(max=nvfp4.E4M3_MAX).to(torch.float8_e4m3fn))
