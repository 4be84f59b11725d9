"""Faces of the six shapes at every size, angle and place: what a mask of pixels is compared with.

Shapes: N masks, H templates (hypotheses), P pixels of a crop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.tiny_longlive.captions import SHAPES
from examples.tiny_longlive.shapes import coverage

# The angle after which a shape looks the same; 0 for those that always do.
PERIOD = {
    "ball": 0.0, "square": math.pi / 2, "triangle": 2 * math.pi / 3, "star": 2 * math.pi / 5,
    "ring": 0.0, "cross": math.pi / 2,
}  # fmt: skip
BATCH = 256  # masks that are compared at once


@dataclass(frozen=True)
class Templates:
    """`pixels` [H, P] in [0, 1]; of each template its shape, radius, and centre [H, 2] from the
    middle of the crop, in pixels of the frame."""

    pixels: Tensor
    shape: Tensor
    radius: Tensor
    centre: Tensor


@cache
def templates(
    cell: int, side: int, radii: tuple[float, ...], turns: int, shifts: tuple[int, ...]
) -> Templates:
    """Every shape, radius and angle (`turns` of them in a period) at every pair of shifts, in a
    crop of side x side cells of cell x cell pixels each."""
    extent, pixels, facts = cell * side, [], []
    for shape, name in enumerate(SHAPES):
        angles = torch.arange(turns if PERIOD[name] else 1) * (PERIOD[name] / turns)
        for radius in radii:
            wide = _face(shape, radius, angles, extent // 2 + max(shifts))
            for x, y in product(shifts, shifts):
                row, column = max(shifts) - y, max(shifts) - x
                face = wide[:, row : row + extent, column : column + extent]
                pixels.append(F.avg_pool2d(face, cell).flatten(1))
                facts += [(shape, radius, x, y)] * len(angles)
    table = torch.tensor(facts)
    return Templates(torch.cat(pixels), table[:, 0].long(), table[:, 1], table[:, 2:])


def _face(shape: int, radius: float, angles: Tensor, reach: int) -> Tensor:
    """How much of each pixel [angles, 2 * reach, 2 * reach] is inside, and not outline."""
    grid = torch.arange(-reach, reach) + 0.5
    v, u = torch.meshgrid(grid, grid, indexing="ij")
    inside, rim = coverage(
        torch.tensor([shape]), u[None, None], v[None, None], angles[None],
        torch.tensor(radius).view(1, 1, 1, 1),
    )  # fmt: skip
    return (inside * (1 - rim))[0]


def agreement(masks: Tensor, care: Tensor, against: Templates) -> tuple[Tensor, Tensor]:
    """For each mask [N, P] and shape: the best Tanimoto similarity [N, 6], and whose it is.

    ab / (aa + bb - ab), which of sharp masks is intersection over union; `care` [N, P] leaves out
    pixels where it is 0.
    """
    best, which = [], []
    squares = against.pixels.square()
    for mask, cared in zip(masks.split(BATCH), care.split(BATCH), strict=True):
        seen = mask * cared
        both = seen @ against.pixels.T
        either = seen.square().sum(1, keepdim=True) + cared @ squares.T - both
        similarity = both / either.clamp(min=1e-3)
        by_shape = [
            torch.where(against.shape == shape, similarity, -1.0).max(1)
            for shape in range(len(SHAPES))
        ]
        best.append(torch.stack([found.values for found in by_shape], 1))
        which.append(torch.stack([found.indices for found in by_shape], 1))
    return torch.cat(best), torch.cat(which)
