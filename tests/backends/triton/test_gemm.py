"""Tiles and column scales of the GEMM kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from llvq.backends.triton.gemm import Tile, aligned, column_scales, grouped_tile, segment_text


@triton.jit
def scales_of_columns(w_global, out, SEGMENTS: tl.constexpr, N: tl.constexpr):
    column = tl.arange(0, N)
    tl.store(out + column, column_scales(w_global, column, SEGMENTS))


@triton.jit
def visit(out, tiles_m, tiles_n, GROUP: tl.constexpr):
    m, n = grouped_tile(tl.program_id(0), tiles_m, tiles_n, GROUP)
    tl.store(out + m * tiles_n + n, tl.program_id(0))


@pytest.mark.parametrize("segments", [(), (16,), (3, 13), (1, 7, 8), (4, 4, 4, 4)])
def test_each_column_has_the_scale_of_its_segment(
    launch: Any, randn: Any, device: torch.device, segments: tuple[int, ...]
) -> None:
    counts = segments or (16,)
    scales = randn(len(counts), dtype=torch.float32)
    out = torch.empty(16, device=device)
    launch(scales_of_columns, (1,), scales, out, SEGMENTS=segment_text(segments), N=16)
    wanted = torch.cat([s.expand(count) for s, count in zip(scales, counts, strict=True)])
    assert torch.equal(out, wanted)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 5), (8, 2), (9, 4), (17, 3)])
def test_every_tile_is_visited_once(launch: Any, device: torch.device, m: int, n: int) -> None:
    order = torch.full((m, n), -1, dtype=torch.int32, device=device)
    launch(visit, (m * n,), order, m, n, GROUP=4)
    assert sorted(order.flatten().tolist()) == list(range(m * n))
    first = order[: min(4, m), 0]
    assert first.tolist() == list(range(len(first)))


def test_rows_of_codes_are_padded_only_where_a_tensor_map_needs_it() -> None:
    even, odd = (torch.randint(0, 256, (3, width)).to(torch.uint8) for width in (32, 24))
    assert aligned(even) is even
    assert torch.equal(aligned(odd)[:, :24], odd) and not aligned(odd)[:, 24:].any()


def test_a_tile_counts_the_blocks_of_an_output() -> None:
    assert Tile(128, 256, 64, 8, 3).count(129, 256) == 2
