"""Ops on the paged KV cache: write a chunk's page, attend over the pages of a window.

Shapes: N tokens of the chunk, P pages of history, H heads, D head dim; L layers and S slots of a
pool that keeps chunks in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llvq.dialect.model_ops import attention, rope
from llvq.dialect.registry import ATTENTION_ROUNDING, EXACT, like_attended, op
from llvq.formats.kv import KV_FORMATS
from llvq.formats.kv_slots import load, store


def _write_page_fake(
    pages: Sequence[Tensor], k: Tensor, v: Tensor, slot: Tensor, layer: int, kv_format: str
) -> None:
    return None


@op(fake=_write_page_fake, tolerance=EXACT, mutates=("pages",))
def write_page(
    pages: Sequence[Tensor], k: Tensor, v: Tensor, slot: Tensor, layer: int, kv_format: str
) -> None:
    """Store a chunk's K and V [1, N, H, D] of one layer in the page named by `slot` (int64 [])."""
    for which, chunk in enumerate((k, v)):
        KV_FORMATS[kv_format].write(pages, layer, which, slot, chunk[0])


@op(fake=like_attended, tolerance=ATTENTION_ROUNDING)
def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pages: Sequence[Tensor],
    table: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    scale: float | None,
    layer: int,
    kv_format: str,
) -> Tensor:
    """Attention of a chunk [1, N, H, D] over the pages that `table` (int64 [P]) names and itself.

    With cos and sin (relative positions) pages hold raw K: the window is rotated by its place in
    it, and q by the last N places.
    """
    kv = KV_FORMATS[kv_format]
    k = torch.cat([kv.read(pages, layer, 0, table, k.dtype)[None], k], dim=1)
    v = torch.cat([kv.read(pages, layer, 1, table, v.dtype)[None], v], dim=1)
    return _attention_in_window(q, k, v, cos, sin, scale)


def _write_kept_fake(kept: Tensor, k: Tensor, v: Tensor, slot: Tensor, layer: int) -> None:
    return None


@op(fake=_write_kept_fake, tolerance=EXACT, mutates=("kept",))
def write_kept(kept: Tensor, k: Tensor, v: Tensor, slot: Tensor, layer: int) -> None:
    """Store a chunk's K and V [1, N, H, D] of one layer as they are, in kept [L, 2, S, N, H, D].

    `slot` is int64 []; -1 is a chunk that is not kept, and nothing changes.
    """
    first = slot.clamp(min=0).reshape(1)
    for which, chunk in enumerate((k, v)):
        page = kept[layer, which]
        value = torch.where(slot < 0, page.index_select(0, first), chunk.to(page.dtype))
        store(page, first, value[0])


@op(fake=like_attended, tolerance=ATTENTION_ROUNDING)
def paged_attention_kept(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pages: Sequence[Tensor],
    table: Tensor,
    kept: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    scale: float | None,
    layer: int,
    kv_format: str,
) -> Tensor:
    """`paged_attention` where some chunks are read from `kept` [L, 2, S, N, H, D], not from pages.

    An entry of the table below the number of page slots names a page; one above, that many further,
    a slot of `kept`.
    """
    k, v = (
        torch.cat([_history(pages, table, kept, layer, which, own.dtype, kv_format)[None], own], 1)
        for which, own in enumerate((k, v))
    )
    return _attention_in_window(q, k, v, cos, sin, scale)


def _history(
    pages: Sequence[Tensor],
    table: Tensor,
    kept: Tensor,
    layer: int,
    which: int,
    dtype: torch.dtype,
    kv_format: str,
) -> Tensor:
    """K or V [T * N, H, D] of a table that names pages and kept slots."""
    slots = pages[0].shape[2]
    in_page = table.clamp(max=slots - 1)
    packed = KV_FORMATS[kv_format].read(pages, layer, which, in_page, dtype)
    plain = load(kept[layer, which], (table - slots).clamp(min=0)).to(dtype)
    is_kept = (table >= slots).view(-1, 1, 1, 1)
    return torch.where(is_kept, plain, packed.view_as(plain)).flatten(0, 1)


def _attention_in_window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Attention of the last chunk of a window [1, W, H, D], rotated by places if cos is there."""
    if cos is not None and sin is not None:
        window, own = k.shape[1], q.shape[1]
        q = rope.reference(q, cos[window - own : window], sin[window - own : window])
        k = rope.reference(k, cos[:window], sin[:window])
    return attention.reference(q, k, v, scale=scale)
