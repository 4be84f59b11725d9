"""Do the objects that a caption asks for hold over time? Curves per object, a score, and drift.

In a frame an object *holds* if there is a region of its colour, of its shape and its size. Frames
that cannot tell are left out: the object is behind another, or too little of it is in view. The
score of a second is the share of objects and frames that hold, of those that can tell.

Shapes: T frames, K objects of a shot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from examples.tiny_longlive import data
from examples.tiny_longlive.captions import (
    COLOURS,
    CUT,
    MAX_THINGS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    parse,
)
from examples.tiny_longlive.detector import Detections, detect
from examples.tiny_longlive.palette import distance

# From one frame to the next nothing moves faster than 10 pixels, and the detector is within 3.
JUMP = 16.0
BEHIND = 16.0  # pixels: the centre of an object of which little is in view may be off by as much
START = 6  # frames that tell where an object begins
Curve = list[float | None]  # a value for each span; None where no frame can tell


@dataclass(frozen=True)
class Shot:
    """The frames from `start` on, up to the next shot, show `scene`."""

    start: int
    scene: Scene


@dataclass(frozen=True)
class Span:
    """Frames `start` to `stop`, all of one shot, in which curves have one value."""

    start: int
    stop: int
    shot: int


@dataclass(frozen=True)
class Drift:
    """Change per minute, by least squares; each shot has its own level. None: too few values.

    The standard error takes the spans for independent.
    """

    per_minute: float | None
    standard_error: float | None


@dataclass(frozen=True)
class ObjectCurves:
    """One object of one shot. Curves have a value for each span of the video."""

    name: str
    shot: int
    present: Curve
    """Share of frames with a region of its colour."""
    shape: Curve
    """Share of frames in which its shape agrees best."""
    size: Curve
    """Share of frames in which it is of its size."""
    holds: Curve
    """Share of frames in which all three hold."""
    colour: Curve
    """CIE76 difference to the named colour."""
    agreement: Curve
    """With the named shape, 0..1."""
    start_error: float | None
    """Pixels from the named place when the shot begins; captions leave up to 20 open."""
    jumps: int
    """How often it is elsewhere in the next frame."""


@dataclass(frozen=True)
class Identity:
    """One video. `seconds` are the middles of the spans, `score` their shares of what holds.

    `colour` and `agreement` are means over the objects in view. `others`: by colour that no object
    of the shot has, the share of frames that show it. `drift` is of score, colour and agreement.
    """

    seconds: list[float]
    score: Curve
    colour: Curve
    agreement: Curve
    objects: list[ObjectCurves]
    others: dict[str, Curve]
    drift: dict[str, Drift]

    @property
    def mean(self) -> float | None:
        """Of the score over all spans that can tell."""
        return _mean(self.score)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"mean": self.mean, **asdict(self)}


@dataclass(frozen=True)
class _Marks:
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


def identity(
    frames: Tensor, shots: Sequence[Shot], spans: Sequence[Span] | None = None,
    fps: float = data.FPS,
) -> Identity:  # fmt: skip
    """Judge uint8 frames [T, H, W, 3]; a span is a second unless spans are given."""
    spans = spans or seconds_of(shots, len(frames), fps)
    stops = [*(shot.start for shot in shots[1:]), len(frames)]
    marks = [
        _marks(frames[shot.start : stop], shot.scene)
        for shot, stop in zip(shots, stops, strict=True)
    ]
    joined = _joined(marks)
    minutes = [(span.start + span.stop) / (2 * 60 * fps) for span in spans]
    held = joined.present & joined.shape & joined.size
    curves = {
        "score": _curve(held, joined.known, spans),
        "colour": _curve(joined.colour, joined.seen, spans),
        "agreement": _curve(joined.agreement, joined.seen, spans),
    }
    return Identity(
        seconds=[60 * minute for minute in minutes],
        **curves,
        objects=[
            _object(joined, spans, index, k, thing, shot.start)
            for index, shot in enumerate(shots)
            for k, thing in enumerate(shot.scene.things)
        ],
        others=_others(joined, spans),
        drift={name: drift(minutes, curve, spans) for name, curve in curves.items()},
    )


def seconds_of(shots: Sequence[Shot], frames: int, fps: float) -> list[Span]:
    """Spans of a second, counted from the start of each shot; the last of a shot may be shorter."""
    spans = []
    stops = [*(shot.start for shot in shots[1:]), frames]
    for index, (shot, stop) in enumerate(zip(shots, stops, strict=True)):
        count = math.ceil((stop - shot.start) / fps)
        edges = [min(shot.start + round(i * fps), stop) for i in range(count + 1)]
        spans += [Span(a, b, index) for a, b in pairwise(edges)]
    return spans


def drift(minutes: Sequence[float], curve: Curve, spans: Sequence[Span]) -> Drift:
    """The slope of a curve within its shots: what a cut changes is no drift."""
    known = [i for i, value in enumerate(curve) if value is not None]
    x, y, count = [], [], 0
    for shot in sorted({spans[i].shot for i in known}):
        mine = [i for i in known if spans[i].shot == shot]
        times = torch.tensor([minutes[i] for i in mine], dtype=torch.float64)
        values = torch.tensor([curve[i] for i in mine], dtype=torch.float64)
        x.append(times - times.mean())
        y.append(values - values.mean())
        count += 1
    free = len(known) - count - 1
    if free < 1:
        return Drift(None, None)
    across, along = torch.cat(x), torch.cat(y)
    spread = float(across.dot(across))
    slope = float(across.dot(along)) / spread
    rest = along - slope * across
    return Drift(slope, math.sqrt(float(rest.dot(rest)) / free / spread))


def by_chunk(frames: Sequence[Tensor], prompts: Sequence[str], fps: float = data.FPS) -> Identity:
    """Judge the frames of each chunk, whose prompt it is; a span is a chunk.

    Raises ValueError for a prompt outside the grammar.
    """
    edges = [0]
    for chunk in frames:
        edges.append(edges[-1] + len(chunk))
    scenes = [parse(prompt) for prompt in prompts]
    shots, spans = list[Shot](), list[Span]()
    for (start, stop), prompt, scene in zip(pairwise(edges), prompts, scenes, strict=True):
        if not shots or prompt.startswith(CUT) or scene != shots[-1].scene:
            shots.append(Shot(start, scene))
        spans.append(Span(start, stop, len(shots) - 1))
    return identity(torch.cat(list(frames)), shots, spans, fps)


def curves(frames: Sequence[Tensor], prompts: Sequence[str]) -> dict[str, list[float]]:
    """What the report of a comparison draws of the frames of each chunk (`Request.judge`).

    Raises ValueError for a prompt outside the grammar.
    """
    found = by_chunk(frames, prompts)
    named = {
        "Identity: share of objects that hold": found.score,
        "Colour: CIE76 difference to the named one": found.colour,
        "Shape: agreement with the named one": found.agreement,
        **{f"Share of frames that show a {o.name} (shot {o.shot})": o.holds for o in found.objects},
    }
    return {
        name: [math.nan if value is None else value for value in curve]
        for name, curve in named.items()
    }


def _marks(frames: Tensor, scene: Scene) -> _Marks:
    found = detect(frames, scene)
    things = scene.things
    shape = torch.tensor([SHAPES.index(thing.shape) for thing in things])
    size = torch.tensor([SIZES.index(thing.size) for thing in things])
    colour = [distance(found.rgb[:, k], thing.colour) for k, thing in enumerate(things)]
    index = shape[None, :, None].expand(len(frames), -1, 1)
    missing = ~found.present & ~_behind(found)
    return _Marks(
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


def _joined(marks: Sequence[_Marks]) -> _Marks:
    """All shots, with columns that never tell where a shot has fewer objects."""
    columns = {}
    for name in vars(marks[0]):
        parts = [getattr(mark, name) for mark in marks]
        if name != "others":
            parts = [_widened(part) for part in parts]
        columns[name] = torch.cat(parts)
    return _Marks(**columns)


def _widened(part: Tensor) -> Tensor:
    rest = part.new_zeros(part.shape[0], MAX_THINGS - part.shape[1], *part.shape[2:])
    return torch.cat([part, rest], 1)


def _object(
    marks: _Marks, spans: Sequence[Span], shot: int, k: int, thing: Thing, start: int
) -> ObjectCurves:
    mine = torch.zeros(len(marks.known), dtype=torch.bool)
    for span in spans:
        if span.shot == shot:
            mine[span.start : span.stop] = True
    known, seen = marks.known[:, k] & mine, marks.seen[:, k] & mine
    holds = marks.present & marks.shape & marks.size
    both = seen[1:] & seen[:-1]
    moved = (marks.centre[1:, k] - marks.centre[:-1, k]).norm(dim=-1)
    return ObjectCurves(
        name=f"{thing.size} {thing.colour} {thing.shape}",
        shot=shot,
        present=_curve(marks.present[:, k], known, spans),
        shape=_curve(marks.shape[:, k], seen, spans),
        size=_curve(marks.size[:, k], seen, spans),
        holds=_curve(holds[:, k], known, spans),
        colour=_curve(marks.colour[:, k], seen, spans),
        agreement=_curve(marks.agreement[:, k], seen, spans),
        start_error=_start_error(marks.centre[:, k], seen, start, thing),
        jumps=int((both & (moved > JUMP)).sum()),
    )


def _start_error(centre: Tensor, seen: Tensor, start: int, thing: Thing) -> float | None:
    row, column = divmod(PLACES.index(thing.place), 3)
    named = torch.tensor([data.CELLS[column], data.CELLS[row]])
    begin = slice(start, start + START)
    apart = (centre[begin] - named).norm(dim=-1)[seen[begin]]
    return float(apart.median()) if len(apart) else None


def _others(marks: _Marks, spans: Sequence[Span]) -> dict[str, Curve]:
    every = torch.ones(len(marks.others), dtype=torch.bool)
    return {
        colour: _curve(marks.others[:, c], every, spans)
        for c, colour in enumerate(COLOURS)
        if marks.others[:, c].any()
    }


def _curve(values: Tensor, known: Tensor, spans: Sequence[Span]) -> Curve:
    """The mean of what is known in each span."""
    curve: Curve = []
    for span in spans:
        part = slice(span.start, span.stop)
        chosen = values[part][known[part]]
        curve.append(float(chosen.double().mean()) if chosen.numel() else None)
    return curve


def _mean(curve: Curve) -> float | None:
    known = [value for value in curve if value is not None]
    return sum(known) / len(known) if known else None
