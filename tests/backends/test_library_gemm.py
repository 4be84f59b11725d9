"""cuBLASLt cannot run here: torch checks the call on fake tensors, and the numbers are those of a
stand-in that reads the operands as torch documents them."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from llvq.backends.library_gemm import RECIPE, SWIZZLE, nvfp4_linear_library
from llvq.dialect import DIALECT, nvfp4_linear
from llvq.errors import TargetError
from llvq.formats import nvfp4
from tests.backends.triton.interpreter import Interpreted

BF16 = torch.bfloat16
CASES = pytest.mark.parametrize(
    ("lead", "segments", "features", "bias"),
    [((1, 5), (16,), 32, True), ((2, 65), (32, 112), 80, False), ((130,), (48, 16, 16), 64, True)],
)


def operands(lead: tuple[int, ...], segments: tuple[int, ...], features: int, bias: bool) -> Any:
    generator = torch.Generator().manual_seed(sum(segments))

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(BF16)

    parts = [nvfp4.quantize(randn(count, features) * 4.0**i) for i, count in enumerate(segments)]
    codes, scales = (torch.cat([part[i].view(torch.uint8) for part in parts]) for i in (0, 1))
    w = (codes, scales.view(torch.float8_e4m3fn), torch.stack([part[2] for part in parts]))
    b = randn(sum(segments)) if bias else None
    return (*nvfp4.quantize(randn(*lead, features)), *w, b, list(segments), BF16)


def stand_in(a: Tensor, b: Tensor, **given: Any) -> Tensor:
    """A product of operands with scales in atoms and a global scale each."""
    assert given["scale_recipe_a"] == given["scale_recipe_b"] == RECIPE
    assert given["swizzle_a"] == given["swizzle_b"] == SWIZZLE
    wide = []
    for codes, (atoms, scale) in ((a, given["scale_a"]), (b.t(), given["scale_b"])):
        codes = codes.contiguous().view(torch.uint8)
        linear = nvfp4.unswizzle_scales(atoms, codes.shape[0], codes.shape[1] // 8)
        wide.append(nvfp4.dequantize(codes, linear, scale, torch.float32))
    return F.linear(*wide, None if given["bias"] is None else given["bias"].float()).to(BF16)


@CASES
def test_it_is_the_linear_of_the_dialect(
    lead: tuple[int, ...], segments: tuple[int, ...], features: int, bias: bool
) -> None:
    args = operands(lead, segments, features, bias)
    with patch.object(F, "scaled_mm", stand_in):
        found = nvfp4_linear_library(Interpreted(), *args)
    wanted = nvfp4_linear.reference(*args)
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    for a, b in zip(found.split(segments, -1), wanted.split(segments, -1), strict=True):
        error = (a.float() - b.float()).abs().max() / b.float().abs().max()
        assert error <= nvfp4_linear.tolerance.relative


@CASES
def test_torch_takes_the_call(
    lead: tuple[int, ...], segments: tuple[int, ...], features: int, bias: bool
) -> None:
    """Fake tensors that say they are on the CPU go through torch's checks of NVFP4 operands."""
    args = operands(lead, segments, features, bias)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in args]
        found = nvfp4_linear_library(lambda *_, **__: None, *fakes)
    assert found.shape == (*lead, sum(segments)) and found.dtype == BF16


def swizzled(args: Any) -> Any:
    """The same operands, the scales of the weight in atoms."""
    return (*args[:4], DIALECT["swizzle_scales"].reference(args[4]), *args[5:])


@pytest.mark.parametrize("segments", [(48,), (128, 256, 16)])
def test_a_weight_that_was_swizzled_at_load_gives_the_same_bytes(segments: tuple[int, ...]) -> None:
    args = operands((2, 5), segments, 80, True)
    held = swizzled(args)
    with patch.object(F, "scaled_mm", stand_in):
        found, wanted = (nvfp4_linear_library(Interpreted(), *each) for each in (held, args))
    assert torch.equal(found, wanted)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in held]
        nvfp4_linear_library(lambda *_, **__: None, *fakes)


def test_swizzled_scales_are_not_cut_within_an_atom() -> None:
    args = swizzled(operands((5,), (112, 32), 80, False))
    with pytest.raises(TargetError, match="128 rows share an atom"):
        nvfp4_linear_library(Interpreted(), *args)


@pytest.mark.skipif(torch.__version__ < (2, 13), reason="torch 2.11 checks no fake scales")
def test_torch_refuses_a_call_with_other_scales() -> None:
    """So its checks did look at them."""
    args = operands((5,), (16,), 32, False)
    with FakeTensorMode() as mode, pytest.raises(RuntimeError, match="for NV scaling scale_a must"):
        fakes = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in args]
        flat = fakes[1].new_empty(128)
        nvfp4_linear_library(lambda *_, **__: None, fakes[0], flat, *fakes[2:])
