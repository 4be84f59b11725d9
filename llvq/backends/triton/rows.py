"""Tensors as rows of blocks: how kernels that hold a whole row see their arguments."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from llvq.backends.triton.specialize import ALIGNMENT
from llvq.errors import KernelError
from llvq.formats import nvfp4

MAX_WARPS = 16


def as_rows(x: Tensor) -> Tensor:
    """x [..., E] as [R, E] with neighbours side by side, at an address that kernels take.

    A view where that can be: a slice of a stacked projection is not copied.
    """
    rows = x.reshape(-1, x.shape[-1])
    misplaced = rows.storage_offset() * rows.element_size() % ALIGNMENT
    if misplaced or rows.stride(-1) != 1:
        return rows.clone(memory_format=torch.contiguous_format)
    return rows


def blocks_in(width: int) -> int:
    """Blocks in a row of that width. Raises KernelError."""
    if width % nvfp4.BLOCK:
        raise KernelError(
            f"no kernel for rows of {width} channels",
            because=f"kernels take {nvfp4.BLOCK} channels at a time",
            fix="run this op on another target",
        )
    return width // nvfp4.BLOCK


def row_tile(width: int) -> tuple[int, int]:
    """(blocks, warps) of a program that holds a whole row: one block per thread, if it can be."""
    blocks = triton.next_power_of_2(blocks_in(width))
    return blocks, min(max(blocks // 32, 1), MAX_WARPS)
