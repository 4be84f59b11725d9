"""What a video looks like without a reference: curves that show it darken, blur, freeze or break.

The measures are the usual ones of video quality control: luma (BT.709) and its spread, saturation,
sharpness as the variance of a Laplacian, motion as the mean absolute change between frames. Frames
are uint8 [F, H, W, 3]; numbers are in grey levels 0..255 unless said otherwise.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BT709 = (0.2126, 0.7152, 0.0722)
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
# ffmpeg's freezedetect and blackdetect call a frame frozen or black at about these levels.
FROZEN_BELOW = 0.25
BLACK_BELOW = 25.0


@dataclass(frozen=True)
class Health:
    """One chunk. `motion` is NaN and `frozen` 0 for a chunk of one frame and none before it."""

    luma: float
    contrast: float
    """Standard deviation of luma within a frame, mean over frames."""
    saturation: float
    """max(R, G, B) - min(R, G, B), mean over pixels."""
    sharpness: float
    """Variance of the Laplacian of luma, mean over frames; in grey levels squared."""
    motion: float
    """Mean absolute change of luma from a frame to the next."""
    frozen: int
    """Frames that moved less than FROZEN_BELOW from the one before."""
    black: int
    """Frames with a mean luma below BLACK_BELOW."""

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def health(frames: Tensor, before: Tensor | None = None) -> Health:
    """The health of one chunk; `before` is the last frame [H, W, 3] of the chunk before it."""
    luma = _luma(frames)
    joined = luma if before is None else torch.cat((_luma(before[None]), luma))
    motion = (joined[1:] - joined[:-1]).abs().mean(dim=(1, 2))
    wide = frames.to(torch.float32)
    laplacian = F.conv2d(luma[:, None], torch.tensor(LAPLACIAN)[None, None])
    return Health(
        luma=float(luma.mean()),
        contrast=float(luma.std(dim=(1, 2), correction=0).mean()),
        saturation=float((wide.amax(-1) - wide.amin(-1)).mean()),
        sharpness=float(laplacian.var(dim=(1, 2, 3), correction=0).mean()),
        motion=float(motion.mean()) if motion.numel() else float("nan"),
        frozen=int((motion < FROZEN_BELOW).sum()),
        black=int((luma.mean(dim=(1, 2)) < BLACK_BELOW).sum()),
    )


def _luma(frames: Tensor) -> Tensor:
    return frames.to(torch.float32) @ torch.tensor(BT709)
