"""Do the objects that a caption asks for hold over time? Curves per object, a score, and drift.

In a frame an object *holds* if there is a region of its colour, of its shape and its size. Frames
that cannot tell are left out: the object is behind another, or too little of it is in view. The
score of a second is the share of objects and frames that hold, of those that can tell.

Shapes: T frames.
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
from examples.tiny_longlive.captions import COLOURS, CUT, PLACES, Thing, parse
from examples.tiny_longlive.marks import Marks, joined, marks_of
from examples.tiny_longlive.spans import (
    Curve,
    Drift,
    Shot,
    Span,
    curve_of,
    drift,
    mean_of,
    seconds_of,
)

# From one frame to the next nothing moves faster than 10 pixels, and the detector is within 3.
JUMP = 16.0
START = 6  # frames that tell where an object begins


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
        return mean_of(self.score)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"mean": self.mean, **asdict(self)}


def identity(
    frames: Tensor, shots: Sequence[Shot], spans: Sequence[Span] | None = None,
    fps: float = data.FPS,
) -> Identity:  # fmt: skip
    """Judge uint8 frames [T, H, W, 3]; a span is a second unless spans are given."""
    spans = spans or seconds_of(shots, len(frames), fps)
    stops = [*(shot.start for shot in shots[1:]), len(frames)]
    marks = joined([
        marks_of(frames[shot.start : stop], shot.scene)
        for shot, stop in zip(shots, stops, strict=True)
    ])  # fmt: skip
    minutes = [(span.start + span.stop) / (2 * 60 * fps) for span in spans]
    curves = {
        "score": curve_of(marks.holds, marks.known, spans),
        "colour": curve_of(marks.colour, marks.seen, spans),
        "agreement": curve_of(marks.agreement, marks.seen, spans),
    }
    return Identity(
        seconds=[60 * minute for minute in minutes],
        **curves,
        objects=[
            _object(marks, spans, index, k, thing, shot.start)
            for index, shot in enumerate(shots)
            for k, thing in enumerate(shot.scene.things)
        ],
        others=_others(marks, spans),
        drift={name: drift(minutes, curve, spans) for name, curve in curves.items()},
    )


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


def _object(
    marks: Marks, spans: Sequence[Span], shot: int, k: int, thing: Thing, start: int
) -> ObjectCurves:
    mine = torch.zeros(len(marks.known), dtype=torch.bool)
    for span in spans:
        if span.shot == shot:
            mine[span.start : span.stop] = True
    known, seen = marks.known[:, k] & mine, marks.seen[:, k] & mine
    both = seen[1:] & seen[:-1]
    moved = (marks.centre[1:, k] - marks.centre[:-1, k]).norm(dim=-1)
    return ObjectCurves(
        name=f"{thing.size} {thing.colour} {thing.shape}",
        shot=shot,
        present=curve_of(marks.present[:, k], known, spans),
        shape=curve_of(marks.shape[:, k], seen, spans),
        size=curve_of(marks.size[:, k], seen, spans),
        holds=curve_of(marks.holds[:, k], known, spans),
        colour=curve_of(marks.colour[:, k], seen, spans),
        agreement=curve_of(marks.agreement[:, k], seen, spans),
        start_error=_start_error(marks.centre[:, k], seen, start, thing),
        jumps=int((both & (moved > JUMP)).sum()),
    )


def _start_error(centre: Tensor, seen: Tensor, start: int, thing: Thing) -> float | None:
    row, column = divmod(PLACES.index(thing.place), 3)
    named = torch.tensor([data.CELLS[column], data.CELLS[row]])
    begin = slice(start, start + START)
    apart = (centre[begin] - named).norm(dim=-1)[seen[begin]]
    return float(apart.median()) if len(apart) else None


def _others(marks: Marks, spans: Sequence[Span]) -> dict[str, Curve]:
    every = torch.ones(len(marks.others), dtype=torch.bool)
    return {
        colour: curve_of(marks.others[:, c], every, spans)
        for c, colour in enumerate(COLOURS)
        if marks.others[:, c].any()
    }
