"""Slots of a page tensor, stored and loaded by index tensors: the host never waits for one.

A page tensor of one layer and K or V is [P, ...], P slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

PageSpec = tuple[str, torch.dtype, tuple[int, ...]]


def store(page: Tensor, slot: Tensor, value: Tensor) -> None:
    """page[slot] = value; slot is a 0-d tensor of integers."""
    index = slot.reshape(1).to(torch.int64)
    _as_storable(page).index_copy_(0, index, _as_storable(value).unsqueeze(0))


def load(page: Tensor, table: Tensor) -> Tensor:
    """page[table] for a table [T]: [T, ...]."""
    return _as_storable(page).index_select(0, table).view(page.dtype)


def _as_storable(t: Tensor) -> Tensor:
    # Indexing kernels do not all take fp8; the bytes are the same.
    return t.view(torch.uint8) if t.dtype == torch.float8_e4m3fn else t
