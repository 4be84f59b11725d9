"""Nodes that what is known of a linear adds to a graph: static scale, smoothing, low-rank branch.

Facts stay named: each becomes a weight of the plan, and layers that name the same tensor read the
same node.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from llvq.calibration import LayerFacts
from llvq.errors import CheckpointError
from llvq.formats.nvfp4 import E4M3_MAX, FOUR_OVER_SIX_SCALE_MAX
from llvq.passes.builder import Builder, dtype, is_call, shape
from llvq.passes.rules import Context
from llvq.program import Program
from llvq.weights import WeightRecord

MUL = torch.ops.aten.mul.Tensor
llvq = torch.ops.llvq

SMOOTH = "pre_quant_scale"
READERS = (llvq.quantize.default, llvq.lowrank_add.default, torch.ops.aten.linear.default)
NO_FACTS = LayerFacts()


@dataclass
class Inputs:
    """The values that linears read, smoothed and quantized: each made once, however many read it.

    A value is smoothed once for each scale, and quantized once for each static scale.
    """

    rule: str
    smoothed: dict[tuple[Node, str], Node] = field(default_factory=dict)
    packed: dict[tuple[Node, str | None], tuple[Node, Node, Node]] = field(default_factory=dict)

    def smooth(self, b: Builder, value: Node, facts: LayerFacts) -> Node:
        """`value * pre_quant_scale`, or the value itself."""
        name = facts.pre_quant_scale
        if name is None:
            return value
        if (value, name) not in self.smoothed:
            scale = fact(b, name, dtype(value), shape(value)[-1:])
            self.smoothed[value, name] = b.call(MUL, value, scale)
        return self.smoothed[value, name]

    def quantize(self, b: Builder, value: Node, facts: LayerFacts) -> tuple[Node, Node, Node]:
        """Codes, scales and global scale of a value, static where there is a scale for it."""
        key = (value, facts.input_scale)
        if key not in self.packed:
            scale = static_scale(b, facts, self.rule)
            made = b.call(llvq.quantize.default, value, self.rule, **given(global_scale=scale))
            codes, scales, g = b.parts(made, 3)
            self.packed[key] = (codes, scales, g)
        return self.packed[key]


def given(**arguments: Any) -> dict[str, Any]:
    """The arguments that are not None: the others keep their default, and stay out of the graph."""
    return {name: value for name, value in arguments.items() if value is not None}


def fact(b: Builder, name: str, kind: torch.dtype, sizes: tuple[int, ...]) -> Node:
    """Read a fact as a weight, cast to the dtype that the graph computes in."""
    b.program.weights[name] = WeightRecord(name, "copy", (name,), dtype=kind)
    return b.weight(name, kind, sizes)


def static_scale(b: Builder, facts: LayerFacts, rule: str) -> Node | None:
    """The static global scale of a layer's input, fp32 [], as its block rule defines it.

    A fact is amax/(6*448). `four_over_six` stores up to 1.5 times the scale that maps a block to
    6, and is defined with amax/(6*256): the plan multiplies by 448/256.
    """
    if facts.input_scale is None:
        return None
    name = f"{facts.input_scale.removesuffix('.input_scale')}.activation_scale"
    factor = E4M3_MAX / FOUR_OVER_SIX_SCALE_MAX if rule == "four_over_six" else 1.0
    b.program.weights[name] = WeightRecord(name, "scale", (facts.input_scale,), factor=factor)
    return b.weight(name, torch.float32, ())


def add_branch(b: Builder, y: Node, x: Node, facts: LayerFacts) -> Node:
    """`y + (x @ down.T) @ up.T` for x [.., K] after smoothing; y itself without a branch."""
    if facts.lora_down is None or facts.lora_up is None or not facts.rank:
        return y
    down = fact(b, facts.lora_down, dtype(x), (facts.rank, shape(x)[-1]))
    up = fact(b, facts.lora_up, dtype(x), (shape(y)[-1], facts.rank))
    return b.call(llvq.lowrank_add.default, y, x, down, up)


def is_smoothing(node: Any) -> bool:
    """The product of a value and a `pre_quant_scale`, on its way to a linear."""
    if not is_call(node, MUL) or not isinstance(node.args[1], Node):
        return False
    scale = node.args[1]
    known = scale.op == "get_attr" and str(scale.target).rpartition(".")[2] == SMOOTH
    return known and any(is_call(user, *READERS) for user in node.users)


def readers(node: Node) -> list[Node]:
    """What reads a value, and what reads it smoothed."""
    return [r for user in node.users for r in (user.users if is_smoothing(user) else (user,))]


def taken_out(facts: LayerFacts) -> bool:
    """Whether the stored weight is what smoothing and branch left: it is no weight without them."""
    return facts.packed and (facts.pre_quant_scale is not None or facts.lora_down is not None)


def refuse_unread(program: Program, ctx: Context) -> None:
    """Raise CheckpointError for a stored residual that no linear of the graph reads as one."""
    for layer, facts in ctx.calibration.items():
        if taken_out(facts) and f"{layer}.weight" not in program.weights:
            raise CheckpointError(
                f"{layer} cannot be read without its smoothing and its low-rank branch",
                because="they were taken out of its weight, and only linears of the denoiser "
                "are given them back",
                fix="use a checkpoint that does not quantize this layer",
            )
