"""How kernels see rows: a view where one will do, a copy where none will."""

from __future__ import annotations

import pytest
import torch

from llvq.backends.triton.rows import as_rows, blocks_in, row_tile
from llvq.errors import KernelError


def test_slices_of_a_stacked_projection_are_views() -> None:
    stacked = torch.randn(1, 5, 96)
    parts = [as_rows(part) for part in stacked.split(32, dim=-1)]
    assert [part.shape for part in parts] == [(5, 32)] * 3
    assert [part.data_ptr() - stacked.data_ptr() for part in parts] == [0, 128, 256]
    assert all(part.stride() == (96, 1) for part in parts)
    assert torch.equal(parts[1], stacked[0, :, 32:64])


@pytest.mark.parametrize("x", [torch.randn(4, 33)[:, 1:], torch.randn(32, 4).T])
def test_what_kernels_cannot_address_is_copied(x: torch.Tensor) -> None:
    rows = as_rows(x)
    assert torch.equal(rows, x) and rows.stride(-1) == 1 and rows.data_ptr() % 16 == 0
    assert as_rows(x.to("meta")).storage_offset() == 0


def test_a_tile_holds_a_row() -> None:
    assert row_tile(3072) == (256, 8)
    assert row_tile(14336) == (1024, 16)
    assert row_tile(48) == (4, 1)
    assert blocks_in(48) == 3
    with pytest.raises(KernelError, match="rows of 40 channels"):
        blocks_in(40)
