"""Captioned clips made on the fly, with the truth about every frame.

A scene's state is a closed form of time, so any stretch of a video can be drawn on its own, and
a batch of stretches in one go on a GPU. The same seed gives the same scenes.

Shapes: B clips, T frames, K objects, H and W pixels. Lengths in pixels of a 256x256 frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from examples.tiny_longlive import captions as words
from examples.tiny_longlive.captions import Scene, sample_scene
from examples.tiny_longlive.shapes import coverage

SIZE = 256
FPS = 24
RADIUS = (28.0, 46.0)  # small, large
CELLS = (64.0, 128.0, 192.0)
SPEED = 52.0  # pixels per second
TURN = 1.4  # radians per second
HOP_HEIGHT, HOP_SECONDS = 52.0, 1.25
CIRCLE_RADIUS, CIRCLE_SECONDS = 34.0, 3.2
SCROLL_SPEED = 36.0
PAN, PAN_SECONDS = 30.0, 6.0
STEP = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
PAN_AXIS = {"": (0.0, 0.0), "sideways": (1.0, 0.0), "up and down": (0.0, 1.0)}
RGB = {
    "red": (225, 40, 40), "green": (50, 190, 60), "blue": (50, 90, 235), "yellow": (240, 215, 50),
    "purple": (170, 60, 200), "cyan": (60, 210, 220), "orange": (245, 140, 30),
    "white": (240, 240, 240), "gray": (96, 96, 100), "navy": (30, 36, 84), "brown": (96, 64, 40),
    "olive": (84, 92, 40), "maroon": (88, 26, 40), "teal": (24, 88, 88),
}  # fmt: skip
LIGHTER = 38  # of 255: how much the pattern of a background stands out
PERIOD = 64.0  # of every pattern
BOX = 112  # pixels: no object is larger, not even a square on its corner


@dataclass(frozen=True)
class Batch:
    """Scenes as tensors. Objects that a scene does not have come last, with radius 0."""

    scenes: tuple[Scene, ...]
    start_BK2: Tensor
    step_BK2: Tensor
    pace_BK: Tensor
    radius_BK: Tensor
    shape_BK: Tensor
    move_BK: Tensor
    colour_BK3: Tensor
    ground_B3: Tensor
    texture_B: Tensor
    scroll_B2: Tensor
    pan_B2: Tensor


@dataclass(frozen=True)
class Truth:
    """Where the objects are, frame by frame, in pixels of the frame.

    centre [B, T, K, 2] (x, y), angle [B, T, K] in radians, radius [B, K] (0 where there is no such
    object). Order as in the caption, back to front.
    """

    centre: Tensor
    angle: Tensor
    radius: Tensor


def sample_scenes(count: int, seed: int) -> list[Scene]:
    random = Random(seed)
    return [sample_scene(random) for _ in range(count)]


def batch(scenes: Sequence[Scene], device: torch.device | str = "cpu") -> Batch:
    """The tensors of `scenes`, on `device`."""
    rows = [_thing_rows(scene) for scene in scenes]
    start, step, pace, radius, shape, move, colour = zip(*rows, strict=True)

    def put(values: object, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

    return Batch(
        tuple(scenes),
        put(start), put(step), put(pace), put(radius),
        put(shape, torch.int64), put(move, torch.int64), put(colour) / 255,
        ground_B3=put([RGB[scene.ground] for scene in scenes]) / 255,
        texture_B=put([words.TEXTURES.index(scene.texture) for scene in scenes], torch.int64),
        scroll_B2=put([STEP.get(scene.scroll, (0.0, 0.0)) for scene in scenes]),
        pan_B2=put([PAN_AXIS[scene.camera] for scene in scenes]),
    )  # fmt: skip


def truth(scenes: Batch, time_BT: Tensor) -> Truth:
    """The state of all objects at `time_BT`, in seconds since the start of the shot."""
    t = time_BT[:, :, None]
    move = scenes.move_BK[:, None, :]
    turns = is_move(move, *words.TURNING)
    angle = torch.where(turns, TURN * scenes.pace_BK[:, None] * t, torch.zeros_like(t))
    return Truth(_centre(scenes, t, move), angle, scenes.radius_BK)


def draw(
    scenes: Batch, time_BT: Tensor, window: tuple[int, int, int, int] = (0, 0, SIZE, SIZE)
) -> tuple[Tensor, Tensor]:
    """Pixels [B, T, 3, H, W] in [-1, 1] of `window` (left, top, width, height), and visibility.

    Visibility [B, T, K] is the part of the object's own area that is in the window and not covered.
    """
    left, top, width, height = window
    state = truth(scenes, time_BT)
    like = {"device": time_BT.device, "dtype": torch.float32}
    x = torch.arange(left, left + width, **like)[None, :] + 0.5
    y = torch.arange(top, top + height, **like)[:, None] + 0.5
    pixels = _background(scenes, time_BT, x, y)
    shown = []
    for k in range(words.MAX_THINGS):
        offset = state.centre[:, :, k, :, None, None]
        u, v = x - offset[:, :, 0], y - offset[:, :, 1]
        colour, inside = _object(scenes, k, u, v, state.angle[:, :, k])
        shown = [seen * (1 - inside) for seen in shown] + [inside]
        pixels = torch.lerp(pixels, colour, inside[:, :, None])
    areas = [seen.sum((-1, -2)) for seen in shown]
    visible = torch.stack(areas, -1) / _area(scenes)[:, None].clamp(min=1)
    return pixels * 2 - 1, visible.clamp(0, 1)


def paint(scenes: Batch, time_BT: Tensor) -> Tensor:
    """The pixels [B, T, 3, SIZE, SIZE] of `draw`, each object drawn only in a box around it."""
    B, T = time_BT.shape
    state = truth(scenes, time_BT)
    middles = torch.arange(SIZE, device=time_BT.device) + 0.5
    pixels = _background(scenes, time_BT, middles[None, :], middles[:, None]).flatten(0, 1)
    frames = torch.arange(B * T, device=time_BT.device)[:, None, None, None]
    channels = torch.arange(3, device=time_BT.device)[:, None, None]
    side = torch.arange(BOX, device=time_BT.device)
    for k in range(words.MAX_THINGS):
        corner = (state.centre[:, :, k] - BOX / 2).floor().clamp(0, SIZE - BOX)
        columns, rows = (corner[..., None] + side).long().unbind(2)
        u, v = (at + 0.5 - state.centre[:, :, k, axis, None]
                for axis, at in enumerate((columns, rows)))  # fmt: skip
        colour, inside = _object(
            scenes, k, u[:, :, None, :], v[:, :, :, None], state.angle[:, :, k]
        )
        columns, rows = columns.flatten(0, 1), rows.flatten(0, 1)
        box = (frames, channels, rows[:, None, :, None], columns[:, None, None, :])
        under = pixels[box].unflatten(0, (B, T))
        pixels[box] = torch.lerp(under, colour, inside[:, :, None]).flatten(0, 1)
    return pixels.unflatten(0, (B, T)) * 2 - 1


def frame_times(first_frame: Tensor, count: int) -> Tensor:
    """Seconds [B, count] of `count` frames from `first_frame` [B]."""
    steps = torch.arange(count, device=first_frame.device)
    return (first_frame[:, None] + steps).float() / FPS


def _object(scenes: Batch, k: int, u: Tensor, v: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Colour [B, T, 3, ...] of object `k` and how much of each pixel it covers [B, T, ...].

    u, v: offsets from its centre, which broadcast to each other.
    """
    radius = scenes.radius_BK[:, k, None, None, None]
    inside, rim = coverage(scenes.shape_BK[:, k], u, v, angle, radius)
    light = 0.88 - 0.2 * (u + v) / (2 * radius.clamp(min=1)) - 0.42 * rim
    colour = scenes.colour_BK3[:, k, None, :, None, None] * light[:, :, None]
    return colour.clamp(0, 1), inside


def is_move(move: Tensor, *names: str) -> Tensor:
    kinds = torch.tensor([words.MOVES.index(name) for name in names], device=move.device)
    return torch.isin(move, kinds)


def _thing_rows(scene: Scene) -> tuple[list, ...]:
    """Lists over K of everything that a `Batch` holds per object."""
    rows = []
    for thing in scene.things:
        row, column = divmod(words.PLACES.index(thing.place), 3)
        start = (CELLS[column] + thing.jitter[0], CELLS[row] + thing.jitter[1])
        rows.append((
            start, STEP.get(thing.direction, (0.0, 0.0)), thing.pace,
            RADIUS[words.SIZES.index(thing.size)], words.SHAPES.index(thing.shape),
            words.MOVES.index(thing.move), RGB[thing.colour],
        ))  # fmt: skip
    missing = words.MAX_THINGS - len(rows)
    rows += [((128.0, 128.0), (0.0, 0.0), 1.0, 0.0, 0, words.MOVES.index("waits"), (0, 0, 0))
             ] * missing  # fmt: skip
    return tuple(list(column) for column in zip(*rows, strict=True))


def _centre(scenes: Batch, t: Tensor, move: Tensor) -> Tensor:
    pace_t = scenes.pace_BK[:, None] * t
    centre = scenes.start_BK2[:, None] + SPEED * pace_t[..., None] * scenes.step_BK2[:, None]
    phase = 2 * math.pi * pace_t / CIRCLE_SECONDS
    circle = CIRCLE_RADIUS * torch.stack([phase.cos() - 1, phase.sin()], -1)
    u = (pace_t / HOP_SECONDS) % 1.0
    hop = torch.stack([torch.zeros_like(u), -4 * HOP_HEIGHT * u * (1 - u)], -1)
    centre = centre + circle * is_move(move, "circles")[..., None]
    centre = centre + hop * is_move(move, "hops")[..., None]
    margin = scenes.radius_BK[:, None, :, None].clamp(min=1)
    centre = _reflect(centre, margin, SIZE - margin)
    return centre - _camera(scenes, t[..., 0])[:, :, None]


def _camera(scenes: Batch, time_BT: Tensor) -> Tensor:
    """How far the camera has moved [B, T, 2]."""
    sway = PAN * torch.sin(2 * math.pi * time_BT / PAN_SECONDS)
    return sway[..., None] * scenes.pan_B2[:, None]


def _reflect(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`x` folded back at walls."""
    span = high - low
    u = (x - low) % (2 * span)
    return high - (u - span).abs()


def _background(scenes: Batch, time_BT: Tensor, x: Tensor, y: Tensor) -> Tensor:
    moved = SCROLL_SPEED * time_BT[..., None] * scenes.scroll_B2[:, None]
    moved = moved - _camera(scenes, time_BT)
    u = (x - moved[..., 0, None, None]) * (2 * math.pi / PERIOD)
    v = (y - moved[..., 1, None, None]) * (2 * math.pi / PERIOD)
    waves = (torch.full_like(u + v, -1.0), torch.sin(u + v), torch.sin(u) * torch.sin(v),
             torch.cos(u) + torch.cos(v) - 1.0)  # fmt: skip
    wave = waves[0]
    for index, other in enumerate(waves[1:], start=1):
        wave = torch.where((scenes.texture_B == index)[:, None, None, None], other, wave)
    pattern = (0.5 + 4 * wave).clamp(0, 1)
    ground = scenes.ground_B3[:, None, :, None, None]
    return ground + pattern[:, :, None] * (LIGHTER / 255)


def _area(scenes: Batch) -> Tensor:
    """Pixels [B, K] that each object covers when nothing hides it."""
    grid = torch.arange(-52.0, 53.0, device=scenes.radius_BK.device)
    areas = []
    for k in range(words.MAX_THINGS):
        u, v = grid[None, None, None, :], grid[None, None, :, None]
        angle = torch.zeros(len(scenes.scenes), 1, device=u.device)
        radius = scenes.radius_BK[:, k, None, None, None]
        inside, _ = coverage(scenes.shape_BK[:, k], u, v, angle, radius)
        areas.append(inside.sum((-1, -2))[:, 0])
    return torch.stack(areas, -1)
