"""Slots against plain indexing, for every dtype that a page tensor has."""

from __future__ import annotations

import pytest
import torch

from llvq.formats.kv_slots import load, store

DTYPES = [torch.bfloat16, torch.float32, torch.uint8, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_slots_are_rows(dtype: torch.dtype, shape: tuple[int, ...], index: torch.dtype) -> None:
    values = torch.arange(4 * torch.Size(shape).numel()).reshape(4, *shape).to(dtype)
    page = torch.zeros(4, *shape).to(dtype)
    for slot in (2, 0, 3):
        store(page, torch.tensor(slot, dtype=index), values[slot])
    expected = values.float()
    expected[1] = 0
    assert torch.equal(page.float(), expected)
    for table in ([], [3], [2, 2, 1]):
        found = load(page, torch.tensor(table, dtype=torch.int64))
        assert found.dtype == dtype and torch.equal(found.float(), expected[table])
