"""raise-frame-attention: the attention inside each frame of a decoder is done on frames.

Its convolutions of single pixels become linears, and a frame is its tokens as it lies: no permute
is left.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from llvq.passes.books import Book
from llvq.passes.builder import Builder, is_call, shape
from llvq.passes.convs_to_fp8 import SMALLEST
from llvq.passes.frames import BATCH_OF_FRAMES, frames_of, video_of
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call
from llvq.program import Program
from llvq.recipe import Recipe

aten = torch.ops.aten
llvq = torch.ops.llvq

SWAPPED, HEADS = [0, 1, 3, 2], [0, 2, 1, 3]
X = call(aten.reshape.default, call(aten.permute.default, Var("x"), BATCH_OF_FRAMES),
         Literal("batch"))  # fmt: skip
LENGTH = call(aten.linalg_vector_norm.default, X, 2.0, [1], True)
UNIT = call(aten.div.Tensor, X, call(aten.expand_as.default,
            call(aten.clamp_min.default, LENGTH, SMALLEST), X))  # fmt: skip
NORMED = call(aten.mul.Tensor, call(aten.mul.Tensor, UNIT, Literal("factor")), Var("gamma"))
QKV = call(aten.reshape.default, call(aten.conv2d.default, NORMED, Var("qkv"), Var("qkv_bias")),
           Literal("tokens"))  # fmt: skip
PARTS = call(aten.chunk.default, call(aten.permute.default, QKV, SWAPPED), 3, -1)
ATTENDED = call(
    llvq.attention.default,
    *(call(aten.permute.default, call(operator.getitem, PARTS, i), HEADS) for i in range(3)),
    None,
    Literal("scale"),
)
BACK = call(aten.permute.default, call(aten.permute.default, ATTENDED, HEADS), SWAPPED)
PROJECTED = call(aten.conv2d.default, call(aten.reshape.default, BACK, Literal("frames")),
                 Var("proj"), Var("proj_bias"))  # fmt: skip
VIDEO = call(aten.permute.default, call(aten.reshape.default, PROJECTED, Literal("video")),
             BATCH_OF_FRAMES)  # fmt: skip


def is_attention(node: Node) -> bool:
    """Attention without a cache."""
    return is_call(node, llvq.attention.default)


def outside_decoder(node: Node, _: Recipe) -> str | None:
    """Why an attention is not that of a decoder: nothing in its stage makes pixels."""
    streamed = any(is_call(other, llvq.pixels.default) for other in node.graph.nodes)
    return None if streamed else "its stage does not decode"


def one_head(found: Match) -> str | None:
    """Shapes that say nothing but frames, tokens and channels."""
    _, channels, frames, height, width = shape(found["x"])
    tokens = height * width
    pixels = ((3 * channels, channels, 1, 1), (channels, channels, 1, 1))
    if (shape(found["qkv"]), shape(found["proj"])) != pixels:
        return f"{shape(found['qkv'])} and {shape(found['proj'])} are no linears of one head"
    if list(found["tokens"]) != [frames, 1, 3 * channels, tokens]:
        return f"it attends over {found['tokens']}, a frame has {tokens} tokens"
    return None if shape(found.root) == shape(found["x"]) else "it does not give back its input"


def build(found: Match, b: Builder) -> Node:
    x = frames_of(found["x"], b)
    frames, height, width, channels = shape(x)
    q, k, v = b.parts(_qkv(found, x, b), 3)
    attended = b.call(llvq.attention.default, q, k, v, None, found["scale"])
    frames_again = b.reshape(attended, (frames, height, width, channels))
    return video_of(_linear(frames_again, found["proj"], found["proj_bias"], b), b)


def _qkv(found: Match, x: Node, b: Builder) -> Node:
    """Q, K and V of all frames, each [T, tokens, 1, C]."""
    frames, height, width, channels = shape(x)
    length = b.call(aten.linalg_vector_norm.default, x, 2.0, [-1], True)
    length = b.call(aten.expand_as.default, b.call(aten.clamp_min.default, length, SMALLEST), x)
    scaled = b.call(aten.mul.Tensor, b.call(aten.div.Tensor, x, length), found["factor"])
    normed = b.call(aten.mul.Tensor, scaled, b.reshape(found["gamma"], (channels,)))
    qkv = _linear(normed, found["qkv"], found["qkv_bias"], b)
    tokens = b.reshape(qkv, (frames, height * width, 1, 3 * channels))
    return b.call(aten.chunk.default, tokens, 3, -1)


def _linear(x: Node, weight: Node, bias: Node, b: Builder) -> Node:
    return b.call(aten.linear.default, x, b.reshape(weight, shape(weight)[:2]), bias)


RULES = (Rule("frame-attention", is_attention, VIDEO, build, one_head, outside_decoder),)


def raise_frame_attention(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "raise-frame-attention", RULES)
