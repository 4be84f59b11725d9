"""GELU against torch's; what is quantized after it is exactly what it gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from llvq import dialect
from llvq.backends.triton.gelu import gelu, gelu_quantize
from llvq.backends.triton.specialize import Launcher
from llvq.formats import nvfp4
from tests.backends.triton.compare import all_same, relative_error
from tests.backends.triton.compiled import CHIPS, compiled, meta

BF16, FP32 = torch.bfloat16, torch.float32
APPROXIMATIONS = pytest.mark.parametrize("approximate", ["none", "tanh"])


@triton.jit
def activate(x, out, APPROXIMATE: tl.constexpr, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    y = gelu(tl.load(x + i).to(tl.float32), APPROXIMATE)
    tl.store(out + i, y.to(out.dtype.element_ty))


def activated(launch: Launcher, x: Tensor, approximate: str) -> Tensor:
    """The kernel's activation of at most 2048 values."""
    out = torch.empty(2048, dtype=x.dtype, device=x.device)
    padded = F.pad(x.flatten(), (0, 2048 - x.numel()), value=0.5)
    launch(activate, (1,), padded, out, exact=True, APPROXIMATE=approximate, COUNT=2048)
    return out[: x.numel()].view(x.shape)


@APPROXIMATIONS
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_gelu_is_that_of_torch(
    launch: Launcher, device: torch.device, approximate: str, dtype: torch.dtype
) -> None:
    """In both tails; far out it is 0 or x."""
    x = torch.cat([torch.linspace(-12, 12, 2040), torch.tensor([-1e30, 1e30, -90, 90, -40.0, 40])])
    x = x.to(device, dtype)
    found, wanted = activated(launch, x, approximate), F.gelu(x, approximate=approximate)
    assert found.isfinite().all()
    error = (found.double() - wanted.double()).abs()
    assert (error <= (1e-6 if dtype == FP32 else 2**-7) * wanted.double().abs().clamp(min=1)).all()


@APPROXIMATIONS
@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("static", [None, 0.004])
@pytest.mark.parametrize("smoothed", [True, False])
@pytest.mark.parametrize("rule", nvfp4.BLOCK_RULES)
def test_activations_are_quantized_as_they_would_be_stored(
    launch: Launcher,
    randn: Any,
    approximate: str,
    dtype: torch.dtype,
    static: float | None,
    smoothed: bool,
    rule: str,
) -> None:
    x = randn(2, 13, 48, dtype=dtype) * 3
    smooth = randn(48, dtype=dtype) if smoothed else None
    g = None if static is None else torch.tensor(static, device=x.device)
    y = activated(launch, x, approximate)
    assert relative_error(y, F.gelu(x, approximate=approximate)) <= 2**-7
    y = y if smooth is None else y * smooth
    found = gelu_quantize(launch, x, approximate, rule, g, smooth)
    assert all_same(found, dialect.quantize.reference(y, rule, g))


@pytest.mark.parametrize("chip", CHIPS)
@APPROXIMATIONS
def test_gelu_quantize_compiles(chip: str, approximate: str) -> None:
    x = meta(1, 7040, 14336)
    made = compiled(chip, gelu_quantize, x, approximate, "four_over_six", None, meta(14336))
    for one in made:
        assert one.resources.spilled == 0 and one.resources.registers <= 64
        assert "ld.global.v4.b32" in one.binary.ptx
