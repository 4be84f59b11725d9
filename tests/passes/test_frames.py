from __future__ import annotations

import torch

from llvq.passes.builder import Builder, shape
from llvq.passes.frames import frames_of, made_of, video_behind, video_of, wants_frames
from llvq.program import placeholders, val


def builder(export, module=None):
    class Sine(torch.nn.Module):
        def forward(self, x):
            return x.sin()

    program = export(module or Sine(), torch.randn(1, 3, 2, 5, 7))
    (video,) = placeholders(program.graph.graph)
    return Builder(program, "test", next(iter(video.users)), ()), video


def test_frames_of_a_video_of_frames_are_those_frames(export):
    b, video = builder(export)
    frames = frames_of(video, b)
    assert shape(frames) == (2, 5, 7, 3) and val(frames).is_contiguous()
    again = video_of(frames, b)
    assert shape(again) == (1, 3, 2, 5, 7)
    assert made_of(again) is frames and frames_of(again, b) is frames


def test_what_was_not_made_of_frames_is_known(export):
    b, video = builder(export)
    assert made_of(video) is None
    other = b.call(torch.ops.aten.permute.default, video, [0, 4, 1, 2, 3])
    assert made_of(other) is None
    assert made_of(video_of(frames_of(other, b), b)) is not None


def test_a_node_that_asks_for_frames_is_known_and_made_once(export):
    b, video = builder(export)
    frames = frames_of(video, b)
    assert frames_of(video, b) is frames
    assert wants_frames(frames) and video_behind(frames) is video
    assert not wants_frames(video_of(frames, b)) and not wants_frames(video)
