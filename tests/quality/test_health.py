"""Health curves on frames whose faults are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from llvq.quality.health import Health, health

G = torch.Generator().manual_seed(0)
NOISE = torch.randint(0, 256, (5, 24, 32, 3), generator=G, dtype=torch.uint8)


def gray(level: int, frames: int = 3) -> Tensor:
    return torch.full((frames, 24, 32, 3), level, dtype=torch.uint8)


def test_every_measure_is_what_numpy_says() -> None:
    found, x = health(NOISE), NOISE.numpy().astype(np.float64)
    luma = x @ np.array([0.2126, 0.7152, 0.0722])
    inner = luma[:, 1:-1, 1:-1]
    around = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    expected = Health(
        luma=luma.mean(),
        contrast=np.mean([frame.std() for frame in luma]),
        saturation=(x.max(-1) - x.min(-1)).mean(),
        sharpness=np.mean([frame.var() for frame in around - 4 * inner]),
        motion=np.abs(np.diff(luma, axis=0)).mean(),
        frozen=0,
        black=0,
    )
    for name, value in expected.to_dict().items():
        assert found.to_dict()[name] == pytest.approx(value, rel=1e-4), name


def test_a_frozen_a_black_and_a_flat_chunk_are_seen() -> None:
    frozen = health(NOISE[:1].expand(4, -1, -1, -1))
    assert (frozen.frozen, frozen.black, frozen.motion) == (3, 0, 0.0)
    black = health(gray(3))
    assert (black.black, black.sharpness, black.saturation) == (3, pytest.approx(0, abs=1e-6), 0.0)
    assert health(gray(200)).luma == pytest.approx(200, rel=1e-5)


def test_a_blurred_chunk_is_less_sharp() -> None:
    wide = NOISE.permute(0, 3, 1, 2).float()
    blurred = torch.nn.functional.avg_pool2d(wide, 3, 1, 1).to(torch.uint8).permute(0, 2, 3, 1)
    assert health(blurred).sharpness < 0.2 * health(NOISE).sharpness


def test_motion_counts_the_step_from_the_chunk_before() -> None:
    alone, joined = health(gray(90, 1)), health(gray(90, 1), before=gray(80, 1)[0])
    assert math.isnan(alone.motion)
    assert joined.motion == pytest.approx(10, rel=1e-4)
    assert health(gray(90, 2), before=gray(90, 1)[0]).frozen == 2
