"""What each frame says of each object that was asked for: whether it can tell, and what.

Shapes: T frames, K objects of a shot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from examples.tiny_longlive.captions import MAX_THINGS, SHAPES, SIZES, Scene
from examples.tiny_longlive.detector import Detections, detect
from examples.tiny_longlive.palette import distance

BEHIND = 16.0  # pixels: the centre of an object of which little is in view may be off by as much


@dataclass(frozen=True)
class Marks:
    """What a frame says of an object, [T, K] each. `known`: whether it can tell presence, `seen`
    whether also the rest."""

    known: Tensor
    seen: Tensor
    present: Tensor
    shape: Tensor
    size: Tensor
    colour: Tensor
    agreement: Tensor
    centre: Tensor
    others: Tensor

    @property
    def holds(self) -> Tensor:
        return self.present & self.shape & self.size


def marks_of(frames: Tensor, scene: Scene) -> Marks:
    found = detect(frames, scene)
    things = scene.things
    shape = torch.tensor([SHAPES.index(thing.shape) for thing in things])
    size = torch.tensor([SIZES.index(thing.size) for thing in things])
    colour = [distance(found.rgb[:, k], thing.colour) for k, thing in enumerate(things)]
    index = shape[None, :, None].expand(len(frames), -1, 1)
    missing = ~found.present & ~_behind(found)
    return Marks(
        known=found.judged | missing,
        seen=found.judged,
        present=found.present,
        shape=found.shape == shape,
        size=found.size == size,
        colour=torch.stack(colour, 1),
        agreement=found.agreement.gather(2, index)[..., 0],
        centre=found.centre,
        others=found.others > 0,
    )


def _behind(found: Detections) -> Tensor:
    """[T, K] whether another object is where this one was seen last (or, before that, first)."""
    T, K = found.present.shape
    time = torch.arange(T)[:, None].expand(T, K)
    last = torch.where(found.present, time, -1).cummax(0).values
    first = torch.where(found.present, time, T).amin(0)
    known = torch.where(last < 0, first, last)
    ever = found.present.any(0)
    where = found.centre.gather(0, known.clamp(max=T - 1)[..., None].expand(T, K, 2))
    apart = (where[:, :, None] - found.centre[:, None]).norm(dim=-1)
    over = (apart <= found.radius[:, None] + BEHIND) & found.present[:, None]
    over &= ~torch.eye(K, dtype=torch.bool)
    return over.any(-1) & ever


def joined(marks: Sequence[Marks]) -> Marks:
    """All shots, with columns that never tell where a shot has fewer objects."""
    columns = {}
    for name in vars(marks[0]):
        parts = [getattr(mark, name) for mark in marks]
        if name != "others":
            parts = [_widened(part) for part in parts]
        columns[name] = torch.cat(parts)
    return Marks(**columns)


def _widened(part: Tensor) -> Tensor:
    rest = part.new_zeros(part.shape[0], MAX_THINGS - part.shape[1], *part.shape[2:])
    return torch.cat([part, rest], 1)
