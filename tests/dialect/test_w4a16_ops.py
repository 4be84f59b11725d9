"""The W4A16 linear: a linear on the values of its weight, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.dialect import nvfp4_linear_w4a16
from llvq.formats import nvfp4

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
K = 48


def held(randn: Any, rows: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of very different size, quantized one by one and stacked."""
    parts = [nvfp4.quantize(randn(count, K) * 4.0**i) for i, count in enumerate(rows)]
    codes, scales = (torch.cat([part[i].view(torch.uint8) for part in parts]) for i in (0, 1))
    return codes, scales.view(torch.float8_e4m3fn), torch.stack([part[2] for part in parts])


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("segments", [(11,), (3, 8), (1, 1, 9)])
@pytest.mark.parametrize("shape", [(1, K), (1, 7, K), (2, 3, 5, K)])
def test_it_is_the_linear_of_the_values(
    check_op: Any,
    randn: Any,
    dtype: torch.dtype,
    bias: bool,
    segments: tuple[int, ...],
    shape: tuple[int, ...],
) -> None:
    x, w = randn(*shape, dtype=dtype), held(randn, segments)
    b = randn(11, dtype=dtype) if bias else None
    found = check_op(nvfp4_linear_w4a16, x, *w, b, list(segments), dtype)
    codes, scales, globals_ = w
    ends = torch.tensor(segments).cumsum(0).tolist()
    wide = [
        nvfp4.dequantize(codes[end - n : end], scales[end - n : end], globals_[i], dtype)
        for i, (n, end) in enumerate(zip(segments, ends, strict=True))
    ]
    assert torch.equal(found, F.linear(x, torch.cat(wide), b))


def test_nan_in_a_token_stays_in_it(randn: Any) -> None:
    x, w = randn(1, 5, K), held(randn, (11,))
    clean = nvfp4_linear_w4a16.overload(x, *w, None, [11], torch.float32)
    x[0, 3, 7] = torch.nan
    found = nvfp4_linear_w4a16.overload(x, *w, None, [11], torch.float32)
    assert found[0, 3].isnan().all()
    assert torch.equal(found[0, :3], clean[0, :3])


def test_it_refuses_reduction_dims_that_differ(randn: Any) -> None:
    x, w = torch.empty(2, 32, device="meta"), [t.to("meta") for t in held(randn, (3,))]
    with pytest.raises(ValueError, match="x has K = 32, the weight has K = 48"):
        nvfp4_linear_w4a16.overload(x, *w, None, [3], torch.bfloat16)
