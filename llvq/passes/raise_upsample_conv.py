"""raise-upsample-conv: frames are convolved at twice their size without being repeated first.

The convolution reads a ring for its border alone, with a weight for each of the four pixels that
one becomes. The shortcut around it, where a model has one, is added by the op.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from llvq.passes.books import Book
from llvq.passes.builder import Builder, is_call, shape
from llvq.passes.frames import BATCH_OF_FRAMES, frames_of, video_of
from llvq.passes.hold_rings import UPSAMPLE
from llvq.passes.raise_causal_conv import decoded, ring_of
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call, either, maybe
from llvq.program import Program

aten = torch.ops.aten
llvq = torch.ops.llvq

LAST = 2**63 - 1
FRAMES = call(aten.reshape.default, call(aten.permute.default, Var("x"), BATCH_OF_FRAMES),
              Literal("batch"))  # fmt: skip
LARGE = call(UPSAMPLE, FRAMES, None, [2.0, 2.0])
CONV = call(aten.conv2d.default, LARGE, Var("weight"), Var("bias"), [1, 1], [1, 1])
UP = call(aten.permute.default, call(aten.reshape.default, CONV, Literal("video")), BATCH_OF_FRAMES)

# Each value into its block: (feature, time, row, column) copies of it, then out into the video.
COPIES = maybe(aten.expand.default, call(aten.reshape.default, Var("shortcut"), Literal("lone")),
               size=Literal("copies"))  # fmt: skip
BLOCKS = call(aten.reshape.default, either(COPIES, Var("shortcut")), Literal("blocks"))
REPEATED = call(aten.reshape.default, call(aten.permute.default, BLOCKS, [0, 1, 5, 2, 6, 3, 7, 4]),
                Literal("size"))  # fmt: skip
SHORTCUT = either(call(aten.slice.Tensor, REPEATED, 2, Literal("dropped"), LAST), REPEATED)


def is_upsample(node: Node) -> bool:
    """Frames repeated to twice their size."""
    return is_call(node, UPSAMPLE)


def known_shortcut(found: Match) -> str | None:
    if found.get("shortcut") is None:
        return None
    _, _, times, rows, columns, *_ = found["blocks"]
    if rows != 2 or columns != 2 or times not in (1, 2):
        return f"its shortcut repeats into blocks of {times}x{rows}x{columns}"
    if found.get("dropped") not in (None, times - 1):
        return f"its shortcut drops {found['dropped']} of {times} frames"
    return None


def build(found: Match, b: Builder) -> Node:
    ring, held = ring_of(b, found["weight"])
    x = frames_of(found["x"], b)
    b.call(llvq.ring_write.default, held, x, decoded(b), ring.rate, ring.skip, 0)
    weight = b.call(llvq.subpixel_weight.default, found["weight"])
    shortcut = frames_of(found["shortcut"], b) if found.get("shortcut") else None
    doubled = shortcut is not None and found["blocks"][2] == 2
    given = (weight, found["bias"], shortcut, doubled, found.get("dropped") is not None)
    place = (decoded(b), ring.rate, 0, shape(x)[0])
    return video_of(b.call(llvq.upsample_conv.default, held, *given, *place), b)


RULES = (
    Rule(
        "upsample-conv",
        is_upsample,
        either(call(aten.add.Tensor, UP, SHORTCUT), UP),
        build,
        known_shortcut,
    ),
)


def raise_upsample_conv(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "raise-upsample-conv", RULES)
