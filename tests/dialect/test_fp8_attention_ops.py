"""Attention in FP8: near SDPA, nearer to SDPA on rounded inputs; pages are read as they decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.dialect import (
    attention_fp8,
    attention_quantize_fp8,
    paged_attention_fp8,
    paged_attention_quantize_fp8,
    rope,
    write_page,
)
from llvq.formats import fp8
from llvq.formats.kv import KV_FORMATS

BF16, FP32 = torch.bfloat16, torch.float32
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP32])
FORMATS = pytest.mark.parametrize("kv_format", KV_FORMATS)
LAYERS, SLOTS, TOKENS, HEADS, HEAD_DIM = 2, 4, 3, 2, 64
# Of its largest value: inputs in E4M3 are within 1/16 of theirs, and errors of many channels and
# keys average out; the weights alone, likewise within 1/16, leave less.
ROUNDED_INPUTS, ROUNDED_WEIGHTS = 0.12, 0.04


def sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    q, k, v = (t.float().transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)


def far(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).abs().max() / expected.abs().max())


def rounded(x: Tensor, dims: tuple[int, ...], scale: Tensor | None = None) -> Tensor:
    """x as E4M3 holds it, in fp32."""
    if scale is None:
        codes, scale = fp8.quantize(x, dims)
    else:
        codes = fp8.encode(x, scale)
    return codes.float() * scale


def rounded_qkv(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    return [rounded(q, (-1,)), *(rounded(x, (0, 1, 2, 3)) for x in (k, v))]


@DTYPES
@pytest.mark.parametrize(
    ("queries", "keys", "scale"), [(1, 1, None), (7, 7, None), (3, 11, 0.25), (1, 5, None)]
)
def test_attention_fp8_is_near_sdpa(
    check_op: Any, randn: Any, dtype: torch.dtype, queries: int, keys: int, scale: float | None
) -> None:
    q = randn(2, queries, 3, 48, dtype=dtype)
    k, v = (randn(2, keys, 3, 48, dtype=dtype) for _ in range(2))
    found = check_op(attention_fp8, q, k, v, scale)
    assert found.dtype == dtype and found.is_contiguous()
    assert far(found, sdpa(q, k, v, scale)) < ROUNDED_INPUTS
    assert far(found, sdpa(*rounded_qkv(q, k, v), scale)) < ROUNDED_WEIGHTS


def test_weights_are_rounded_after_the_largest_is_scaled_to_256(randn: Any) -> None:
    """In plain words, in fp64, for one query."""
    q, k, v = randn(1, 1, 1, 16), randn(1, 9, 1, 16), randn(1, 9, 1, 16)
    wide = [x.double().flatten(0, 2) for x in rounded_qkv(q, k, v)]
    scores = (wide[0] @ wide[1].T / 16**0.5).flatten()
    weights = 256 * (scores - scores.max()).exp()
    steps = weights.float().to(torch.float8_e4m3fn).double()
    expected = (steps @ wide[2]) / weights.sum()
    found = attention_fp8.overload(q, k, v).flatten().double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_many_keys_average_the_rounding_out(randn: Any) -> None:
    q, k, v = randn(1, 16, 2, 64), randn(1, 2048, 2, 64), randn(1, 2048, 2, 64)
    found, expected = attention_fp8.reference(q, k, v), sdpa(q, k, v)
    assert (found - expected).norm() / expected.norm() < 0.06


def test_v_of_another_width(check_op: Any, randn: Any) -> None:
    q, k, v = randn(1, 5, 2, 16), randn(1, 9, 2, 16), randn(1, 9, 2, 48)
    assert check_op(attention_fp8, q, k, v).shape == (1, 5, 2, 48)


def test_zeros_and_nan(check_op: Any, randn: Any) -> None:
    q, k, v = (randn(1, 5, 2, 16) for _ in range(3))
    zeros = torch.zeros_like(k)
    even = check_op(attention_fp8, q, zeros, v)
    assert far(even, v.mean(1, keepdim=True).expand_as(v)) < ROUNDED_INPUTS
    assert not check_op(attention_fp8, q, k, zeros).any()
    q[0, 3, 1, 2] = torch.nan
    found = attention_fp8.overload(q, k, v)
    assert found[0, 3, 1].isnan().all() and found.isnan().sum() == 16
    k[0, 0, 0, 0] = torch.nan
    assert attention_fp8.overload(q, k, v).isnan().all()


def as_bytes(page: Tensor) -> Tensor:
    """The memory of a page tensor, its dimensions kept: [L, 2, P, ..., bytes]."""
    return page.unsqueeze(-1).view(torch.uint8)


def written(
    randn: Any, kv_format: str, dtype: torch.dtype, slots: Sequence[int], layer: int
) -> list[Tensor]:
    """Pages of ones bits in which `slots` of `layer` hold chunks of growing size."""
    specs = KV_FORMATS[kv_format].specs(LAYERS, SLOTS, TOKENS, HEADS, HEAD_DIM, dtype)
    pages = [torch.zeros(shape, dtype=kind) for _, kind, shape in specs]
    for page in pages:
        as_bytes(page).fill_(0xFF)
    for slot in slots:
        k, v = (chunk(randn, dtype) * 1.5**slot for _ in range(2))
        write_page.overload(pages, k, v, torch.tensor(slot), layer, kv_format)
    return pages


def chunk(randn: Any, dtype: torch.dtype) -> Tensor:
    return randn(1, TOKENS, HEADS, HEAD_DIM, dtype=dtype)


def int64(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def places() -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange((SLOTS + 1) * TOKENS), 0.5 ** torch.arange(HEAD_DIM // 2))
    return angles.cos(), angles.sin()


@FORMATS
@DTYPES
@pytest.mark.parametrize("table", [(), (2,), (3, 0, 2)])
@pytest.mark.parametrize("scale", [None, 0.1])
def test_a_window_of_pages_is_near_sdpa(
    check_op: Any,
    randn: Any,
    kv_format: str,
    dtype: torch.dtype,
    table: tuple[int, ...],
    scale: float | None,
) -> None:
    pages, kv = written(randn, kv_format, dtype, table, 1), KV_FORMATS[kv_format]
    q, k, v = (chunk(randn, dtype) for _ in range(3))
    args = (q, k, v, pages, int64(*table), None, None, scale, 1, kv_format)
    found = check_op(paged_attention_fp8, *args)
    assert found.dtype == dtype
    window = [
        torch.cat([kv.read(pages, 1, which, int64(*table), FP32)[None], own.float()], 1)
        for which, own in enumerate((k, v))
    ]
    assert far(found, sdpa(q, *window, scale)) < ROUNDED_INPUTS
    scales = [
        max([own.float().abs().max(), *kv.bound(pages, 1, which, int64(*table))]) / 448
        for which, own in enumerate((k, v))
    ]
    held = [rounded(x, (), s) for x, s in zip(window, scales, strict=True)]
    assert far(found, sdpa(rounded(q, (-1,)), *held, scale)) < ROUNDED_WEIGHTS


@pytest.mark.parametrize("table", [(), (1,), (0, 1, 2)])
def test_pages_in_the_dtype_are_tensors(randn: Any, table: tuple[int, ...]) -> None:
    pages = written(randn, "none", BF16, table, 0)
    q, k, v = (chunk(randn, BF16) for _ in range(3))
    found = paged_attention_fp8.overload(q, k, v, pages, int64(*table), None, None, None, 0, "none")
    window = [
        torch.cat([*(pages[0][0, which, slot][None] for slot in table), own], 1)
        for which, own in enumerate((k, v))
    ]
    assert torch.equal(found, attention_fp8.overload(q, *window))


@FORMATS
@DTYPES
@pytest.mark.parametrize("table", [(), (2,), (0, 1, 2)])
def test_relative_positions_rotate_the_window_by_place(
    check_op: Any, randn: Any, kv_format: str, dtype: torch.dtype, table: tuple[int, ...]
) -> None:
    pages, kv = written(randn, kv_format, dtype, table, 0), KV_FORMATS[kv_format]
    q, k, v = (chunk(randn, dtype) for _ in range(3))
    cos, sin = places()
    found = check_op(
        paged_attention_fp8, q, k, v, pages, int64(*table), cos, sin, None, 0, kv_format
    )
    end = (len(table) + 1) * TOKENS
    raw = torch.cat([kv.read(pages, 0, 0, int64(*table), dtype)[None], k], 1)
    values = torch.cat([kv.read(pages, 0, 1, int64(*table), dtype)[None], v], 1)
    own = slice(end - TOKENS, end)
    expected = sdpa(
        rope.reference(q, cos[own], sin[own]),
        rope.reference(raw, cos[:end], sin[:end]),
        values,
    )
    assert far(found, expected) < ROUNDED_INPUTS


def test_a_rotation_does_not_saturate(randn: Any) -> None:
    """The largest K is (m, m): rotated by 45 degrees it is sqrt(2) m, which its page's bound, m,
    does not cover."""
    k, q, v = torch.zeros(1, TOKENS, 1, 16), torch.zeros(1, TOKENS, 1, 16), randn(1, TOKENS, 1, 16)
    k[..., :2] = 100.0
    q[..., 1] = 0.4
    specs = KV_FORMATS["fp8"].specs(1, 1, TOKENS, 1, 16, FP32)
    pages = [torch.zeros(shape, dtype=kind) for _, kind, shape in specs]
    write_page.overload(pages, k, v, torch.tensor(0), 0, "fp8")
    angle = torch.full((2 * TOKENS, 8), torch.pi / 4)
    angle[TOKENS:] = 0.0
    cos, sin = angle.cos(), angle.sin()
    found = paged_attention_fp8.overload(q, k * 0.01, v, pages, int64(0), cos, sin, 0.05, 0, "fp8")
    turned = torch.cat([rope.reference(k, cos[:TOKENS], sin[:TOKENS]), k * 0.01], 1)
    assert turned.max() > 141
    assert far(found, sdpa(q, turned, torch.cat([v, v], 1), 0.05)) < 0.08


@FORMATS
@pytest.mark.parametrize("poison", [0x00, 0x7F, 0xFF])
def test_slots_outside_the_table_and_other_layers_are_not_read(
    randn: Any, kv_format: str, poison: int
) -> None:
    pages = written(randn, kv_format, BF16, (0, 2), 1)
    q, k, v = (chunk(randn, BF16) for _ in range(3))
    args = (q, k, v, pages, int64(2, 0), None, None, None, 1, kv_format)
    before = paged_attention_fp8.overload(*args)
    for page in pages:
        as_bytes(page)[0] = poison
        as_bytes(page)[1, :, 1::2] = poison
    assert torch.equal(paged_attention_fp8.overload(*args), before)
    assert before.isfinite().all()


@FORMATS
def test_nan_in_a_page_is_seen(randn: Any, kv_format: str) -> None:
    pages = written(randn, kv_format, BF16, (0, 1), 0)
    q, k, v = (chunk(randn, BF16) for _ in range(3))
    spoiled = k.clone()
    spoiled[0, 1, 1, 3] = torch.nan
    write_page.overload(pages, spoiled, v, torch.tensor(1), 0, kv_format)
    args = (pages, int64(0, 1), None, None, None, 0, kv_format)
    assert paged_attention_fp8.overload(q, k, v, *args).isnan().all()


@DTYPES
def test_written_in_fp8_it_is_attention_under_the_scale_of_v(
    check_op: Any, randn: Any, dtype: torch.dtype
) -> None:
    q, k, v = (randn(1, tokens, HEADS, HEAD_DIM, dtype=dtype) for tokens in (5, 9, 9))
    values, scale = check_op(attention_quantize_fp8, q, k, v)
    assert torch.equal(scale, torch.full_like(scale, float(v.float().abs().max() / 448)))
    found = (values.float() * scale).unflatten(-1, (HEADS, -1))
    assert far(found, sdpa(*rounded_qkv(q, k, v))) < ROUNDED_WEIGHTS + 2**-4
    assert far(found, attention_fp8.overload(q, k, v).float()) < 2**-4


@FORMATS
def test_over_pages_too(check_op: Any, randn: Any, kv_format: str) -> None:
    pages = written(randn, kv_format, BF16, (2, 0), 1)
    q, k, v = (chunk(randn, BF16) for _ in range(3))
    args = (q, k, v, pages, int64(2, 0), *places(), None, 1, kv_format)
    values, scale = check_op(paged_attention_quantize_fp8, *args)
    found = (values.float() * scale).unflatten(-1, (HEADS, -1))
    assert far(found, paged_attention_fp8.overload(*args).float()) < 2**-4


def test_queries_may_come_in_fp8(check_op: Any, randn: Any) -> None:
    q, k, v = (randn(1, tokens, HEADS, HEAD_DIM) for tokens in (5, 9, 9))
    q_scale = torch.tensor([0.03])
    codes = fp8.encode(q, q_scale)
    values, scale = check_op(attention_quantize_fp8, codes, k, v, 0.2, q_scale)
    found = (values.float() * scale).unflatten(-1, (HEADS, -1))
    _, *held = rounded_qkv(q, k, v)
    assert far(found, sdpa(codes.float() * q_scale, *held, 0.2)) < ROUNDED_WEIGHTS + 2**-4


@FORMATS
@pytest.mark.parametrize("rotated", [False, True])
def test_the_scale_of_k_may_be_given(
    check_op: Any, randn: Any, kv_format: str, rotated: bool
) -> None:
    """A bound that is 9 times as large as it had to be costs nothing: E4M3 is floating."""
    pages = written(randn, kv_format, BF16, (2, 0), 1)
    q, k, v = (chunk(randn, BF16) for _ in range(3))
    angles = places() if rotated else (None, None)
    args = (pages, int64(2, 0), *angles, None, 1, kv_format)
    scale = KV_FORMATS[kv_format].bound(pages, 1, 0, int64(2, 0)).amax().view(1) * 9 / 448
    found, plain = (
        values.float() * v_scale
        for values, v_scale in (
            check_op(paged_attention_quantize_fp8, q, k, v, *args, None, scale),
            paged_attention_quantize_fp8.overload(q, k, v, *args),
        )
    )
    wanted = paged_attention_fp8.overload(q, k, v, *args).float().flatten(2)
    assert far(found, wanted) < 2 * ROUNDED_WEIGHTS + 2**-4
    assert not torch.equal(found, plain)


def test_queries_and_their_scale_come_together(randn: Any) -> None:
    x, scale = torch.empty(1, 5, 2, 32, device="meta"), torch.empty(1, device="meta")
    with pytest.raises(ValueError, match="only those in FP8 come with a scale"):
        attention_quantize_fp8.overload(x, x, x, None, scale)
    table, angle = torch.empty(0, dtype=torch.int64, device="meta"), scale.expand(5, 16)
    with pytest.raises(ValueError, match="only those in FP8 come with a scale"):
        attention_quantize_fp8.overload(x.to(fp8.DTYPE), x, x)
    args = (x, x, [], table, angle, angle, None, 0, "none", scale)
    with pytest.raises(ValueError, match="queries in FP8 cannot be rotated"):
        paged_attention_quantize_fp8.overload(x.to(fp8.DTYPE), *args)
