"""Frame errors: each number against its own definition's oracle, or absent."""

from __future__ import annotations

import pytest
import pytorch_msssim
import torch
from torch import Tensor

from llvq.quality.frames import FrameError, frame_error


def noisy(frames: Tensor) -> Tensor:
    noise = torch.randint(-9, 10, frames.shape, generator=torch.Generator().manual_seed(1))
    return (frames.int() + noise).clamp(0, 255).to(torch.uint8)


@pytest.fixture
def frames() -> Tensor:
    coarse = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 255
    smooth = torch.nn.functional.interpolate(coarse, (176, 192), mode="bicubic")
    return smooth.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def test_means_over_frames(frames: Tensor) -> None:
    found = frame_error(frames, noisy(frames))
    x, y = (t.permute(0, 3, 1, 2).double() for t in (frames, noisy(frames)))
    assert found.ssim == pytest.approx(float(pytorch_msssim.ssim(x, y, data_range=255)), abs=1e-5)
    multi = float(pytorch_msssim.ms_ssim(x, y, data_range=255))
    assert found.ms_ssim == pytest.approx(multi, abs=1e-5)
    mean_square = (x - y).square().mean().item()
    assert 10 ** (-found.psnr_db / 10) * 255**2 == pytest.approx(mean_square, rel=1e-6)
    assert set(found.to_dict()) == {"psnr_db", "ssim", "ms_ssim"}


def test_small_frames_have_no_ms_ssim(frames: Tensor) -> None:
    small = frames[:, :64, :64]
    found = frame_error(small, noisy(small))
    assert found.ms_ssim is None
    assert FrameError(1.0, 0.5).to_dict() == {"psnr_db": 1.0, "ssim": 0.5}
