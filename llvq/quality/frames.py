"""How far the frames of a chunk are from those of the BF16 run."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor

from llvq.quality.metrics import psnr_db
from llvq.quality.similarity import ms_ssim, ssim
from llvq.quality.vmaf import Vmaf


@dataclass(frozen=True)
class FrameError:
    """Means over the frames of one chunk. None: frames too small for MS-SSIM, no VMAF here."""

    psnr_db: float
    ssim: float
    ms_ssim: float | None = None
    vmaf: float | None = None

    def to_dict(self) -> dict[str, float]:
        """Only what was measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def frame_error(reference: Tensor, value: Tensor, vmaf: Vmaf | None = None) -> FrameError:
    """Compare uint8 frames [F, H, W, 3]; VMAF where it is given."""
    frames = list(zip(reference.split(1), value.split(1), strict=True))
    coarse = [ms_ssim(*frame) for frame in frames]
    multi = [float(found) for found in coarse if found is not None]
    fine = [float(ssim(*frame)) for frame in frames]
    return FrameError(
        psnr_db=psnr_db(reference, value),
        ssim=sum(fine) / len(fine),
        ms_ssim=sum(multi) / len(multi) if multi else None,
        vmaf=vmaf.score(reference, value) if vmaf else None,
    )
