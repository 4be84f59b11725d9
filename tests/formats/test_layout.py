"""Nibbles and the 128x4 scale layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llvq.errors import FormatError
from llvq.formats.layout import pack, swizzle_scales, unpack, unswizzle_scales

SETTINGS = settings(max_examples=30, deadline=None)


def test_even_index_is_the_low_nibble() -> None:
    assert pack(torch.tensor([1, 2, 15, 8], dtype=torch.uint8)).tolist() == [0x21, 0x8F]


@SETTINGS
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32))
def test_pack_round_trip(rows: int, half: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    nibbles = torch.randint(0, 16, (rows, 2 * half), dtype=torch.uint8, generator=generator)
    assert torch.equal(unpack(pack(nibbles)), nibbles)
    assert torch.equal(pack(nibbles), nibbles[:, 0::2] | nibbles[:, 1::2] << 4)


@SETTINGS
@given(st.integers(1, 300), st.integers(1, 13))
def test_swizzle_follows_the_published_offsets(rows: int, blocks: int) -> None:
    scales = torch.arange(rows * blocks).remainder(126).add(1).to(torch.uint8).view(rows, blocks)
    flat = swizzle_scales(scales)
    m, k = torch.arange(rows).unsqueeze(1), torch.arange(blocks).unsqueeze(0)
    tiles_k = -(-blocks // 4)
    offset = (m // 128) * tiles_k * 512 + (k // 4) * 512 + (m % 32) * 16
    offset = offset + ((m % 128) // 32) * 4 + k % 4
    assert torch.equal(flat[offset], scales)
    assert flat.count_nonzero() == rows * blocks  # padding is zero
    assert torch.equal(unswizzle_scales(flat, rows, blocks), scales)


def test_swizzle_equals_torchao() -> None:
    utils = pytest.importorskip("torchao.prototype.mx_formats.utils")
    scales = torch.rand(200, 9).to(torch.float8_e4m3fn)
    theirs = utils.to_blocked(scales.view(torch.uint8)).flatten()
    assert swizzle_scales(scales).dtype == torch.float8_e4m3fn
    assert torch.equal(swizzle_scales(scales).view(torch.uint8), theirs)


def test_unswizzle_refuses_another_shape() -> None:
    with pytest.raises(FormatError, match="cannot be \\[200, 9\\]"):
        unswizzle_scales(torch.zeros(512, dtype=torch.uint8), 200, 9)
