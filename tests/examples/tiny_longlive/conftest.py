"""Clips as a camera, a VAE and a codec leave them: sharp, or blurred and noisy to 28 dB."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from examples.tiny_longlive import data
from examples.tiny_longlive.captions import Scene
from examples.tiny_longlive.rollout import to_uint8

BLUR, NOISE = 3.0, 8.0  # pixels, grey levels: standard deviations
Draw = Callable[..., tuple[Tensor, Tensor]]


def degraded(pixels: Tensor, seed: int) -> Tensor:
    """Pixels [T, 3, H, W] in [-1, 1], blurred and noisy."""
    taps = torch.exp(-torch.arange(-9.0, 10.0).square() / (2 * BLUR**2))
    kernel = (taps / taps.sum()).view(1, 1, 1, -1).repeat(3, 1, 1, 1)
    padded = F.pad(pixels, (9, 9, 9, 9), mode="replicate")
    blurred = F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)
    random = torch.Generator().manual_seed(seed)
    return blurred + torch.randn(pixels.shape, generator=random) * (NOISE / 127.5)


def draw_clip(scene: Scene, times: Sequence[float], *, bad: bool = False) -> tuple[Tensor, Tensor]:
    """Frames [T, H, W, 3] uint8 of a scene, and how much of its objects is visible [T, K]."""
    pixels, visible = data.draw(data.batch([scene]), torch.tensor([times]))
    shown = degraded(pixels[0], seed=len(times)) if bad else pixels[0]
    frames = to_uint8(shown)
    return frames.permute(0, 2, 3, 1).contiguous(), visible[0, :, : len(scene.things)]


@pytest.fixture(scope="session")
def draw() -> Draw:
    return draw_clip
