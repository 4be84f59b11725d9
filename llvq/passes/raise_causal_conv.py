"""raise-causal-conv: a causal convolution reads its ring, into which its frames are written.

Joining state and frames, cutting off the next state, padding: none of it is left. Norm and SiLU
that nothing but a convolution reads become part of the write. Of a convolution that doubles frames
either half of the channels becomes a frame as it is stored.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import Node

from llvq.passes.books import Book
from llvq.passes.builder import Builder, finish, is_call, shape
from llvq.passes.convs_to_fp8 import NORMED, PADDED
from llvq.passes.frames import frames_of, video_of
from llvq.passes.hold_rings import FP8_CONV, STATE
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call
from llvq.program import Program, Ring, placeholders

aten = torch.ops.aten
llvq = torch.ops.llvq

X, WEIGHT, BIAS = Var("x"), Var("weight"), Var("bias")
AS_THEY_ARE = call(aten.cat.default, [Var("state"), X], 2)
AFTER_NORM = call(aten.cat.default, [Var("state"), NORMED], 2)
IN_TIME = call(aten.conv3d.default, AS_THEY_ARE, WEIGHT, BIAS)
HALVES = call(aten.permute.default, call(aten.reshape.default, IN_TIME, Literal("halves")),
              [0, 2, 3, 1, 4, 5])  # fmt: skip
CODES = call(llvq.fp8_conv_weight.default, WEIGHT, shared=True)
IN_FP8 = call(
    FP8_CONV,
    AFTER_NORM,
    call(llvq.fp8_norm_scale.default, Var("gamma"), Literal("factor"), bind="x_scale"),
    call(operator.getitem, CODES, 0, bind="codes"),
    call(operator.getitem, CODES, 1, bind="scales"),
    BIAS,
)


def is_in_fp8(node: Node) -> bool:
    """A causal convolution in FP8."""
    return is_call(node, FP8_CONV)


def is_causal(node: Node) -> bool:
    """A convolution of a state and frames."""
    if not is_call(node, aten.conv3d.default) or not is_call(node.args[0], aten.cat.default):
        return False
    state = node.args[0].args[0][0]  # type: ignore[union-attr, index]
    return isinstance(state, Node) and state.op == "placeholder"


def is_in_time(node: Node) -> bool:
    """A causal convolution over time alone."""
    return is_causal(node) and shape(node.args[1])[2:] == (3, 1, 1)  # type: ignore[arg-type]


def is_after_norm(node: Node) -> bool:
    """A causal convolution of what SiLU gives."""
    return is_causal(node) and is_call(node.args[0].args[0][1], aten.silu.default)  # type: ignore


def three_taps(found: Match) -> str | None:
    window = shape(found["weight"])[2:]
    return None if window == (3, 3, 3) else f"its window is {window}, a ring knows 3x3x3"


def two_halves(found: Match) -> str | None:
    features, *_ = shape(found["weight"])
    _, _, frames, height, width = shape(found["x"])
    halves = (1, 2, features // 2, frames, height, width)
    doubled = (1, features // 2, 2 * frames, height, width)
    if tuple(found["halves"]) != halves or shape(found.root) != doubled:
        return f"the halves of its {features} channels do not become frames"
    return None


def build_in_fp8(found: Match, b: Builder) -> Node:
    _write_normed(found, b, found["x_scale"])
    return video_of(_conv(found, b, found["codes"], found["scales"]), b)


def build_after_norm(found: Match, b: Builder) -> Node:
    _write_normed(found, b, None)
    return video_of(_conv(found, b, _channels_last(found, b)), b)


def build_as_they_are(found: Match, b: Builder) -> Node:
    _write(found, b)
    return video_of(_conv(found, b, _channels_last(found, b)), b)


def build_doubling(found: Match, b: Builder) -> Node:
    _write(found, b)
    return video_of(_conv(found, b, _channels_last(found, b), doubles=True), b)


def ring_of(b: Builder, weight: Node) -> tuple[Ring, Node]:
    """The ring of a convolution, and the input that holds it."""
    ring = b.program.rings[str(weight.target)]
    return ring, _input(b, ring.placeholder)


def decoded(b: Builder) -> Node:
    """The input that says how many latents were decoded before."""
    return _input(b, "decoded")


def _input(b: Builder, name: str) -> Node:
    return next(node for node in placeholders(b.graph) if node.target == name)


def _channels_last(found: Match, b: Builder) -> Node:
    return b.call(llvq.channels_last_weight.default, found["weight"])


def _write(found: Match, b: Builder) -> None:
    ring, held = ring_of(b, found["weight"])
    x = frames_of(found["x"], b)
    b.call(llvq.ring_write.default, held, x, decoded(b), ring.rate, ring.skip, 0)


def _write_normed(found: Match, b: Builder, scale: Node | None) -> None:
    ring, held = ring_of(b, found["weight"])
    x, gamma = frames_of(found["x"], b), b.reshape(found["gamma"], ring.frame[-1:])
    given = (gamma, found["factor"], scale, decoded(b), ring.rate, ring.skip, 0)
    b.call(llvq.ring_write_normed.default, held, x, *given)


def _conv(
    found: Match, b: Builder, weight: Node, scales: Node | None = None, *, doubles: bool = False
) -> Node:
    ring, held = ring_of(b, found["weight"])
    frames = shape(found["x"])[2]
    given = (weight, found["bias"], found.get("x_scale"), scales, None)
    place = (decoded(b), ring.rate, ring.skip, 0, frames, doubles)
    return b.call(llvq.ring_conv.default, held, *given, *place)


RULES = (
    Rule("fp8-ring-conv", is_in_fp8, IN_FP8, build_in_fp8, three_taps),
    Rule(
        "doubling-ring-conv",
        is_in_time,
        call(aten.reshape.default, HALVES, Literal("doubled")),
        build_doubling,
        two_halves,
    ),
    Rule(
        "normed-ring-conv",
        is_after_norm,
        call(aten.conv3d.default, AFTER_NORM, WEIGHT, BIAS, *PADDED),
        build_after_norm,
        three_taps,
    ),
    Rule(
        "ring-conv",
        is_causal,
        call(aten.conv3d.default, AS_THEY_ARE, WEIGHT, BIAS, *PADDED),
        build_as_they_are,
        three_taps,
    ),
)


def raise_causal_conv(program: Program, ctx: Context) -> list[Book]:
    books = apply_rules(program, ctx, "raise-causal-conv", RULES)
    for stage in program.stage_inputs:
        _drop_state(program, stage)
    return books


def _drop_state(program: Program, stage: str) -> None:
    """State that nothing reads any more is no input."""
    gm, kept = program.graphs[stage], []
    nodes: Iterable[Any] = placeholders(gm.graph)
    finish(gm)
    for node, spec in zip(nodes, program.stage_inputs[stage], strict=True):
        if spec.name.startswith(STATE) and spec.rate != "state" and not node.users:
            gm.graph.erase_node(node)
        else:
            kept.append(spec)
    program.stage_inputs[stage] = tuple(kept)
    gm.recompile()
