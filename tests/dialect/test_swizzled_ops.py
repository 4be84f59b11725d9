"""Swizzled scales hold what linear ones held, and the linear that reads them is the linear."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.dialect import nvfp4_linear, nvfp4_linear_swizzled, swizzle_scales
from llvq.formats import nvfp4

BF16, FP32, FP8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn


def scales_of(randn: Any, *shape: int) -> Tensor:
    return randn(*shape).abs().to(FP8)


@pytest.mark.parametrize(
    ("features", "blocks", "size"), [(1, 1, 512), (128, 4, 512), (129, 5, 2048), (300, 3, 1536)]
)
def test_scales_lie_where_the_layout_says(
    check_op: Any, randn: Any, features: int, blocks: int, size: int
) -> None:
    """Row r of an atom is at 16 * (r % 32) + 4 * (r // 32); an atom has four columns."""
    scales = scales_of(randn, features, blocks)
    found = check_op(swizzle_scales, scales)
    assert found.shape == (size,) and found.dtype == FP8
    wanted = torch.zeros(size)
    across = -(-blocks // 4)
    for r in range(features):
        for c in range(blocks):
            atom = r // 128 * across + c // 4
            place = 512 * atom + 16 * (r % 32) + 4 * (r % 128 // 32) + c % 4
            wanted[place] = scales[r, c].float()
    assert torch.equal(found.float(), wanted)


@pytest.mark.parametrize(("features", "blocks"), [(1, 1), (130, 6), (257, 12)])
def test_swizzled_scales_are_those_of_torchao(randn: Any, features: int, blocks: int) -> None:
    oracle = pytest.importorskip("torchao.prototype.mx_formats.utils").to_blocked
    scales = scales_of(randn, features, blocks)
    found, wanted = (t.view(torch.uint8).flatten() for t in (swizzle_scales.reference(scales),
                     oracle(scales, use_triton_kernel=False)))  # fmt: skip
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize(("tokens", "segments"), [(1, ()), (5, (3, 130))])
def test_the_linear_is_that_of_linear_scales(
    check_op: Any, randn: Any, dtype: torch.dtype, tokens: int, segments: tuple[int, ...]
) -> None:
    features = sum(segments) or 11
    x = nvfp4.quantize(randn(1, tokens, 80))
    codes, scales, g = nvfp4.quantize(randn(features, 80), block_rule="four_over_six")
    w_global = torch.stack([g * (i + 1) for i in range(len(segments) or 1)])
    rest = (w_global, randn(features, dtype=dtype), list(segments), dtype)
    found = check_op(nvfp4_linear_swizzled, *x, codes, swizzle_scales.overload(scales), *rest)
    assert torch.equal(found, nvfp4_linear.reference(*x, codes, scales, *rest))


def test_the_linear_refuses_what_does_not_fit(randn: Any) -> None:
    x = [t.to("meta") for t in nvfp4.quantize(randn(2, 32))]
    codes, scales, g = (t.to("meta") for t in nvfp4.quantize(randn(3, 32)))
    with pytest.raises(ValueError, match=r"w_scales is \[3, 2\], the atoms of w are \[512\]"):
        nvfp4_linear_swizzled.overload(*x, codes, scales, g, None, [], BF16)
    with pytest.raises(ValueError, match="x has K = 32, the weight has K = 48"):
        wide = [t.to("meta") for t in nvfp4.quantize(randn(3, 48))]
        nvfp4_linear_swizzled.overload(*x, *wide, None, [], BF16)
