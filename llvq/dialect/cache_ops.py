"""Ops on the paged KV cache: write a chunk's page, attend over the pages of a window.

Shapes: N tokens of the chunk, P pages of history, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llvq.dialect.model_ops import attention, rope
from llvq.dialect.registry import BF16_ROUNDING, EXACT, op
from llvq.formats.kv import KV_FORMATS


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


def _paged_attention_fake(
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
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


@op(fake=_paged_attention_fake, tolerance=BF16_ROUNDING)
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
    if cos is not None and sin is not None:
        window, own = k.shape[1], q.shape[1]
        q = rope.reference(q, cos[window - own : window], sin[window - own : window])
        k = rope.reference(k, cos[:window], sin[:window])
    return attention.reference(q, k, v, scale=scale)
