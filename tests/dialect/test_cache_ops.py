"""Cache ops: what is written is read back, and nothing that the table does not name is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.dialect import (
    attention,
    paged_attention,
    paged_attention_kept,
    rope,
    write_kept,
    write_page,
)
from llvq.formats.kv import KV_FORMATS

LAYERS, SLOTS, TOKENS, HEADS, HEAD_DIM = 2, 4, 3, 2, 64
BF16, FP32 = torch.bfloat16, torch.float32
FORMATS = pytest.mark.parametrize("kv_format", KV_FORMATS)
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP32])
TABLES = pytest.mark.parametrize("table", [(), (2,), (0, 1, 2), (3, 0, 2)])


def as_bytes(page: Tensor) -> Tensor:
    """The memory of a page tensor, its dimensions kept: [L, 2, P, ..., bytes]."""
    return page.unsqueeze(-1).view(torch.uint8)


def poisoned_pages(kv_format: str, dtype: torch.dtype) -> list[Tensor]:
    """Pages of all ones bits: NaN in every float format, the largest code in NVFP4."""
    specs = KV_FORMATS[kv_format].specs(LAYERS, SLOTS, TOKENS, HEADS, HEAD_DIM, dtype)
    pages = [torch.zeros(shape, dtype=kind) for _, kind, shape in specs]
    for page in pages:
        as_bytes(page).fill_(0xFF)
    return pages


def int64(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def chunk(randn: Any, dtype: torch.dtype) -> Tensor:
    return randn(1, TOKENS, HEADS, HEAD_DIM, dtype=dtype)


def written(
    randn: Any, kv_format: str, dtype: torch.dtype, slots: Sequence[int], layer: int
) -> list[Tensor]:
    """Poisoned pages in which `slots` of `layer` hold chunks of growing size."""
    pages = poisoned_pages(kv_format, dtype)
    for slot in slots:
        k, v = (chunk(randn, dtype) * 2.0**slot for _ in range(2))
        write_page.overload(pages, k, v, torch.tensor(slot), layer, kv_format)
    return pages


def bits(pages: Sequence[Tensor]) -> list[Tensor]:
    return [as_bytes(page).clone() for page in pages]


def check_paged(check_op: Any, *args: Any) -> Tensor:
    found: Tensor = check_op(paged_attention, *args)
    assert not found.isnan().any()
    return found


@FORMATS
@DTYPES
def test_write_page_passes_the_checks_of_torch(
    opcheck: Any, randn: Any, kv_format: str, dtype: torch.dtype
) -> None:
    pages = written(randn, kv_format, dtype, range(SLOTS), 0)
    args = (pages, chunk(randn, dtype), chunk(randn, dtype), torch.tensor(1), 0, kv_format)
    opcheck(write_page, args)


@FORMATS
@DTYPES
@pytest.mark.parametrize(("slot", "layer"), [(0, 0), (3, 1)])
def test_write_page_fills_one_slot_of_one_layer(
    randn: Any, kv_format: str, dtype: torch.dtype, slot: int, layer: int
) -> None:
    pages, k, v = poisoned_pages(kv_format, dtype), chunk(randn, dtype), chunk(randn, dtype)
    before = bits(pages)
    write_page.overload(pages, k, v, torch.tensor(slot), layer, kv_format)
    for page, old in zip(pages, before, strict=True):
        now = as_bytes(page).clone()
        assert (now[layer, :, slot] != 0xFF).any()
        now[layer, :, slot] = old[layer, :, slot]
        assert torch.equal(now, old)


@FORMATS
@DTYPES
def test_a_written_chunk_reads_back(randn: Any, kv_format: str, dtype: torch.dtype) -> None:
    pages, k, v = poisoned_pages(kv_format, dtype), chunk(randn, dtype), chunk(randn, dtype)
    write_page.overload(pages, k, v, torch.tensor(2), 1, kv_format)
    error = {"none": 0.0, "fp8": 0.07, "nvfp4": 0.3, "int4": 0.3, "int2": 0.7}[kv_format]
    for which, given in enumerate((k, v)):
        back = KV_FORMATS[kv_format].read(pages, 1, which, int64(2), dtype)
        assert (back - given[0]).norm() <= error * given.norm()


@FORMATS
@DTYPES
@TABLES
@pytest.mark.parametrize("scale", [None, 0.5])
def test_paged_attention_is_attention_over_the_concatenation(
    check_op: Any,
    randn: Any,
    kv_format: str,
    dtype: torch.dtype,
    table: tuple[int, ...],
    scale: float | None,
) -> None:
    pages = written(randn, kv_format, dtype, table, 1)
    q, k, v = (chunk(randn, dtype) for _ in range(3))
    found = check_paged(check_op, q, k, v, pages, int64(*table), None, None, scale, 1, kv_format)
    keys, values = ([KV_FORMATS[kv_format].read(pages, 1, which, int64(slot), dtype)[None]
                     for slot in table] for which in (0, 1))  # fmt: skip
    expected = attention.reference(
        q, torch.cat([*keys, k], 1), torch.cat([*values, v], 1), scale=scale
    )
    assert torch.equal(found, expected)


@FORMATS
@TABLES
def test_relative_positions_rotate_the_window_by_place(
    check_op: Any, randn: Any, kv_format: str, table: tuple[int, ...]
) -> None:
    pages = written(randn, kv_format, FP32, table, 0)
    q, k, v = (chunk(randn, FP32) for _ in range(3))
    places = torch.outer(torch.arange((SLOTS + 1) * TOKENS), 0.5 ** torch.arange(HEAD_DIM // 2))
    cos, sin = places.cos(), places.sin()
    found = check_paged(check_op, q, k, v, pages, int64(*table), cos, sin, None, 0, kv_format)
    kv, start = KV_FORMATS[kv_format], len(table) * TOKENS
    own = slice(start, start + TOKENS)
    keys = [
        rope.reference(
            kv.read(pages, 0, 0, int64(slot), FP32)[None],
            cos[place * TOKENS :][:TOKENS],
            sin[place * TOKENS :][:TOKENS],
        )
        for place, slot in enumerate(table)
    ]
    values = [kv.read(pages, 0, 1, int64(slot), FP32)[None] for slot in table]
    expected = attention.reference(
        rope.reference(q, cos[own], sin[own]),
        torch.cat([*keys, rope.reference(k, cos[own], sin[own])], dim=1),
        torch.cat([*values, v], dim=1),
        None,
    )
    torch.testing.assert_close(found, expected)


@FORMATS
@pytest.mark.parametrize("poison", [0x00, 0x7F, 0xFF])
def test_slots_outside_the_table_and_other_layers_are_not_read(
    randn: Any, kv_format: str, poison: int
) -> None:
    pages = written(randn, kv_format, BF16, (0, 2), 1)
    q, k, v = (chunk(randn, BF16) for _ in range(3))
    args = (q, k, v, pages, int64(2, 0), None, None, None, 1, kv_format)
    before = paged_attention.overload(*args)
    for page in pages:
        as_bytes(page)[0] = poison
        as_bytes(page)[1, :, 1::2] = poison
    assert torch.equal(paged_attention.overload(*args), before)


@FORMATS
def test_the_order_of_the_table_does_not_matter_without_positions(
    randn: Any, kv_format: str
) -> None:
    pages = written(randn, kv_format, FP32, (0, 1, 2), 0)
    q, k, v = (chunk(randn, FP32) for _ in range(3))
    found = [paged_attention.overload(q, k, v, pages, table, None, None, None, 0, kv_format)
             for table in (int64(0, 1, 2), int64(2, 0, 1))]  # fmt: skip
    torch.testing.assert_close(*found)


def kept_pool(randn: Any, dtype: torch.dtype, slots: int) -> Tensor:
    """Every slot of every layer holds a chunk of its own."""
    return randn(LAYERS, 2, slots, TOKENS, HEADS, HEAD_DIM, dtype=dtype)


@DTYPES
@pytest.mark.parametrize("slot", [-1, 0, 2])
def test_write_kept_stores_as_it_is_or_not_at_all(
    opcheck: Any, randn: Any, dtype: torch.dtype, slot: int
) -> None:
    kept, k, v = kept_pool(randn, dtype, 3), chunk(randn, dtype), chunk(randn, dtype)
    opcheck(write_kept, (kept, k, v, torch.tensor(slot), 1))
    expected = kept.clone()
    if slot >= 0:
        expected[1, 0, slot], expected[1, 1, slot] = k[0], v[0]
    write_kept.overload(kept, k, v, torch.tensor(slot), 1)
    assert torch.equal(kept, expected)


@DTYPES
def test_a_chunk_that_is_not_kept_leaves_even_nan_alone(randn: Any, dtype: torch.dtype) -> None:
    kept = torch.full((LAYERS, 2, 2, TOKENS, HEADS, HEAD_DIM), torch.nan, dtype=dtype)
    before = as_bytes(kept).clone()
    write_kept.overload(kept, chunk(randn, dtype), chunk(randn, dtype), torch.tensor(-1), 0)
    assert torch.equal(as_bytes(kept), before)


@FORMATS
@DTYPES
@pytest.mark.parametrize("table", [(), (2,), (SLOTS,), (SLOTS + 1, 0, 3), (SLOTS, 2, SLOTS + 2)])
@pytest.mark.parametrize("relative", [False, True])
def test_entries_beyond_the_pages_are_attended_as_they_were_kept(
    check_op: Any,
    randn: Any,
    kv_format: str,
    dtype: torch.dtype,
    table: tuple[int, ...],
    relative: bool,
) -> None:
    """The same as attention over pages in the dtype, into which the whole history was written."""
    pages = written(randn, kv_format, dtype, [slot for slot in table if slot < SLOTS], 1)
    kept = kept_pool(randn, dtype, 3)
    q, k, v = (chunk(randn, dtype) for _ in range(3))
    places = torch.outer(torch.arange((SLOTS + 1) * TOKENS), 0.5 ** torch.arange(HEAD_DIM // 2))
    rotation = (places.cos(), places.sin()) if relative else (None, None)
    args = (q, k, v, pages, int64(*table), kept, *rotation, None, 1, kv_format)
    found = check_op(paged_attention_kept, *args)
    plain = poisoned_pages("none", dtype)
    for place, slot in enumerate(table):
        history = (
            [kept[1, which, slot - SLOTS] for which in (0, 1)]
            if slot >= SLOTS
            else [KV_FORMATS[kv_format].read(pages, 1, which, int64(slot), dtype)
                  for which in (0, 1)]
        )  # fmt: skip
        write_page.overload(plain, *(x[None] for x in history), torch.tensor(place), 1, "none")
    order = torch.arange(len(table))
    expected = paged_attention.overload(q, k, v, plain, order, *rotation, None, 1, "none")
    assert torch.equal(found, expected) and not found.isnan().any()
