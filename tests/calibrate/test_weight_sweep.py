"""The best scale of each block, against ModelOpt's quantizer with every scale there is."""

from __future__ import annotations

import pytest
import torch
from modelopt.torch.quantization.qtensor import NVFP4QTensor

from llvq.calibrate import weight_sweep
from llvq.calibrate.weight_sweep import best_block_amax


def error_of(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The squared error of each block under ModelOpt's quantization with those E4M3 scales."""
    unit = weight.abs().amax().float() / (6 * 448)
    tensor, used, unit = NVFP4QTensor.quantize(
        weight.clone(), 16, weights_scaling_factor=scales, weights_scaling_factor_2=unit
    )
    found = tensor.dequantize(
        dtype=torch.float32, scale=used, double_scale=unit, block_sizes={-1: 16}
    )
    return (found - weight.float()).pow(2).unflatten(-1, (-1, 16)).sum(-1)


@pytest.fixture
def weight() -> torch.Tensor:
    torch.manual_seed(3)
    weight = torch.randn(12, 48)
    weight[:, 5] *= 20
    return weight.bfloat16()


def test_no_scale_loses_less(weight: torch.Tensor) -> None:
    amax = best_block_amax(weight)
    assert amax.shape == (12, 3) and amax.dtype == torch.bfloat16
    unit = weight.abs().amax().float() / (6 * 448)
    chosen = error_of(weight, (amax.float() / 6 / unit).to(torch.float8_e4m3fn))
    codes = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn)
    every = torch.stack([error_of(weight, code.expand(12, 3).clone()) for code in codes])
    assert (chosen <= every.amin(0) * (1 + 1e-3)).all()


def test_rows_do_not_depend_on_the_cut(
    weight: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = best_block_amax(weight)
    monkeypatch.setattr(weight_sweep, "CHUNK_ELEMENTS", 5 * 48)
    assert torch.equal(best_block_amax(weight), whole)


def test_zeros_give_something_finite() -> None:
    assert best_block_amax(torch.zeros(2, 32).bfloat16()).isfinite().all()
