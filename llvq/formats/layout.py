"""How codes and scales lie in memory: nibbles in bytes, and the 128x4 layout of tensor cores."""

from __future__ import annotations

import torch
from torch import Tensor

from llvq.errors import FormatError


def pack(nibbles: Tensor) -> Tensor:
    """uint8 [..., K] with values below 16 -> uint8 [..., K/2], even index in the low nibble."""
    pairs = nibbles.contiguous().view(torch.int16)  # little endian: the even index is the low byte
    return (pairs | (pairs >> 4)).to(torch.uint8)


def unpack(codes: Tensor) -> Tensor:
    """The inverse of `pack`: uint8 [..., K/2] -> uint8 [..., K]."""
    return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)


def swizzle_scales(scales: Tensor) -> Tensor:
    """Linear scales [R, K/16] -> the flat 128x4 layout that block-scaled tensor cores read.

    Rows are padded to 128 and columns to 4, with zeros.
    """
    rows, blocks = scales.shape
    tiles_m, tiles_k = -(-rows // 128), -(-blocks // 4)
    padded = scales.new_zeros(tiles_m * 128, tiles_k * 4, dtype=torch.uint8)
    padded[:rows, :blocks] = scales.view(torch.uint8)
    tiles = padded.view(tiles_m, 4, 32, tiles_k, 4).permute(0, 3, 2, 1, 4)
    return tiles.reshape(-1).view(scales.dtype)


def unswizzle_scales(flat: Tensor, rows: int, blocks: int) -> Tensor:
    """The inverse of `swizzle_scales`: flat -> [rows, blocks], padding dropped."""
    tiles_m, tiles_k = -(-rows // 128), -(-blocks // 4)
    if flat.numel() != tiles_m * tiles_k * 512:
        raise FormatError(
            f"{flat.numel()} swizzled scales cannot be [{rows}, {blocks}]",
            because=f"the 128x4 layout of that shape holds {tiles_m * tiles_k * 512}",
            fix="pass the shape [N, K/16] of the linear scales",
        )
    tiles = flat.contiguous().view(torch.uint8).view(tiles_m, tiles_k, 32, 4, 4)
    padded = tiles.permute(0, 3, 2, 1, 4).reshape(tiles_m * 128, tiles_k * 4)
    return padded[:rows, :blocks].contiguous().view(flat.dtype)
