"""Pages of 4-bit and 2-bit integers: asymmetric, in groups of 64 channels of one token and head.

x' = code * scale + zero, codes unsigned. Zero is the least value of the group and scale its range
over the highest code, both bf16: the least of bf16 values is itself one. Groups lie along head_dim
for K and V alike. KIVI groups V so, but K along tokens, which takes the channels of one to be
smooth in time; tokens of video are patches of a frame, and a chunk's page would depend on how many
of them share a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llvq.errors import CacheError
from llvq.formats.kv_slots import PageSpec, load, store

GROUP = 64
SCALE_DTYPE = torch.bfloat16


def specs(
    bits: int, layers: int, slots: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype
) -> tuple[PageSpec, ...]:
    """Codes packed in bytes, scale and zero of each group. Raises CacheError."""
    if head_dim % GROUP:
        raise CacheError(
            f"an INT{bits} cache cannot hold heads of {head_dim} channels",
            because=f"head_dim must be a multiple of {GROUP}, the elements of one scale",
            fix='set the KV cache format to "nvfp4", "fp8" or "none" in the recipe',
        )
    rows = (layers, 2, slots, tokens, heads)
    return (
        ("codes", torch.uint8, (*rows, head_dim * bits // 8)),
        ("scale", SCALE_DTYPE, (*rows, head_dim // GROUP)),
        ("zero", SCALE_DTYPE, (*rows, head_dim // GROUP)),
    )


def write(
    bits: int, pages: Sequence[Tensor], layer: int, which: int, slot: Tensor, x: Tensor
) -> None:
    codes, scale, zero = quantize(x, bits)
    for page, part in zip(pages, (pack(codes, bits), scale, zero), strict=True):
        store(page[layer, which], slot, part)


def read(
    bits: int, pages: Sequence[Tensor], layer: int, which: int, table: Tensor, dtype: torch.dtype
) -> Tensor:
    packed, scale, zero = (load(page[layer, which], table) for page in pages)
    return dequantize(unpack(packed, bits), scale, zero).flatten(0, 1).to(dtype)


def bound(bits: int, pages: Sequence[Tensor], layer: int, which: int, table: Tensor) -> Tensor:
    """The largest magnitude that an end of a group has, fp32 [T]."""
    scale, zero = (load(page[layer, which], table).float() for page in pages[1:])
    highest = zero + scale * (2**bits - 1)
    return torch.maximum(zero.abs(), highest.abs()).amax((1, 2, 3))


def quantize(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., D] -> codes uint8 [..., D], scale and zero bf16 [..., D / 64].

    Codes are the nearest under the scale as stored. A group of one value has scale 0 and codes 0;
    one with NaN or infinity reads back as NaN.
    """
    highest = 2**bits - 1
    groups = x.float().unflatten(-1, (-1, GROUP))
    zero = groups.amin(-1, keepdim=True).to(SCALE_DTYPE)
    scale = ((groups.amax(-1, keepdim=True) - zero.float()) / highest).to(SCALE_DTYPE)
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale).float()
    steps = ((groups - zero.float()) / divisor).round()
    # A cast of NaN to integers gives what the machine likes.
    codes = steps.nan_to_num(0.0).clamp(0, highest).to(torch.uint8)
    return codes.flatten(-2), scale.squeeze(-1), zero.squeeze(-1)


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """code * scale + zero in fp32 [..., D]."""
    groups = codes.float().unflatten(-1, (-1, GROUP))
    return (groups * scale.float().unsqueeze(-1) + zero.float().unsqueeze(-1)).flatten(-2)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., D] -> bytes [..., D * bits / 8], the first code in the lowest bits."""
    count = 8 // bits
    parts = codes.unflatten(-1, (-1, count)).unbind(-1)
    packed = parts[0].clone()
    for place, part in enumerate(parts[1:], start=1):
        packed |= part << (bits * place)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `pack`."""
    mask = 2**bits - 1
    parts = [(packed >> shift) & mask for shift in range(0, 8, bits)]
    return torch.stack(parts, dim=-1).flatten(-2)
