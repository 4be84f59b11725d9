"""How far the frames of a chunk are from those of the BF16 run."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor

from llvq.quality.metrics import psnr_db
from llvq.quality.similarity import similarity
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
    frames = zip(reference.split(1), value.split(1), strict=True)
    found = [similarity(*frame) for frame in frames]
    fine = [float(one.ssim) for one in found]
    multi = [float(one.ms_ssim) for one in found if one.ms_ssim is not None]
    return FrameError(
        psnr_db=psnr_db(reference, value),
        ssim=sum(fine) / len(fine),
        ms_ssim=sum(multi) / len(multi) if multi else None,
        vmaf=vmaf.score(reference, value) if vmaf else None,
    )
