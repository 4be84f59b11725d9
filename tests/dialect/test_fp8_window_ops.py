"""Attention over a window that is in FP8 already: bit for bit what it is over K and V."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.dialect import attention_quantize_fp8, window_attention_quantize_fp8, window_fp8
from llvq.formats import fp8

BF16, FP32 = torch.bfloat16, torch.float32
HEADS, DIM = 2, 32


def same(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> bool:
    return all(
        torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        for a, b in zip(found, wanted, strict=True)
    )


def test_a_window_is_what_quantizing_gives_in_the_layout_of_tensor_cores(
    check_op: Any, randn: Any
) -> None:
    """Lane t of four holds sums 2t, 2t + 1, 2t + 8, 2t + 9, and wants its bytes together."""
    k, v = (randn(1, 37, HEADS, DIM, dtype=BF16) for _ in range(2))
    k_codes, v_codes, scales = check_op(window_fp8, k, v)
    assert k_codes.shape == (HEADS, 128, DIM) and v_codes.shape == (HEADS, DIM, 128)
    for x, codes, scale in zip((k, v), (k_codes, v_codes.mT), scales, strict=True):
        wanted, wanted_scale = fp8.quantize(x, (0, 1, 2, 3))
        assert torch.equal(scale, wanted_scale.view(()))
        rows = codes.float()
        if x is v:
            lanes = [[16 * b + c + 2 * t for c in (0, 1, 8, 9)]
                     for b in range(8) for t in range(4)]  # fmt: skip
            places = torch.tensor(lanes).view(-1)
            rows = torch.empty_like(rows).index_copy_(1, places, rows)
        assert torch.equal(rows[:, :37].transpose(0, 1), wanted[0].float())
        assert not rows[:, 37:].any()


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize(
    ("queries", "keys", "scale"), [(5, 1, None), (3, 130, 0.25), (7, 128, None)]
)
@pytest.mark.parametrize("coded", [False, True])
def test_attending_to_it_is_attention(
    check_op: Any,
    randn: Any,
    dtype: torch.dtype,
    queries: int,
    keys: int,
    scale: float | None,
    coded: bool,
) -> None:
    q, k, v = (randn(1, count, HEADS, DIM, dtype=dtype) for count in (queries, keys, keys))
    q_scale = torch.tensor([0.03]) if coded else None
    q = fp8.encode(q, q_scale) if q_scale is not None else q
    window = window_fp8.overload(k, v)
    found = check_op(window_attention_quantize_fp8, q, *window, keys, scale, q_scale)
    assert same(found, attention_quantize_fp8.overload(q, k, v, scale, q_scale))


def test_what_does_not_fit_is_refused() -> None:
    x = torch.empty(2, 5, HEADS, DIM, device="meta")
    with pytest.raises(ValueError, match="a window is of one video, not of 2"):
        window_fp8.overload(x, x)
    window = window_fp8.overload(x[:1], x[:1])
    with pytest.raises(ValueError, match="are no window of 129 keys"):
        window_attention_quantize_fp8.overload(x[:1], *window, 129)
    with pytest.raises(ValueError, match="only those in FP8 come with a scale"):
        window_attention_quantize_fp8.overload(x[:1].to(fp8.DTYPE), *window, 5)
