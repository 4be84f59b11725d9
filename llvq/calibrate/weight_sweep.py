"""ModelOpt's `mse` for a weight: the scale of each block that loses least, of all that exist.

Its calibrator tries all 126 positive E4M3 scales. It is handed the weight a few rows at a time: its
table of errors is eight times as large as the weight. The activations have no part in it.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.calibrate.modelopt_backend import modelopt_version
from llvq.formats.nvfp4 import BLOCK, E2M1_MAX, E4M3_MAX, amax_of

CHUNK_ELEMENTS = 1 << 20


@torch.no_grad()
def best_block_amax(weight: Tensor) -> Tensor:
    """weight [N, K] -> the magnitude that each block is best scaled for, bf16 [N, K/16].

    bf16 tells apart what E4M3 does: its scale rounds back to the one that was chosen.
    Raises TargetError without ModelOpt.
    """
    modelopt_version()
    largest = amax_of(weight).float()
    step = max(1, CHUNK_ELEMENTS // weight.shape[1])
    rows = [_sweep(part, largest) for part in weight.split(step)]
    return torch.cat(rows).to(torch.bfloat16)


def _sweep(weight: Tensor, largest: Tensor) -> Tensor:
    from modelopt.torch.quantization.calib.mse import NVFP4MSECalibrator

    blocks_B16 = weight.reshape(-1, BLOCK).float()
    calibrator = NVFP4MSECalibrator(
        amax=blocks_B16.abs().amax(1, keepdim=True),
        global_amax=largest,
        axis=0,
        quant_func=partial(_fake_quantize, largest=largest),
        # Naming the error keeps it off its Triton kernel: one arithmetic on every device.
        error_func=partial(F.mse_loss, reduction="none"),
    )
    calibrator.collect(blocks_B16)
    return calibrator.compute_amax().reshape(weight.shape[0], -1)


def _fake_quantize(blocks_B16: Tensor, amax: Tensor, *, largest: Tensor) -> Tensor:
    """Blocks to NVFP4 and back, each scaled for the magnitude `amax` [B, 1]."""
    unit = (largest / (E2M1_MAX * E4M3_MAX)).clamp(min=torch.finfo(torch.float32).tiny)
    scale = (amax / E2M1_MAX / unit).clamp(max=E4M3_MAX).to(torch.float8_e4m3fn).float() * unit
    magnitude = (blocks_B16 / scale).abs().clamp(max=E2M1_MAX)
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    return torch.copysign((magnitude / step).round() * step * scale, blocks_B16)
