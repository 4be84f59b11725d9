"""Sample sheets: a row of frames per video, as a png to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def write_sheet(path: Path, rows: Sequence[Tensor], *, side: int = 128) -> None:
    """`rows`: pixels [frames, 3, H, W] in [-1, 1], as many frames each; `side`: of a frame."""
    grid = torch.stack([row.float().cpu().clamp(-1, 1) for row in rows])
    R, T, _, H, W = grid.shape
    pixels = ((grid + 1) * 127.5).round().to(torch.uint8)
    image = Image.fromarray(pixels.permute(0, 3, 1, 4, 2).reshape(R * H, T * W, 3).numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((T * side, R * side), Image.Resampling.BOX).save(path)


def spread(total: int, count: int) -> list[int]:
    """`count` indices over range(total), first and last included."""
    return [round(i * (total - 1) / max(count - 1, 1)) for i in range(count)]
