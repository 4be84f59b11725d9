"""Translations of the operators on KV pages.

Page tensors are inputs [L, 2, S, ...] of the model: layers, K or V, slots. ONNX writes nothing in
place: what `write_page` stores becomes an output, and the caller puts it into the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from llvq.backends.onnx.model_ops import attention, rope
from llvq.backends.onnx.page_formats import page_format
from llvq.backends.onnx.records import Value
from llvq.backends.onnx.translation import Operand, Translator


def paged_attention(
    t: Translator, out: Any, q: Operand, k: Operand, v: Operand, pages: Sequence[Value],
    table: Value, cos: Operand | None, sin: Operand | None, scale: float | None, layer: int,
    kv_format: str,
) -> Value:  # fmt: skip
    queries, keys, values = t.value(q), t.value(k), t.value(v)
    own = queries.shape[1]
    keys = t.b.concat([history(t, pages, table, layer, 0, kv_format, keys), keys], 1)
    values = t.b.concat([history(t, pages, table, layer, 1, kv_format, values), values], 1)
    if cos is not None and sin is not None:
        assert own is not None
        window = t.b.call("Shape", keys, shape=(1,), dtype=torch.int64, start=1, end=2)
        first = t.b.sub(window, t.b.sizes(own))
        angles = t.value(cos), t.value(sin)
        queries = rope(t, None, queries, *(rows(t, a, first, window, own) for a in angles))
        keys = rope(t, None, keys, *(rows(t, a, t.b.sizes(0), window, None) for a in angles))
    return attention(t, None, queries, keys, values, None, scale)


def history(
    t: Translator, pages: Sequence[Value], table: Value, layer: int, which: int, kv_format: str,
    like: Value,
) -> Value:  # fmt: skip
    """K (0) or V (1) of one layer in the slots of a table, [1, T * N, H, D]."""
    parts = [_slots(t, page, table, layer, which) for page in pages]
    read = page_format(kv_format).read(t, parts)
    return t.b.cast(t.b.reshape(read, (1, None, *like.shape[2:])), like.dtype)


def write_page(
    t: Translator, out: Any, pages: Sequence[Value], k: Operand, v: Operand, slot: Value,
    layer: int, kv_format: str,
) -> None:  # fmt: skip
    for which, x in enumerate((k, v)):
        value = t.value(x)
        chunk = t.b.reshape(value, value.shape[1:])
        t.written[layer, which] = page_format(kv_format).write(t, chunk)


def rows(t: Translator, x: Value, start: Value, end: Value, count: int | None) -> Value:
    return t.b.call("Slice", x, start, end, t.b.sizes(0), shape=(count, *x.shape[1:]))


def _slots(t: Translator, page: Value, table: Value, layer: int, which: int) -> Value:
    """The slots of one layer are gathered from a pool of all layers: no layer is copied whole."""
    layers, kinds, slots, *rest = page.shape
    assert layers is not None and kinds is not None and slots is not None
    pool = t.b.reshape(page, (layers * kinds * slots, *rest))
    index = t.b.add(table, (layer * kinds + which) * slots)
    return t.b.gather(pool, index, 0)


TABLE = {"llvq.paged_attention.default": paged_attention, "llvq.write_page.default": write_page}
