"""Structural similarity of frames: SSIM and MS-SSIM, as their papers define them.

Wang et al. 2004 ("Image quality assessment: from error visibility to structural similarity") and
Wang et al. 2003 ("Multi-scale structural similarity"), on each colour channel, an 11x11 Gaussian
window of sigma 1.5, borders left out, values in 0..255. Frames are uint8 [F, H, W, 3].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
_HEIGHTS = [math.exp(-((k - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for k in range(WINDOW)]
GAUSSIAN = [height / sum(_HEIGHTS) for height in _HEIGHTS]
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# The coarsest of the five scales must still hold a window.
MS_SSIM_MIN_SIDE = WINDOW * 2 ** (len(SCALE_WEIGHTS) - 1)


@dataclass(frozen=True)
class Similarity:
    """Of each frame, fp64 [F]; 1 where frames are equal. `ms_ssim` is None for frames smaller than
    MS_SSIM_MIN_SIDE."""

    ssim: Tensor
    ms_ssim: Tensor | None


def similarity(reference: Tensor, value: Tensor) -> Similarity:
    """Both at once: the finest scale of MS-SSIM is SSIM, and most of the work."""
    x, y = _channels_first(reference, value)
    fine, structure = _ssim_and_structure(x, y)
    if min(reference.shape[1:3]) < MS_SSIM_MIN_SIDE:
        return Similarity(fine.mean(dim=1), None)
    # A negative factor has no real power; 0 says the same, that nothing is alike.
    product = structure.clamp(min=0) ** SCALE_WEIGHTS[0]
    for scale, weight in enumerate(SCALE_WEIGHTS[1:], start=1):
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        coarse, structure = _ssim_and_structure(x, y)
        last = scale == len(SCALE_WEIGHTS) - 1
        product = product * (coarse if last else structure).clamp(min=0) ** weight
    return Similarity(fine.mean(dim=1), product.mean(dim=1))


def _channels_first(reference: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    if reference.shape != value.shape:
        raise ValueError(f"shapes {tuple(reference.shape)} and {tuple(value.shape)} differ")
    x, y = (t.permute(0, 3, 1, 2).to(torch.float64) for t in (reference, value))
    return x, y


def _ssim_and_structure(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM, and its contrast and structure part alone; means over each channel, [F, 3]."""
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    structure = (2 * covariance + C2) / (var_x + var_y + C2)
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return (luminance * structure).mean(dim=(2, 3)), structure.mean(dim=(2, 3))


def _blur(x: Tensor) -> Tensor:
    """The Gaussian window over [F, 3, H, W], without padding: one axis, then the other.

    As sums of shifted frames: PyTorch has no fast convolution in fp64.
    """
    for axis in (2, 3):
        parts = [x.narrow(axis, k, x.shape[axis] - WINDOW + 1) for k in range(WINDOW)]
        x = parts[0] * GAUSSIAN[0]
        for part, weight in zip(parts[1:], GAUSSIAN[1:], strict=True):
            x.add_(part, alpha=weight)
    return x
