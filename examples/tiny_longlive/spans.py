"""Spans of a video, in which curves have one value each, and how curves drift over them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from examples.tiny_longlive.captions import Scene

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


def seconds_of(shots: Sequence[Shot], frames: int, fps: float) -> list[Span]:
    """Spans of a second, counted from the start of each shot; the last of a shot may be shorter."""
    spans = []
    stops = [*(shot.start for shot in shots[1:]), frames]
    for index, (shot, stop) in enumerate(zip(shots, stops, strict=True)):
        count = math.ceil((stop - shot.start) / fps)
        edges = [min(shot.start + round(i * fps), stop) for i in range(count + 1)]
        spans += [Span(a, b, index) for a, b in pairwise(edges)]
    return spans


def curve_of(values: Tensor, known: Tensor, spans: Sequence[Span]) -> Curve:
    """The mean of what is known in each span."""
    curve: Curve = []
    for span in spans:
        part = slice(span.start, span.stop)
        chosen = values[part][known[part]]
        curve.append(float(chosen.double().mean()) if chosen.numel() else None)
    return curve


def mean_of(values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


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
