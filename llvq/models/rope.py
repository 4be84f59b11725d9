"""Rotary positions over (time, height, width), on interleaved channel pairs.

The head dim splits into three axes; each rotates with its own exponents, base 10000. Angles are
computed in float64 from the position, so there is no table and no longest video.
"""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10000.0


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Channels of (time, height, width): 44, 42, 42 of 128."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def axis_angles(positions: Tensor, dim: int) -> Tensor:
    """Angles [positions, dim / 2] of one axis, float64."""
    index = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device)
    return positions.unsqueeze(-1) * torch.pow(THETA, -index / dim)


def rope_tables(positions: Tensor, rows: int, columns: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin, fp32 [frames * rows * columns, head_dim / 2].

    `positions` is the temporal position of each frame, float64 [frames].
    """
    frames = positions.shape[0]
    time_dim, row_dim, column_dim = axis_dims(head_dim)
    grid = (frames, rows, columns, -1)
    time = axis_angles(positions, time_dim).view(frames, 1, 1, -1).expand(grid)
    row_index = torch.arange(rows, dtype=torch.float64, device=positions.device)
    row = axis_angles(row_index, row_dim).view(1, rows, 1, -1).expand(grid)
    column_index = torch.arange(columns, dtype=torch.float64, device=positions.device)
    column = axis_angles(column_index, column_dim).view(1, 1, columns, -1).expand(grid)
    angles = torch.cat([time, row, column], dim=-1).flatten(0, 2)
    return angles.cos().float(), angles.sin().float()


def apply_rope(x_BNHD: Tensor, cos_ND: Tensor, sin_ND: Tensor) -> Tensor:
    """Rotate each channel pair of `x` in fp32; result in the dtype of `x`."""
    even, odd = x_BNHD.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos_ND.unsqueeze(1), sin_ND.unsqueeze(1)
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return rotated.flatten(-2).to(x_BNHD.dtype)
