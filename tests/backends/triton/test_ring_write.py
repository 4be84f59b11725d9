"""Frames into rings and to pixels: the numbers of the dialect, and nothing beside their place."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llvq.backends.triton import ring_write as kernels
from llvq.dialect import BF16_ROUNDING, pixels, ring_write, ring_write_normed
from llvq.dialect.ring_ops import FP8
from tests.backends.triton.compare import relative_error, same_bytes
from tests.backends.triton.compiled import CHIPS, compiled, meta

BF16, FP32, I64 = torch.bfloat16, torch.float32, torch.int64
WHEN = pytest.mark.parametrize(("decoded", "skip", "offset"), [(0, 0, 0), (1, 1, 0), (7, 0, 1)])


@WHEN
@pytest.mark.parametrize("channels", [8, 48, 130])
def test_frames_as_they_are(
    launch: Any,
    randn: Any,
    device: torch.device,
    channels: int,
    decoded: int,
    skip: int,
    offset: int,
) -> None:
    ring = randn(4, 5, 8, channels)
    wanted, x = ring.clone(), randn(2, 3, 6, channels)
    when = (torch.tensor(decoded, device=device), 2, skip, offset)
    kernels.ring_write(launch, ring, x, *when)
    ring_write.reference(wanted, x, *when)
    assert same_bytes(ring, wanted)


@WHEN
@pytest.mark.parametrize("channels", [8, 48, 130])
@pytest.mark.parametrize("dtype", [BF16, FP8])
def test_normed_frames(
    launch: Any,
    randn: Any,
    device: torch.device,
    dtype: Any,
    channels: int,
    decoded: int,
    skip: int,
    offset: int,
) -> None:
    """One pixel is zero, and has no direction. A step of e4m3 is up to 1/16 of a value."""
    ring = randn(3, 5, 8, channels).to(dtype)
    wanted, x = ring.clone(), randn(1, 3, 6, channels) * 5
    x[0, 1, 2] = 0
    scale = torch.full((1,), 0.03, device=device) if dtype == FP8 else None
    when = (torch.tensor(decoded, device=device), 2, skip, offset)
    args = (x, randn(channels), channels**0.5, scale, *when)
    kernels.ring_write_normed(launch, ring, *args)
    ring_write_normed.reference(wanted, *args)
    limit = 1 / 16 if dtype == FP8 else BF16_ROUNDING.relative
    assert relative_error(ring, wanted) <= limit
    different = (ring.float() != wanted.float()).float().mean()
    assert different < 0.02


@pytest.mark.parametrize("patch", [1, 2])
def test_pixels(launch: Any, randn: Any, patch: int) -> None:
    """Also those between two steps, and those that are clamped."""
    x = randn(3, 5, 7, 3 * patch**2)
    x.view(-1)[:510] = (torch.arange(510, device=x.device) / 255 - 1).to(x.dtype)[: x.numel()]
    assert same_bytes(kernels.pixels(launch, x, patch), pixels.reference(x, patch))


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", [BF16, FP8])
def test_they_compile(chip: str, dtype: Any) -> None:
    ring, x, when = meta(3, 354, 642, 256, dtype=dtype), meta(1, 352, 640, 256), meta(dtype=I64)
    scale = meta(1, dtype=FP32) if dtype == FP8 else None
    args = (ring, x, meta(256), 16.0, scale, when, 4, 0, 0)
    made = compiled(chip, kernels.ring_write_normed, *args)
    made += compiled(chip, kernels.pixels, meta(1, 352, 640, 12), 2)
    assert all(one.resources.spilled == 0 for one in made)
