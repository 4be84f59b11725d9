"""The scale of a tensor from the bits of its largest magnitude, against the format's function."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from llvq.backends.triton.global_scale import load_global_scale, no_amax, scale_of_amax
from llvq.backends.triton.specialize import Launcher
from llvq.formats import nvfp4
from tests.backends.triton.compare import same_bytes


@triton.jit
def scales(amax, out, RULE: tl.constexpr, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    bits = tl.load(amax + i).to(tl.int32, bitcast=True)
    tl.store(out + i, scale_of_amax(bits, RULE))


@triton.jit
def choose(given, amax, out, RULE: tl.constexpr):
    tl.store(out, load_global_scale(given, amax, RULE))


@pytest.mark.parametrize("rule", nvfp4.BLOCK_RULES)
def test_the_scale_is_that_of_the_format(launch: Launcher, device: torch.device, rule: str) -> None:
    """From the least subnormal to infinity and NaN."""
    amax = torch.logspace(-149, 127.9, 1024, base=2, dtype=torch.float64).float()
    amax[:4] = torch.tensor([0.0, float("inf"), float("nan"), 2.0**-149])
    amax, out = amax.to(device), torch.empty(1024, device=device)
    launch(scales, (1,), amax, out, exact=True, RULE=rule, COUNT=1024)
    assert same_bytes(out, nvfp4.global_scale(amax, rule))


def test_a_given_scale_is_taken(launch: Launcher, device: torch.device) -> None:
    out = torch.empty((), device=device)
    launch(choose, (1,), torch.tensor(0.125, device=device), None, out, RULE="max")
    assert out == 0.125
    amax = no_amax(out)
    launch(choose, (1,), None, amax, out, RULE="max")
    assert out == 1.0
