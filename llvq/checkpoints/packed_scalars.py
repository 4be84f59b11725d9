"""The one fp32 scale of a packed tensor: what layouts write it as, and the decode scale we mean.

A decode scale multiplies. Reading is the arithmetic that the tool itself would do, so that a
weight decodes here to what it decodes to there; writing looks for the number that reads back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from llvq.checkpoints.packed_layouts import FULL_RANGE, Meaning

# fp32 numbers tried on either side of the estimate; rounding twice is off by no more.
NEIGHBOURS = 3


def decode_scale(stored: Tensor, meaning: Meaning, full: float = FULL_RANGE) -> Tensor:
    """The fp32 decode scale [] of what is stored; `full` is what an amax is divided by.

    An amax is divided as fouroversix does, 1 / (full / amax); an amax of 0 gives 1.
    """
    value = stored.to(torch.float32).reshape(())
    if meaning == "decode":
        return value
    if meaning == "reciprocal":
        return value.reciprocal()
    scale = torch.full_like(value, full).div_(value).reciprocal_()
    return torch.where(value == 0, torch.ones_like(scale), scale)


def stored_scale(scale: Tensor, meaning: Meaning, full: float = FULL_RANGE) -> Tensor:
    """What to store for a decode scale [], fp32: a number that `decode_scale` gives it back for.

    About one scale in four has no reciprocal that does; then the nearest is stored, which reads
    back one step of fp32 away.
    """
    g = scale.to(torch.float32).reshape(())
    if meaning == "decode":
        return g
    guess = g.reciprocal() if meaning == "reciprocal" else g * full
    return next((c for c in neighbours(guess) if decode_scale(c, meaning, full) == g), guess)


def neighbours(value: Tensor) -> Iterator[Tensor]:
    """An fp32 number [] and those next to it, itself first."""
    yield value
    for toward in (math.inf, -math.inf):
        near = value
        for _ in range(NEIGHBOURS):
            near = torch.nextafter(near, torch.full_like(near, toward))
            yield near
