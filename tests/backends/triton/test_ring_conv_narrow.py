"""A convolution with a few features: its numbers, and what the compiler makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llvq.backends.triton.ring_conv import ring_conv, ring_conv_sm120
from llvq.dialect import ring_conv as conv_op
from llvq.dialect.ring_ops import FP8
from tests.backends.triton.compare import relative_error
from tests.backends.triton.compiled import CHIPS, compiled
from tests.backends.triton.test_ring_conv import check_binary, conv_args, ring_of, weight_of

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize("dtype", [BF16, FP8])
@pytest.mark.parametrize(
    ("size", "channels", "features", "frames", "decoded"),
    [((3, 5), 16, 12, 1, 0), ((4, 61), 80, 3, 2, 3), ((2, 61), 48, 16, 1, 1)],
)
def test_taps_of_a_row_come_together(
    launch: Any,
    randn: Any,
    device: torch.device,
    dtype: Any,
    size: tuple[int, int],
    channels: int,
    features: int,
    frames: int,
    decoded: int,
) -> None:
    """A tile has 126 sums; sizes end at one, before it and behind it."""
    ring = ring_of(randn, frames + 2, *size, channels, dtype)
    weight = weight_of(randn, features, 3, 3, 3, channels, dtype=dtype)
    scales = (None, None)
    if dtype == FP8:
        scales = (randn(1, dtype=FP32).abs(), randn(features, dtype=FP32).abs() / 100)
    when = (torch.tensor(decoded, device=device), 2, 0, 1, frames, False)
    args = (ring, weight, randn(features), *scales, randn(frames, *size, features), *when)
    found, again = ring_conv(launch, *args), ring_conv(launch, *args)
    assert relative_error(found, conv_op.reference(*args)) <= conv_op.tolerance.relative
    assert torch.equal(found.view(torch.uint8), again.view(torch.uint8))


@pytest.mark.parametrize("chip", CHIPS)
def test_it_compiles(chip: str) -> None:
    wrapper = ring_conv_sm120 if chip == "sm_120a" else ring_conv
    (made,) = compiled(chip, wrapper, *conv_args(BF16, 256, 12, (352, 640)))
    check_binary(made, chip)
