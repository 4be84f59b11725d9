"""Curves of videos whose story is known: steady, broken half way, hidden, cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from examples.tiny_longlive.captions import CUT, Scene, Thing, caption
from examples.tiny_longlive.identity import by_chunk, identity
from examples.tiny_longlive.spans import Shot, Span

Draw = Callable[..., tuple[Tensor, Tensor]]
FPS = 4.0  # of the clips here: four frames are a second of curves
STAR = Thing("large", "green", "star", "on the left", "spins")
BALL = Thing("small", "red", "ball", "at the top right", "waits")
SCENE = Scene((STAR, BALL), "navy", "dotted")


def instead(**changes: str) -> Scene:
    return replace(SCENE, things=(replace(STAR, **changes), BALL))


@pytest.fixture(scope="module")
def second(draw: Draw) -> Callable[[Scene], Tensor]:
    return lambda scene: draw(scene, (0.0, 0.25, 0.5, 0.75))[0]


Second = Callable[[Scene], Tensor]


def test_a_steady_video_holds(second: Second) -> None:
    found = identity(torch.cat([second(SCENE)] * 3), [Shot(0, SCENE)], fps=FPS)
    assert found.seconds == [0.5, 1.5, 2.5] and found.score == [1.0] * 3 and found.mean == 1.0
    star, ball = found.objects
    assert (star.name, ball.name) == ("large green star", "small red ball")
    assert star.holds == ball.present == [1.0] * 3 and star.jumps == 0
    assert star.start_error is not None and star.start_error < 4
    assert all(value is not None and value < 4 for value in star.colour)
    assert all(value is not None and value > 0.85 for value in ball.agreement)
    assert found.others == {} and found.drift["score"].per_minute == 0


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"colour": "yellow"}, "present"),
        ({"shape": "square"}, "shape"),
        ({"size": "small"}, "size"),
        ({"place": "at the bottom right"}, "jumps"),
    ],
)
def test_what_breaks_is_the_curve_of_what_was_broken(
    second: Second, changes: dict[str, str], broken: str
) -> None:
    frames = torch.cat([second(SCENE)] * 2 + [second(instead(**changes))] * 2)
    found = identity(frames, [Shot(0, SCENE)], fps=FPS)
    star, ball = found.objects
    assert ball.holds == [1.0] * 4
    if broken == "jumps":
        assert star.holds == [1.0] * 4 and star.jumps == 1
        return
    assert getattr(star, broken) == [1.0, 1.0, 0.0, 0.0] and star.jumps == 0
    assert found.score == [1.0, 1.0, 0.5, 0.5]
    assert found.drift["score"].per_minute == pytest.approx(-12)
    assert found.others == ({"yellow": [0.0, 0.0, 1.0, 1.0]} if broken == "present" else {})


def test_the_wrong_place_is_seen_at_the_start(second: Second) -> None:
    found = identity(second(SCENE), [Shot(0, instead(place="at the bottom"))], fps=FPS)
    start = found.objects[0].start_error
    assert start == pytest.approx(2**0.5 * 64, abs=4) and found.mean == 1.0


def test_an_object_behind_another_cannot_tell(draw: Draw) -> None:
    back = replace(BALL, place="on the left")
    front = Thing("large", "blue", "square", "on the left", "drifts", "right")
    scene = Scene((back, front), "gray", "plain")
    # Half a second in which the ball is behind the square, then it comes out.
    frames, visible = draw(scene, (0.0, 0.2, 2.4, 2.6))
    assert visible[:2, 0].max() < 0.01 and visible[2:, 0].min() > 0.99
    found = identity(frames, [Shot(0, scene)], [Span(0, 2, 0), Span(2, 4, 0)], fps=FPS)
    assert found.objects[0].holds == [None, 1.0] and found.score == [1.0, 1.0]
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_cut_begins_other_objects_and_is_no_drift(second: Second) -> None:
    other = Scene((Thing("small", "white", "cross", "in the center", "waits"),), "teal", "plain")
    frames = torch.cat([second(SCENE), second(SCENE)[:2], second(BALL_ONLY), second(BALL_ONLY)])
    shots = [Shot(0, SCENE), Shot(6, other)]
    found = identity(frames, shots, fps=FPS)
    assert found.score == [1.0, 1.0, 0.0, 0.0] and found.drift["score"].per_minute == 0
    star, _, cross = found.objects
    assert (star.shot, star.holds) == (0, [1.0, 1.0, None, None])
    assert (cross.shot, cross.holds, cross.start_error) == (1, [None, None, 0.0, 0.0], None)
    assert found.others == {"red": [0.0, 0.0, 1.0, 1.0]}


BALL_ONLY = replace(SCENE, things=(BALL,))


def test_chunks_are_spans_and_cuts_are_read_from_prompts(second: Second) -> None:
    text = caption(SCENE)
    clip = second(SCENE)
    found = by_chunk([clip[:1], clip, clip[:2]], [text, text, CUT + text], fps=FPS)
    assert found.score == [1.0] * 3 and found.seconds == [0.125, 0.75, 1.5]
    assert [thing.shot for thing in found.objects] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="not a sentence"):
        by_chunk([clip], ["A red kite."])
