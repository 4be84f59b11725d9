"""What frames show of the objects that a caption asks for: where, how large, of which shape.

Classical and without parameters to train: pixels by the nearest colour of the palette, the place
where a colour is densest, and there the template that agrees best. What other objects hide is left
out of the comparison. Lengths and areas are in pixels of a 256x256 frame; others are resized.

Shapes: T frames, K objects, N = what was found of one colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.tiny_longlive import data
from examples.tiny_longlive.captions import COLOURS, SIZES, Scene
from examples.tiny_longlive.palette import FULL, faces
from examples.tiny_longlive.templates import Templates, agreement, templates

BATCH = 64  # frames at once
CELL, COARSE = 2, 8  # pixels of a mask's cell, and of the cells in which a colour is looked for
SIDE = 64  # cells of a crop
ROOM = 48  # cells around a frame, for crops
REACH = 50.0  # of a window around one object: no object is larger
SMALLEST = 60.0  # area of a face that counts as seen
HIDING = 7  # cells: how far an object hides others beside its face, which has a rim around it
MEAN_SHIFTS = 3
RADII = (23.0, 28.0, 33.0, 39.0, 46.0, 54.0)
JUDGED = 0.6  # of a face must be in view for its shape to be judged


@dataclass(frozen=True)
class Detections:
    """The objects of one caption, in its order. Where `area` is 0, the rest means nothing."""

    area: Tensor
    """[T, K] lit pixels of the colour within an object's reach; 0 if there are too few."""
    centre: Tensor
    """[T, K, 2] x and y."""
    rgb: Tensor
    """[T, K, 3] mean colour of those pixels, 0..255."""
    agreement: Tensor
    """[T, K, 6] with each of SHAPES at its best size, angle and place, 0..1."""
    radius: Tensor
    """[T, K] of the best template."""
    visible: Tensor
    """[T, K] the part of the best template that nothing hides."""
    others: Tensor
    """[T, 8] area of each of COLOURS that is not asked for, where it is densest."""

    @property
    def present(self) -> Tensor:
        """[T, K] whether there is a region of the object's colour."""
        return self.area > 0

    @property
    def judged(self) -> Tensor:
        """[T, K] whether enough of it is in view to tell its shape."""
        return self.present & (self.visible >= JUDGED)

    @property
    def shape(self) -> Tensor:
        """[T, K] index into SHAPES."""
        return self.agreement.argmax(-1)

    @property
    def size(self) -> Tensor:
        """[T, K] index into SIZES."""
        small, large = data.RADIUS
        return (self.radius > (small * large) ** 0.5).long()


def detect(frames: Tensor, scene: Scene) -> Detections:
    """Look in uint8 frames [T, H, W, 3] for the objects of `scene`."""
    found = [_detect(_resized(part), scene) for part in frames.split(BATCH)]
    columns = zip(*(vars(part).values() for part in found), strict=True)
    return Detections(*map(torch.cat, columns))


def _resized(frames: Tensor) -> Tensor:
    if frames.shape[1:3] == (data.SIZE, data.SIZE):
        return frames
    planes = frames.permute(0, 3, 1, 2).float()
    planes = F.interpolate(planes, (data.SIZE, data.SIZE), mode="bilinear", antialias=True)
    return planes.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _detect(frames: Tensor, scene: Scene) -> Detections:
    counts = faces(frames)
    asked = [COLOURS.index(thing.colour) for thing in scene.things]
    masks = [counts[..., c].float() / (4 * FULL) for c in asked]
    grown = [_grown(_opened(mask), HIDING // CELL + 1) for mask in masks]
    pixels = _padded(frames[:, ::CELL, ::CELL].permute(0, 3, 1, 2).float().contiguous())
    found = []
    for k, mask in enumerate(masks):
        reach = 0.8 * data.RADIUS[SIZES.index(scene.things[k].size)]
        hidden = torch.zeros_like(mask, dtype=torch.bool)
        for other in (j for j in range(len(masks)) if j != k):
            hidden |= grown[other]
        found.append(_one(_padded(mask), _padded((~hidden).float()), pixels, reach))
    columns = [torch.stack(column, 1) for column in zip(*found, strict=True)]
    peaks = _densest(counts.permute(0, 3, 1, 2).float() / (4 * FULL))[0]
    peaks[:, asked] = 0.0
    return Detections(*columns, others=peaks * (peaks >= SMALLEST))


def _opened(mask: Tensor) -> Tensor:
    """What is left of a mask [T, H, W] without its thin lines: those are edges of something."""
    return ~_grown(mask <= 0.5, 1)


def _grown(mask: Tensor, cells: int) -> Tensor:
    """A mask [T, H, W] of bool and all cells of the square around each of its own."""
    for axis in (1, 2):
        wide, size = mask.clone(), mask.shape[axis]
        for step in range(1, cells + 1):
            ahead, behind = (mask.narrow(axis, start, size - step) for start in (step, 0))
            wide.narrow(axis, 0, size - step).logical_or_(ahead)
            wide.narrow(axis, step, size - step).logical_or_(behind)
        mask = wide
    return mask


def _densest(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Of masks [T, C, H, W]: the largest area [T, C] within REACH of a point, and the point."""
    T, C, _, _ = masks.shape
    cells = F.avg_pool2d(masks, COARSE // CELL).flatten(0, 1)[:, None]
    reach = int(REACH / COARSE)
    grid = torch.arange(-reach, reach + 1.0)
    disc = (torch.hypot(grid, grid[:, None]) * COARSE <= REACH).float()
    sums = F.conv2d(cells, disc[None, None], padding=reach)[:, 0]
    area, index = sums.flatten(1).max(1)
    row, column = index // sums.shape[2], index % sums.shape[2]
    point = (torch.stack([column, row], -1) + 0.5) * COARSE
    return area.view(T, C) * COARSE**2, point.view(T, C, 2)


def _one(mask: Tensor, care: Tensor, pixels: Tensor, reach: float) -> tuple[Tensor, ...]:
    """The columns of `Detections` for one colour, in their order."""
    inner = slice(ROOM, -ROOM)
    point = _densest(mask[:, None, inner, inner])[1][:, 0]
    for _ in range(MEAN_SHIFTS):
        area, point = _centroid(_crop(mask, point), point)
    return area * (area >= SMALLEST), *_fit(mask, care, pixels, point, reach)


def _padded(image: Tensor) -> Tensor:
    """Room for a crop around any point of the frame; outside of it nothing is known."""
    return F.pad(image, (ROOM, ROOM, ROOM, ROOM))


def _corner(point: Tensor) -> Tensor:
    """The first cell of the crop around points [N, 2], in cells of the frame, [N, 2]."""
    last = data.SIZE // CELL + ROOM - SIDE
    return ((point / CELL).round().long() - SIDE // 2).clamp(-ROOM, last)


def _crop(images: Tensor, point: Tensor) -> Tensor:
    """[N, ..., SIDE, SIDE] of padded images [N, ..., H, W], around points [N, 2]."""
    corners = (_corner(point) + ROOM).tolist()
    parts = [
        image[..., row : row + SIDE, column : column + SIDE]
        for image, (column, row) in zip(images, corners, strict=True)
    ]
    return torch.stack(parts)


def _where(point: Tensor) -> tuple[Tensor, Tensor]:
    """x [N, 1, SIDE] and y [N, SIDE, 1] of the cells of the crops around points."""
    start, steps = _corner(point) * CELL, (torch.arange(SIDE) + 0.5) * CELL
    return start[:, 0, None, None] + steps, start[:, 1, None, None] + steps[:, None]


def _share(weight: Tensor, cared: Tensor) -> Tensor:
    """[N] of weights [N, SIDE, SIDE], the part where nothing hides what is there."""
    return (weight * cared).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-3)


def _centroid(crop: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """The area within REACH of a point, and its mean; the point itself where there is none."""
    x, y = _where(point)
    near = torch.hypot(x - point[:, 0, None, None], y - point[:, 1, None, None]) <= REACH
    weight = crop * near
    total = weight.sum((1, 2))
    mean = torch.stack([(weight * x).sum((1, 2)), (weight * y).sum((1, 2))], -1)
    mean = mean / total.clamp(min=1e-3)[:, None]
    return total * CELL**2, torch.where((total > 0)[:, None], mean, point)


def _fit(
    mask: Tensor, care: Tensor, pixels: Tensor, point: Tensor, reach: float
) -> tuple[Tensor, ...]:
    """Centre, colour, agreement, radius and visible part of masks around points.

    First where, roughly: half of an object may be hidden, and the point is the mean of the rest.
    """
    coarse = templates(2 * CELL, SIDE // 2, RADII[1::2], 3, (-18, -12, -6, 0, 6, 12, 18))
    seen, cared = _crop(mask, point), _crop(care, point)
    score, which = agreement(*(F.avg_pool2d(t, 2).flatten(1) for t in (seen, cared)), coarse)
    best = which.gather(1, score.argmax(1, keepdim=True))[:, 0]
    point = _middle(point) + coarse.centre[best]
    fine = templates(CELL, SIDE, RADII, 6, (-3, 0, 3))
    seen, cared = _crop(mask, point), _crop(care, point)
    score, which = agreement(seen.flatten(1), cared.flatten(1), fine)
    best = which.gather(1, score.argmax(1, keepdim=True))[:, 0]
    return _measured(seen, cared, _crop(pixels, point), point, score, best, fine, reach)


def _middle(point: Tensor) -> Tensor:
    """Where the middle of the crop around a point is, in pixels."""
    return (_corner(point) + SIDE // 2) * float(CELL)


def _measured(
    seen: Tensor, cared: Tensor, pixels: Tensor, point: Tensor, score: Tensor, best: Tensor,
    fine: Templates, reach: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    face = fine.pixels[best].view_as(seen)
    weight = seen * cared * (face > 0.5)
    rgb = (pixels * weight[:, None]).sum((2, 3)) / weight.sum((1, 2)).clamp(min=1e-3)[:, None]
    # Templates stand 3 pixels apart; by as much as the mask's mean is off theirs, so is the centre.
    middle = _middle(point)
    off = _centroid(seen * cared, middle)[1] - _centroid(face * cared, middle)[1]
    centre = middle + fine.centre[best] + off.clamp(-3, 3)
    # What is left of a large object may look like a small one: also its whole disc must be in view.
    x, y = _where(point)
    whole = torch.hypot(x - centre[:, 0, None, None], y - centre[:, 1, None, None]) <= reach
    visible = torch.minimum(_share(face, cared), _share(whole.float(), cared))
    return centre, rgb, score, fine.radius[best], visible
