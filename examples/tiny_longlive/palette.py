"""Which named colour a pixel shows: a table over all of RGB, and distances as an eye sees them."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from examples.tiny_longlive import data
from examples.tiny_longlive.captions import COLOURS, GROUNDS

BITS = 6  # per channel of the table
FULL = 63  # what a pixel that is surely of a colour counts: four of them still fit into a byte
LIT, RIMMED = (0.72, 1.05), (0.3, 0.6)  # how much of its colour an object's face and rim show
MEAN_LIGHT = 0.88  # of a face
SOFTNESS = 5.0  # grey levels around the border between two colours
FAR = 80.0  # from every face: a colour that has no name here
WHITE = (0.95047, 1.0, 1.08883)  # D65
XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))


def faces(frames: Tensor) -> Tensor:
    """Where the lit faces of objects are, by colour: [T, H/2, W/2, 8] uint8, 0 to 4 * FULL.

    Frames are uint8 [T, H, W, 3]. The eight counts of a pixel are the bytes of one integer, so
    that adding four pixels is adding integers.
    """
    levels = frames.numpy() >> (8 - BITS)
    index = levels[..., 0].astype(np.intp) << (2 * BITS)
    index |= levels[..., 1].astype(np.intp) << BITS
    index |= levels[..., 2]
    counts = _table()[index]
    rows = counts[:, ::2] + counts[:, 1::2]
    pairs = rows[:, :, ::2] + rows[:, :, 1::2]
    return torch.from_numpy(pairs.view(np.uint8).reshape(*pairs.shape, len(COLOURS)))


@cache
def _table() -> np.ndarray:
    """[2^18] uint64, a byte for each colour."""
    side = (torch.arange(2**BITS) + 0.5) * 2 ** (8 - BITS)
    rgb = torch.stack(torch.meshgrid(side, side, side, indexing="ij"), -1).view(-1, 3)
    named = torch.tensor([data.RGB[name] for name in COLOURS], dtype=torch.float32)
    grounds = torch.tensor([data.RGB[name] for name in GROUNDS], dtype=torch.float32)
    lit = torch.stack([_to_segment(rgb, LIT[0] * c, LIT[1] * c) for c in named], -1)
    dark = [_to_segment(rgb, RIMMED[0] * c, RIMMED[1] * c) for c in named]
    dark += [_to_segment(rgb, ground, ground + data.LIGHTER) for ground in grounds]
    nothing = torch.stack([*dark, torch.full_like(dark[0], FAR)], -1).amin(-1)
    others = torch.stack([
        torch.minimum(nothing, lit[:, [i for i in range(len(COLOURS)) if i != c]].amin(-1))
        for c in range(len(COLOURS))
    ], -1)  # fmt: skip
    counts = torch.sigmoid((others - lit) / SOFTNESS) * FULL
    return counts.round().to(torch.uint8).numpy().view(np.uint64)[:, 0].copy()


def _to_segment(points: Tensor, start: Tensor, end: Tensor) -> Tensor:
    along = end - start
    part = ((points - start) @ along / along.dot(along)).clamp(0, 1)
    return (points - start - part[:, None] * along).norm(dim=-1)


def distance(rgb: Tensor, colour: str) -> Tensor:
    """CIE76 colour difference of mean colours [..., 3] (0..255) to an object of that name.

    2.3 can just be seen; red to orange is about 50.
    """
    named = torch.tensor(data.RGB[colour], dtype=torch.float32) * MEAN_LIGHT
    return (_lab(rgb) - _lab(named)).norm(dim=-1)


def _lab(rgb: Tensor) -> Tensor:
    """CIE L*a*b* of sRGB in 0..255."""
    unit = rgb.float() / 255
    linear = torch.where(unit > 0.04045, ((unit + 0.055) / 1.055) ** 2.4, unit / 12.92)
    xyz = linear @ torch.tensor(XYZ).T / torch.tensor(WHITE)
    f = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)
