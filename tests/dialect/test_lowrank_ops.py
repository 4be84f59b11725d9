"""Linears with a low-rank branch: fused ops are their parts, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llvq.dialect import lowrank_add, nvfp4_linear, nvfp4_linear_lowrank, quantize, quantize_lowrank
from llvq.formats import nvfp4

BF16, FP32 = torch.bfloat16, torch.float32
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP32])
K = 48


@DTYPES
@pytest.mark.parametrize(("rank", "tokens", "rows"), [(1, 1, 5), (4, 7, 16), (32, 3, 11)])
def test_lowrank_add_adds_two_products(
    check_op: Any, randn: Any, dtype: torch.dtype, rank: int, tokens: int, rows: int
) -> None:
    x, y = randn(1, tokens, K, dtype=dtype), randn(1, tokens, rows, dtype=dtype)
    down, up = randn(rank, K, dtype=dtype), randn(rows, rank, dtype=dtype)
    found = check_op(lowrank_add, y, x, down, up)
    assert torch.equal(found, y + F.linear(F.linear(x, down), up))
    wide = y.double() + x.double() @ (up.double() @ down.double()).T
    torch.testing.assert_close(found.double(), wide, rtol=0, atol=0.03 * float(wide.abs().max()))


@DTYPES
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("tokens", [1, 7])
def test_quantize_lowrank_is_its_parts(
    check_op: Any, randn: Any, dtype: torch.dtype, static: bool, tokens: int
) -> None:
    x, down = randn(2, tokens, K, dtype=dtype), randn(6, K, dtype=dtype)
    scale = torch.tensor(0.002) if static else None
    *packed, projected = check_op(quantize_lowrank, x, down, "four_over_six", scale)
    wanted = quantize.overload(x, "four_over_six", scale)
    for a, b in zip(packed, wanted, strict=True):
        assert torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))
    assert torch.equal(projected, F.linear(x, down))


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("segments", [(11,), (3, 8), (1, 1, 9)])
@pytest.mark.parametrize("tokens", [1, 5])
def test_nvfp4_linear_lowrank_gives_each_segment_its_own_branch(
    check_op: Any,
    randn: Any,
    dtype: torch.dtype,
    bias: bool,
    segments: tuple[int, ...],
    tokens: int,
) -> None:
    rank, rows = 4, sum(segments)
    x = randn(1, tokens, K, dtype=dtype)
    downs = [randn(rank, K, dtype=dtype) for _ in segments]
    ups = [randn(count, rank, dtype=dtype) for count in segments]
    b = randn(rows, dtype=dtype) if bias else None
    codes, scales, _ = nvfp4.quantize(randn(rows, K))
    weight = codes, scales, torch.arange(1, len(segments) + 1) * 1e-3
    *packed, projected = quantize_lowrank.overload(x, torch.cat(downs), "max")
    found = check_op(
        nvfp4_linear_lowrank, *packed, *weight, b, projected, torch.cat(ups), list(segments), dtype
    )
    y = nvfp4_linear.overload(*packed, *weight, b, list(segments), dtype)
    parts = zip(y.split(segments, -1), downs, ups, strict=True)
    wanted = torch.cat([lowrank_add.overload(p, x, d, u) for p, d, u in parts], -1)
    torch.testing.assert_close(found, wanted)  # One product of stacked rows: another order of sums.


def test_branches_that_do_not_fit_are_refused() -> None:
    x, y = torch.empty(2, K, device="meta"), torch.empty(2, 8, device="meta")
    down, up = torch.empty(4, K, device="meta"), torch.empty(8, 4, device="meta")
    lowrank_add.overload(y, x, down, up)
    for wrong in ((y, x, down[:3], up), (y, x, down[:, :16], up), (y, x, down, up[:7])):
        with pytest.raises(ValueError, match=f"no branch from K = {K} to 8 features"):
            lowrank_add.overload(*wrong)
    held = [
        t.to("meta") for t in (*nvfp4.quantize(torch.ones(2, K)), *nvfp4.quantize(torch.ones(8, K)))
    ]
    nvfp4_linear_lowrank.overload(*held, None, x[:, :4], up, [8], BF16)
    for segments, rows in (([3, 5], up), ([8], up[:7])):
        with pytest.raises(ValueError, match="does not fit a weight of 8 rows"):
            nvfp4_linear_lowrank.overload(*held, None, x[:, :4], rows, segments, BF16)
