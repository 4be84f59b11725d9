"""The way up as four convolutions: its numbers, and what the compiler makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llvq.backends.triton.upsample_conv import (
    upsample_conv,
    upsample_conv_sm90,
    upsample_conv_sm120,
)
from llvq.dialect import upsample_conv as upsample_op
from tests.backends.triton.compare import relative_error
from tests.backends.triton.compiled import CHIPS, compiled, meta
from tests.backends.triton.test_ring_conv import check_binary, ring_of, weight_of

BF16, I64 = torch.bfloat16, torch.int64


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize(
    ("channels", "features", "shortcut"),
    [(16, 8, None), (16, 16, (16, True)), (16, 8, (16, False)), (32, 24, (24, True))],
)
@pytest.mark.parametrize("first", [False, True])
def test_the_way_up(
    launch: Any,
    randn: Any,
    device: torch.device,
    frames: int,
    channels: int,
    features: int,
    shortcut: tuple[int, bool] | None,
    first: bool,
) -> None:
    doubled = shortcut is not None and shortcut[1]
    if doubled and frames % 2 != first:
        frames += 1
    given = None
    if shortcut is not None:
        given = randn((frames + 1) // 2 if doubled else frames, 3, 5, shortcut[0])
    ring = ring_of(randn, frames, 3, 5, channels, BF16)
    weight = weight_of(randn, 2, 2, features, 2, 2, channels, dtype=BF16)
    when = (doubled, first and doubled, torch.tensor(3, device=device), 2, 0, frames)
    args = (ring, weight, randn(features), given, *when)
    found, again = upsample_conv(launch, *args), upsample_conv_sm90(launch, *args)
    assert torch.equal(found, again)
    assert relative_error(found, upsample_op.reference(*args)) <= upsample_op.tolerance.relative


@pytest.mark.parametrize("chip", CHIPS)
def test_the_way_up_compiles(chip: str) -> None:
    wrappers = {"sm_90a": upsample_conv_sm90, "sm_120a": upsample_conv_sm120}
    wrapper = wrappers.get(chip, upsample_conv)
    ring, weight = meta(4, 90, 162, 1024), meta(2, 2, 1024, 2, 2, 1024)
    when = (True, False, meta(dtype=I64), 4, 0, 4)
    check_binary(
        compiled(chip, wrapper, ring, weight, meta(1024), meta(2, 88, 160, 1024), *when)[0], chip
    )
