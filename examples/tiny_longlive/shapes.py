"""Shapes as signed distances, all of one radius, rotated: what a pixel sees of an object.

Shapes: B clips, T frames, H and W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

RIM = 5.0  # width of the dark outline, pixels


def coverage(
    shape_B: Tensor, u_BTHW: Tensor, v_BTHW: Tensor, angle_BT: Tensor, radius: Tensor
) -> tuple[Tensor, Tensor]:
    """How much of each pixel an object covers, and how much of it is outline; both in [0, 1].

    u, v: offsets from the centre in pixels; radius [B, 1, 1, 1]; shape: index into SHAPES.
    """
    cos, sin = angle_BT.cos()[..., None, None], angle_BT.sin()[..., None, None]
    x, y = u_BTHW * cos + v_BTHW * sin, v_BTHW * cos - u_BTHW * sin
    distances = (
        _ball(x, y, radius), _square(x, y, radius), _triangle(x, y, radius),
        _star(x, y, radius), _ring(x, y, radius), _cross(x, y, radius),
    )  # fmt: skip
    distance = distances[0]
    for index, other in enumerate(distances[1:], start=1):
        distance = torch.where((shape_B == index)[:, None, None, None], other, distance)
    present = (radius > 0).float()
    return (0.5 - distance).clamp(0, 1) * present, (0.5 + RIM + distance).clamp(0, 1)


def _ball(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.92 * r


def _ring(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.72 * r).abs() - 0.26 * r


def _square(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.8 * r


def _cross(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    long, short = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    return torch.maximum(long - 0.96 * r, short - 0.32 * r)


def _triangle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    slope = math.sqrt(3) / 2
    return torch.maximum(y - 0.55 * r, slope * x.abs() - 0.5 * y - 0.52 * r)


def _star(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Five points: the angle folded into one half of a point, then the distance to its edge."""
    fifth = 2 * math.pi / 5
    angle = torch.atan2(x, -y)
    folded = ((angle + fifth / 2) % fifth - fifth / 2).abs()
    length = torch.hypot(x, y)
    px, py = length * folded.sin(), length * folded.cos()
    inner = 0.45
    ex, ey = inner * math.sin(fifth / 2), inner * math.cos(fifth / 2) - 1.0
    norm = math.hypot(ex, ey)
    return -(px * ey - (py - r) * ex) / norm
