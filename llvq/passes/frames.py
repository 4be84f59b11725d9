"""Frames and videos: [T, H, W, C], as a streamed decoder has them, and [1, C, T, H, W] as PyTorch.

A rewrite asks for the frames of what it reads and leaves a video behind; where a video was made of
frames, those are what it gets. So permutes are left only where something else stands between.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from llvq.passes.builder import Builder, is_call, shape

aten = torch.ops.aten

TO_FRAMES, TO_VIDEO = [0, 2, 3, 4, 1], [0, 4, 1, 2, 3]
# As layers on images take a video: [1, T, C, H, W].
BATCH_OF_FRAMES = [0, 2, 1, 3, 4]


def frames_of(video: Node, b: Builder) -> Node:
    """Frames [T, H, W, C], one after the other in memory, of a video [1, C, T, H, W]."""
    if (frames := made_of(video)) is not None:
        return frames
    last = b.once(aten.permute.default, video, TO_FRAMES)
    inside = b.once(aten.reshape.default, last, list(shape(last)[1:]))
    return b.once(aten.contiguous.default, inside)


def video_of(frames: Node, b: Builder) -> Node:
    """The video [1, C, T, H, W] of frames [T, H, W, C], which it is a view of."""
    batch = b.once(aten.reshape.default, frames, [1, *shape(frames)])
    return b.once(aten.permute.default, batch, TO_VIDEO)


def made_of(video: Node) -> Node | None:
    """The frames that `video_of` made a video of; None if something else did."""
    if not is_call(video, aten.permute.default) or video.args[1] != TO_VIDEO:
        return None
    batch: Any = video.args[0]
    if not is_call(batch, aten.reshape.default):
        return None
    frames: Node = batch.args[0]
    return frames if shape(batch) == (1, *shape(frames)) else None


def wants_frames(node: Node) -> bool:
    """Whether a node gives the frames of a video that something else made."""
    inside: Any = node.args[0] if is_call(node, aten.contiguous.default) else None
    last: Any = inside.args[0] if is_call(inside, aten.reshape.default) else None
    return is_call(last, aten.permute.default) and last.args[1] == TO_FRAMES


def video_behind(frames: Node) -> Node:
    """What a node that `wants_frames` reads."""
    for _ in range(3):
        (frames,) = frames.all_input_nodes
    return frames
