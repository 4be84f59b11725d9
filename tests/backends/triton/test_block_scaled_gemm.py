"""The W4A4 GEMM of Blackwell: its numbers in the interpreter, its instructions in the PTX."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.backends.triton.block_scaled_gemm import (
    nvfp4_linear,
    nvfp4_linear_sm120,
    swizzle_scales,
)
from llvq.backends.triton.build import SHARED_MEMORY
from llvq.dialect import DIALECT
from llvq.dialect import nvfp4_linear as op
from llvq.dialect import nvfp4_linear_swizzled as swizzled
from llvq.formats import nvfp4
from tests.backends.triton.compiled import compiled, meta

BF16, FP32, FP8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
WRAPPERS = {
    "sm_100a": nvfp4_linear,
    "sm_103a": nvfp4_linear,
    "sm_120a": nvfp4_linear_sm120,
}
FP4_INSTRUCTION = r"kind::mxf4nvf4\.block_scale\.(scale_vec::4X|block16)"
# In the interpreter on a CPU; on a GPU only where the instruction exists.
ON_BLACKWELL = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 10,
    reason="this GPU has no four-bit tensor cores",
)


def stacked(randn: Any, rows: tuple[int, ...], features: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of very different size, quantized one by one and stacked."""
    parts = [nvfp4.quantize(randn(count, features) * 4.0**i) for i, count in enumerate(rows)]
    codes, scales = (torch.cat([part[i].view(torch.uint8) for part in parts]) for i in (0, 1))
    return codes, scales.view(FP8), torch.stack([part[2] for part in parts])


def require_close(found: Tensor, wanted: Tensor, segments: tuple[int, ...]) -> None:
    """Within the op's tolerance in each segment: the largest would hide the others."""
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    for a, b in zip(found.split(segments, -1), wanted.split(segments, -1), strict=True):
        error = (a.float() - b.float()).abs().max() / b.float().abs().max()
        assert error <= op.tolerance.relative


@ON_BLACKWELL
@pytest.mark.parametrize("wrapper", [nvfp4_linear, nvfp4_linear_sm120])
@pytest.mark.parametrize(
    ("lead", "segments", "features", "bias", "dtype"),
    [
        ((1, 1), (1,), 16, False, BF16),
        ((1, 5), (11,), 48, True, FP32),
        ((2, 65), (112, 32), 320, True, BF16),
        ((129,), (16, 130, 7), 272, False, BF16),
    ],
)
def test_it_is_the_linear_of_the_dialect(
    launch: Any,
    randn: Any,
    wrapper: Any,
    lead: tuple[int, ...],
    segments: tuple[int, ...],
    features: int,
    bias: bool,
    dtype: torch.dtype,
) -> None:
    x = nvfp4.quantize(randn(*lead, features), block_rule="four_over_six")
    w = stacked(randn, segments, features)
    b = randn(sum(segments), dtype=dtype) if bias else None
    arguments = (*x, *w, b, [] if len(segments) == 1 else list(segments), dtype)
    found = wrapper(launch, *arguments)
    require_close(found, op.reference(*arguments), segments)
    again = wrapper(launch, *arguments)
    assert torch.equal(found.view(torch.uint8), again.view(torch.uint8))


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (128, 4), (129, 70), (1, 300, 12)])
def test_scales_are_swizzled_as_the_format_says(
    launch: Any, randn: Any, shape: tuple[int, ...]
) -> None:
    scales = randn(*shape, dtype=FP32).to(FP8)
    found = swizzle_scales(launch, scales)
    wanted = nvfp4.swizzle_scales(scales.flatten(0, -2))
    assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))
    assert swizzle_scales(launch, found) is found


@ON_BLACKWELL
@pytest.mark.parametrize("wrapper", [nvfp4_linear, nvfp4_linear_sm120])
@pytest.mark.parametrize(("segments", "features"), [((20, 9), 80), ((130,), 272)])
def test_a_weight_that_was_swizzled_once_gives_the_same_bytes(
    launch: Any, randn: Any, wrapper: Any, segments: tuple[int, ...], features: int
) -> None:
    """The swizzle is the one of the dialect, which a loader runs."""
    x = nvfp4.quantize(randn(3, features))
    codes, scales, g = stacked(randn, segments, features)
    rest = (g, randn(sum(segments), dtype=BF16), list(segments), BF16)
    atoms = DIALECT["swizzle_scales"].reference(scales)
    found = wrapper(launch, *x, codes, atoms, *rest)
    require_close(found, swizzled.reference(*x, codes, atoms, *rest), segments)
    assert torch.equal(found, wrapper(launch, *x, codes, scales, *rest))


SHAPES = [(9216, 3072, 3), (3072, 3072, 1), (14336, 3072, 1), (3072, 14336, 1)]
NARROW = (512, 6144, 3072, 2)


@pytest.mark.parametrize("at_load", [True, False], ids=["swizzled", "linear"])
@pytest.mark.parametrize("chip", WRAPPERS)
@pytest.mark.parametrize(
    ("tokens", "features", "reduction", "parts"), [*((7040, *shape) for shape in SHAPES), NARROW]
)
def test_it_multiplies_in_four_bits_and_spills_nothing(
    chip: str, tokens: int, features: int, reduction: int, parts: int, at_load: bool
) -> None:
    """A weight that was swizzled at load leaves one swizzle to a call: that of x."""
    x = (meta(1, tokens, reduction // 2, dtype=torch.uint8),
         meta(1, tokens, reduction // 16, dtype=FP8), meta(dtype=FP32))  # fmt: skip
    w_scales = (features * reduction // 16,) if at_load else (features, reduction // 16)
    w = (meta(features, reduction // 2, dtype=torch.uint8),
         meta(*w_scales, dtype=FP8), meta(parts, dtype=FP32))  # fmt: skip
    segments = [features // parts] * parts
    made = compiled(chip, WRAPPERS[chip], *x, *w, meta(features), segments, BF16)
    assert [kernel.resources.spilled for kernel in made] == [0] * len(made)
    assert all(kernel.binary.shared <= SHARED_MEMORY[chip] for kernel in made)
    gemms = [kernel for kernel in made if "block_scaled_gemm" in kernel.binary.name]
    assert len(gemms) == 1 and re.search(FP4_INSTRUCTION, gemms[0].binary.ptx)
    assert "cp.async.bulk.tensor" in gemms[0].binary.ptx
