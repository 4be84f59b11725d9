"""Convolutions over rings: their numbers, and what the compiler makes of them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.backends.triton.build import SHARED_MEMORY
from llvq.backends.triton.ring_conv import (
    TILES,
    choose_tile,
    ring_conv,
    ring_conv_sm90,
    ring_conv_sm120,
)
from llvq.dialect import ring_conv as conv_op
from llvq.dialect.ring_ops import FP8
from tests.backends.triton.compare import relative_error
from tests.backends.triton.compiled import CHIPS, compiled, meta

BF16, FP32, I64 = torch.bfloat16, torch.float32, torch.int64


def ring_of(randn: Any, slots: int, height: int, width: int, channels: int, dtype: Any) -> Tensor:
    """Frames inside a border of zeros."""
    ring = randn(slots, height + 2, width + 2, channels)
    ring[:, :: height + 1] = 0
    ring[:, :, :: width + 1] = 0
    return ring.to(dtype)


def weight_of(randn: Any, *shape: int, dtype: Any) -> Tensor:
    fan_in = torch.Size(shape[-4:]).numel()
    return (randn(*shape) * (8.0 if dtype == FP8 else fan_in**-0.5)).to(dtype)


@pytest.mark.parametrize("dtype", [BF16, FP8])
@pytest.mark.parametrize(
    ("size", "channels", "features", "frames", "decoded", "residual", "behind"),
    [
        ((4, 6), 32, 24, 2, 1, True, 0),
        ((5, 24), 80, 136, 1, 5, True, 0),
        ((2, 66), 16, 264, 1, 3, False, 4),
    ],
)
def test_a_causal_convolution(
    launch: Any,
    randn: Any,
    device: torch.device,
    dtype: Any,
    size: tuple[int, int],
    channels: int,
    features: int,
    frames: int,
    decoded: int,
    residual: bool,
    behind: int,
) -> None:
    """In a ring that it shares too, so many slots behind another one."""
    slots = frames + 2 + behind
    ring = ring_of(randn, slots, *size, channels, dtype)
    weight = weight_of(randn, features, 3, 3, 3, channels, dtype=dtype)
    scales = (None, None)
    if dtype == FP8:
        scales = (randn(1, dtype=FP32).abs(), randn(features, dtype=FP32).abs() / 100)
    more = randn(frames, *size, features) if residual else None
    when = (torch.tensor(decoded, device=device), 2, 0, (1 - behind) % slots, frames, False)
    args = (ring, weight, randn(features), *scales, more, *when)
    found, again = ring_conv(launch, *args), ring_conv_sm90(launch, *args)
    assert relative_error(found, conv_op.reference(*args)) <= conv_op.tolerance.relative
    assert torch.equal(found.view(torch.uint8), again.view(torch.uint8))


@pytest.mark.parametrize("decoded", [0, 1, 4])
def test_a_convolution_in_time_doubles_frames(
    launch: Any, randn: Any, device: torch.device, decoded: int
) -> None:
    """No pixel of the border is read, so its zeros do not matter."""
    ring = randn(4, 5, 8, 16)
    weight = weight_of(randn, 48, 3, 1, 1, 16, dtype=BF16)
    when = (torch.tensor(decoded, device=device), 2, 1, 0, 2, True)
    args = (ring, weight, randn(48), None, None, None, *when)
    found = ring_conv(launch, *args)
    assert found.shape == (4, 3, 6, 24)
    assert relative_error(found, conv_op.reference(*args)) <= conv_op.tolerance.relative


def test_tiles_by_features() -> None:
    assert [choose_tile(TILES, n).n for n in (12, 128, 256, 1024)] == [64, 128, 256, 256]


def conv_args(dtype: Any, channels: int, features: int, size: tuple[int, int]) -> tuple[Any, ...]:
    height, width = size
    scales = (meta(1, dtype=FP32), meta(features, dtype=FP32)) if dtype == FP8 else (None, None)
    ring = meta(3, height + 2, width + 2, channels, dtype=dtype)
    weight = meta(features, 3, 3, 3, channels, dtype=dtype)
    residual = meta(1, height, width, features)
    when = (meta(dtype=I64), 4, 0, 0, 1, False)
    return ring, weight, meta(features), *scales, residual, *when


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", [BF16, FP8])
def test_convolutions_compile(chip: str, dtype: Any) -> None:
    wrapper = {"sm_90a": ring_conv_sm90, "sm_120a": ring_conv_sm120}.get(chip, ring_conv)
    (made,) = compiled(chip, wrapper, *conv_args(dtype, 256, 256, (352, 640)))
    check_binary(made, chip)


def check_binary(made: Any, chip: str) -> None:
    assert made.resources.spilled == 0
    assert made.binary.shared <= SHARED_MEMORY[chip]
    instruction = {"sm_90a": "wgmma", "sm_120a": r"mma\.sync"}.get(chip, r"tcgen05\.mma")
    assert re.search(instruction, made.binary.ptx) and "cp.async.bulk.tensor" in made.binary.ptx
