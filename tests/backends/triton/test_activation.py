"""GELU against PyTorch's, in fp32."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from llvq.backends.triton.activation import gelu
from llvq.backends.triton.specialize import Launcher


@triton.jit
def gelu_kernel(x, y, count, BLOCK: tl.constexpr, APPROXIMATE: tl.constexpr):
    place = tl.arange(0, BLOCK)
    value = tl.load(x + place, mask=place < count)
    tl.store(y + place, gelu(value, APPROXIMATE), mask=place < count)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_it_is_gelu(launch: Launcher, device: torch.device, approximate: str) -> None:
    x = torch.cat([torch.linspace(-12, 12, 999), torch.tensor([-1e4, 1e4, -0.0, torch.nan])])
    x = x.to(device)
    y = torch.empty_like(x)
    launch(gelu_kernel, (1,), x, y, x.numel(), BLOCK=1024, APPROXIMATE=approximate)
    wanted = torch.nn.functional.gelu(x.double(), approximate=approximate).float()
    assert torch.allclose(y, wanted, rtol=1e-5, atol=1e-6, equal_nan=True)
