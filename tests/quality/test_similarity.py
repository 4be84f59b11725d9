"""SSIM and MS-SSIM against pytorch-msssim."""

from __future__ import annotations

import pytest
import pytorch_msssim
import torch
from torch import Tensor

from llvq.quality.similarity import MS_SSIM_MIN_SIDE, similarity


def pair(height: int, width: int, noise: float) -> tuple[Tensor, Tensor]:
    """Smooth frames, and the same with noise."""
    g = torch.Generator().manual_seed(height + width)
    coarse = torch.rand(3, 3, 6, 6, generator=g) * 255
    frames = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    noisy = frames + noise * torch.randn(frames.shape, generator=g)
    uint8 = (f.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1) for f in (frames, noisy))
    first, second = uint8
    return first, second


def channels_first(frames: Tensor) -> Tensor:
    return frames.permute(0, 3, 1, 2).double()


@pytest.mark.parametrize(("height", "width"), [(64, 96), (57, 43)])
@pytest.mark.parametrize("noise", [1.0, 40.0])
def test_ssim_is_that_of_pytorch_msssim(height: int, width: int, noise: float) -> None:
    a, b = pair(height, width, noise)
    x, y = channels_first(a), channels_first(b)
    theirs = pytorch_msssim.ssim(x, y, data_range=255, size_average=False)
    assert torch.allclose(similarity(a, b).ssim, theirs.double(), atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(176, 192), (208, 240)])
@pytest.mark.parametrize("noise", [2.0, 30.0])
def test_ms_ssim_is_that_of_pytorch_msssim(height: int, width: int, noise: float) -> None:
    a, b = pair(height, width, noise)
    x, y = channels_first(a), channels_first(b)
    theirs = pytorch_msssim.ms_ssim(x, y, data_range=255, size_average=False)
    ours = similarity(a, b).ms_ssim
    assert ours is not None and torch.allclose(ours, theirs.double(), atol=1e-5)


def test_equal_frames_are_1_and_small_ones_have_no_ms_ssim() -> None:
    a, _ = pair(MS_SSIM_MIN_SIDE, MS_SSIM_MIN_SIDE, 0)
    found, ones = similarity(a, a), torch.ones(3, dtype=torch.float64)
    assert torch.allclose(found.ssim, ones)
    assert found.ms_ssim is not None and torch.allclose(found.ms_ssim, ones)
    small = a[:, : MS_SSIM_MIN_SIDE - 1]
    assert similarity(small, small).ms_ssim is None


def test_other_shapes_are_refused() -> None:
    a, _ = pair(64, 64, 0)
    with pytest.raises(ValueError, match="differ"):
        similarity(a, a[:, :60])
