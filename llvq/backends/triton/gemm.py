"""What the GEMM kernels share: how an output is cut into tiles, and the scales of its columns.

A GEMM's weight may be several matrices, stacked; each has a global scale of its own.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

# A row of a tensor map starts at a multiple of 16 bytes: 32 codes.
ROW_ALIGNMENT = 16


@dataclass(frozen=True)
class Tile:
    """How a GEMM is cut: a block of the output, a step of K, warps, stages of loads in flight."""

    m: int
    n: int
    k: int
    warps: int
    stages: int

    def count(self, rows: int, features: int) -> int:
        return triton.cdiv(rows, self.m) * triton.cdiv(features, self.n)


def aligned(codes: Tensor) -> Tensor:
    """Codes whose rows lie where a tensor map can start: a copy if K is an odd multiple of 16."""
    missing = -codes.shape[-1] % ROW_ALIGNMENT
    return F.pad(codes, (0, missing)) if missing else codes.contiguous()


def segment_text(segments: Sequence[int]) -> str:
    """The first feature of each segment, as a kernel takes it: "0,3072,6144"; "0" for none."""
    return ",".join(str(start) for start in (0, *accumulate(segments[:-1])))


@triton.constexpr_function
def _count(segments):
    return segments.count(",") + 1


@triton.constexpr_function
def _first(segments, index):
    return int(segments.split(",")[index])


@triton.jit
def column_scales(w_global, column, SEGMENTS: tl.constexpr):
    """The global scale of each feature in `column`, fp32 of its shape."""
    scale = tl.zeros(column.shape, tl.float32) + tl.load(w_global)
    for index in tl.static_range(1, _count(SEGMENTS)):
        scale = tl.where(column >= _first(SEGMENTS, index), tl.load(w_global + index), scale)
    return scale


@triton.jit
def grouped_tile(program, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Row and column of a program's tile: down GROUP rows, then to the next column.

    Programs that run at once then share a few rows of x and of the weight, which stay in L2.
    """
    group = program // (GROUP * tiles_n)
    height = min(tiles_m - group * GROUP, GROUP)
    inside = program % (GROUP * tiles_n)
    return group * GROUP + inside % height, inside // height
