"""How a chunk of K or V is held in a page pool.

A pool is a tuple of tensors for all layers, each with leading dimensions [L, 2, P]: layers, K then
V, slots. One slot holds the K and the V of one chunk in every layer. Slots and tables are tensors
all the way down, so writing and reading never wait for the device.

Shape legend: L layers, P slots, T slots in a table, N tokens of a chunk, H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from llvq.errors import CacheError
from llvq.formats import fp8, kv_integer, nvfp4
from llvq.formats.kv_slots import PageSpec, load, store

BLOCK_RULE = "four_over_six"


@dataclass(frozen=True)
class KvFormat:
    """One way to hold K and V.

    specs(layers, slots, tokens, heads, head_dim, dtype) -> (name, dtype, shape) of each page
        tensor; `dtype` is the one the graph computes in. Raises CacheError.
    write(pages, layer, which, slot, x): x [N, H, D] replaces slot (0-d int tensor) in place;
        `which` is 0 for K and 1 for V.
    read(pages, layer, which, table, dtype) -> [T * N, H, D] of the slots in table [T], in order.
    bound(pages, layer, which, table) -> fp32 [T]: what no magnitude of each slot exceeds, by its
        scales alone where it has any.
    packed: values in one element of the first page tensor.
    """

    name: str
    specs: Callable[[int, int, int, int, int, torch.dtype], tuple[PageSpec, ...]]
    write: Callable[[Sequence[Tensor], int, int, Tensor, Tensor], None]
    read: Callable[[Sequence[Tensor], int, int, Tensor, torch.dtype], Tensor]
    bound: Callable[[Sequence[Tensor], int, int, Tensor], Tensor]
    packed: int = 1

    def bytes_per_chunk(
        self, layers: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype
    ) -> int:
        """Bytes of one slot: the K and V of one chunk in every layer, scales included."""
        specs = self.specs(layers, 1, tokens, heads, head_dim, dtype)
        return sum(torch.Size(shape).numel() * kind.itemsize for _, kind, shape in specs)


def _none_specs(
    layers: int, slots: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype
) -> tuple[PageSpec, ...]:
    return (("values", dtype, (layers, 2, slots, tokens, heads, head_dim)),)


def _none_write(pages: Sequence[Tensor], layer: int, which: int, slot: Tensor, x: Tensor) -> None:
    store(pages[0][layer, which], slot, x.to(pages[0].dtype))


def _none_read(
    pages: Sequence[Tensor], layer: int, which: int, table: Tensor, dtype: torch.dtype
) -> Tensor:
    return load(pages[0][layer, which], table).flatten(0, 1).to(dtype)


def _none_bound(pages: Sequence[Tensor], layer: int, which: int, table: Tensor) -> Tensor:
    return load(pages[0][layer, which], table).abs().amax((1, 2, 3)).float()


def _fp8_specs(
    layers: int, slots: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype
) -> tuple[PageSpec, ...]:
    lead = (layers, 2, slots)
    return (
        ("values", torch.float8_e4m3fn, (*lead, tokens, heads, head_dim)),
        ("scale", torch.float32, lead),
    )


def _fp8_write(pages: Sequence[Tensor], layer: int, which: int, slot: Tensor, x: Tensor) -> None:
    """One scale per chunk."""
    scale = fp8.scale_of(nvfp4.amax_of(x))
    store(pages[0][layer, which], slot, fp8.encode(x, scale))
    store(pages[1][layer, which], slot, scale)


def _fp8_read(
    pages: Sequence[Tensor], layer: int, which: int, table: Tensor, dtype: torch.dtype
) -> Tensor:
    values = load(pages[0][layer, which], table).float()
    scale = load(pages[1][layer, which], table).view(-1, 1, 1, 1)
    return values.mul_(scale).flatten(0, 1).to(dtype)


def _fp8_bound(pages: Sequence[Tensor], layer: int, which: int, table: Tensor) -> Tensor:
    return load(pages[1][layer, which], table) * nvfp4.E4M3_MAX


def _nvfp4_specs(
    layers: int, slots: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype
) -> tuple[PageSpec, ...]:
    if head_dim % nvfp4.BLOCK:
        raise CacheError(
            f"an NVFP4 cache cannot hold heads of {head_dim} channels",
            because=f"head_dim must be a multiple of {nvfp4.BLOCK}, the elements of one scale",
            fix='set the KV cache format to "fp8" or "none" in the recipe',
        )
    lead = (layers, 2, slots)
    rows = (*lead, tokens, heads)
    return (
        ("codes", torch.uint8, (*rows, head_dim // 2)),
        ("scales", torch.float8_e4m3fn, (*rows, head_dim // nvfp4.BLOCK)),
        ("global_scale", torch.float32, lead),
    )


def _nvfp4_write(pages: Sequence[Tensor], layer: int, which: int, slot: Tensor, x: Tensor) -> None:
    """Blocks lie along head_dim; one global scale per chunk, layer and K-or-V."""
    for page, part in zip(pages, nvfp4.quantize(x, block_rule=BLOCK_RULE), strict=True):
        store(page[layer, which], slot, part)


def _nvfp4_read(
    pages: Sequence[Tensor], layer: int, which: int, table: Tensor, dtype: torch.dtype
) -> Tensor:
    codes, scales, g = (load(page[layer, which], table) for page in pages)
    return nvfp4.dequantize(codes, scales, g.view(-1, 1, 1, 1), dtype).flatten(0, 1)


def _nvfp4_bound(pages: Sequence[Tensor], layer: int, which: int, table: Tensor) -> Tensor:
    return load(pages[2][layer, which], table) * (nvfp4.E2M1_MAX * nvfp4.E4M3_MAX)


KV_FORMATS = {
    kind.name: kind
    for kind in (
        KvFormat("none", _none_specs, _none_write, _none_read, _none_bound),
        KvFormat("fp8", _fp8_specs, _fp8_write, _fp8_read, _fp8_bound),
        KvFormat("nvfp4", _nvfp4_specs, _nvfp4_write, _nvfp4_read, _nvfp4_bound, packed=2),
        *(
            KvFormat(
                f"int{bits}",
                partial(kv_integer.specs, bits),
                partial(kv_integer.write, bits),
                partial(kv_integer.read, bits),
                partial(kv_integer.bound, bits),
                packed=8 // bits,
            )
            for bits in (4, 2)
        ),
    )
}
