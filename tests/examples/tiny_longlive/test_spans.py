"""Seconds of shots, and the drift of curves over them."""

from __future__ import annotations

import pytest
import torch

from examples.tiny_longlive.captions import Scene
from examples.tiny_longlive.spans import Shot, Span, curve_of, drift, mean_of, seconds_of

SCENE = Scene((), "navy", "dotted")


def test_a_span_is_a_second_or_what_is_left_of_a_shot() -> None:
    assert seconds_of([Shot(0, SCENE), Shot(6, SCENE)], 14, 4.0) == [
        Span(0, 4, 0), Span(4, 6, 0), Span(6, 10, 1), Span(10, 14, 1)
    ]  # fmt: skip


def test_a_curve_is_the_mean_of_what_is_known() -> None:
    values, known = torch.tensor([1.0, 3.0, 9.0, 5.0]), torch.tensor([True, True, False, False])
    assert curve_of(values, known, [Span(0, 2, 0), Span(1, 3, 0), Span(2, 4, 0)]) == [2, 3, None]
    assert mean_of([2.0, 3.0, None]) == 2.5 and mean_of([None]) is None


def test_drift_is_least_squares_within_shots() -> None:
    """Against the normal equations with a column for each shot, solved by torch."""
    random = torch.Generator().manual_seed(0)
    minutes = torch.arange(9, dtype=torch.float64) / 60
    values = torch.randn(9, generator=random, dtype=torch.float64)
    shots = [0, 0, 0, 0, 1, 1, 1, 1, 1]
    design = torch.stack([minutes, *(torch.tensor(shots) == s for s in (0, 1))], 1)
    weights = torch.linalg.lstsq(design, values[:, None]).solution[:, 0]
    rest = values - design @ weights
    covariance = torch.linalg.inv(design.T @ design) * rest.dot(rest) / (9 - 3)
    spans = [Span(i, i + 1, shot) for i, shot in enumerate(shots)]
    found = drift(minutes.tolist(), values.tolist(), spans)
    assert found.per_minute == pytest.approx(weights[0].item())
    assert found.standard_error == pytest.approx(covariance[0, 0].sqrt().item())
    assert drift([0.0, 1.0], [0.5, None], spans).per_minute is None
    assert drift([0.0, 1.0], [0.5, 0.7], spans).standard_error is None
