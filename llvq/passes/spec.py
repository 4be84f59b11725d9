"""What is legal on each rung of the ladder, and the check that a graph is.

`graph.lint()` is not verification: it passes with stale dtypes. Here every value is inferred
again and compared with what the graph says.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.utils._pytree as pytree
from torch.fx import GraphModule, Node

from llvq.errors import SpecError
from llvq.formats.nvfp4 import BLOCK
from llvq.passes.builder import dtype, infer, is_call, shape
from llvq.passes.canonicalize import SPELLINGS, as_cast, as_permute, as_reshape
from llvq.passes.functional import writes_in_place
from llvq.program import Level, Program, provenance, val, where

aten = torch.ops.aten
llvq = torch.ops.llvq

QUANTIZES = (
    llvq.quantize.default,
    llvq.quantize_lowrank.default,
    llvq.norm_modulate_quantize.default,
    llvq.gelu_quantize.default,
)

WRITES = (
    llvq.write_page.default,
    llvq.write_kept.default,
    llvq.ring_write.default,
    llvq.ring_write_normed.default,
)

Law = Callable[[Node], str | None]


@dataclass(frozen=True)
class Spec:
    """The laws that hold at a level and on every rung above it, until `until`.

    A law that `needs_all` rewrites of a pass does not hold once a bisect limit has stopped some.
    """

    level: Level
    law: Law
    until: Level = Level.LOWERED
    needs_all: bool = False


def no_device(node: Node) -> str | None:
    """Graphs name no device: the one they run on is chosen when they are loaded."""
    device = node.kwargs.get("device")
    literal = isinstance(device, torch.device) and device.type != "meta"
    return f"it names the device {device}" if literal else None


def no_core_aten(node: Node) -> str | None:
    """A product with a transposed weight is a linear that a decomposition took apart."""
    dissolved = is_call(node, aten.addmm.default, aten.mm.default) and any(
        is_call(part, aten.t.default, aten.permute.default) and part.args[0].op == "get_attr"  # type: ignore[union-attr]
        for part in node.all_input_nodes
    )
    return "linears must be kept whole: do not run_decompositions()" if dissolved else None


def one_spelling(node: Node) -> str | None:
    """Views and casts have the one spelling that canonicalize gives them."""
    kept = (aten.reshape.default, aten.to.dtype, aten.permute.default)
    other = SPELLINGS.get(node.target) in (as_reshape, as_cast, as_permute)
    return (
        "it is a spelling that canonicalize removes" if other and node.target not in kept else None
    )


def attention_raised(node: Node) -> str | None:
    """Attention is one llvq op."""
    left = is_call(node, aten.scaled_dot_product_attention.default)
    return "raise-attention left it" if left else None


def whole_blocks(node: Node) -> str | None:
    """What is quantized divides into blocks."""
    if not is_call(node, llvq.quantize.default):
        return None
    features = shape(node.args[0])[-1]  # type: ignore[arg-type]
    return f"K = {features} is not a multiple of {BLOCK}" if features % BLOCK else None


def quantized_once(node: Node) -> str | None:
    """A value is quantized once for each scale, however many read it."""
    if not is_call(node, llvq.quantize.default):
        return None
    twins = [
        user
        for user in node.args[0].users  # type: ignore[union-attr]
        if is_call(user, llvq.quantize.default) and user.kwargs == node.kwargs
    ]
    return "its value is quantized more than once" if len(twins) > 1 else None


def scalar_scale(node: Node) -> str | None:
    """A static scale is one fp32 number, a weight: it is known before the program runs.

    The scale of a value may also come from the call that gives the value.
    """
    scale = node.kwargs.get("global_scale") if is_call(node, *QUANTIZES) else None
    if not isinstance(scale, Node):
        return None
    value = node.args[0]
    found = is_call(scale, operator.getitem) and is_call(value, operator.getitem)
    if found and scale.args[0] is value.args[0]:  # type: ignore[union-attr]
        return None
    known = scale.op == "get_attr" and dtype(scale) == torch.float32 and shape(scale) == ()
    return None if known else f"its static scale {scale.name} is no fp32 weight of one number"


def no_loose_pairs(node: Node) -> str | None:
    """No linear is left between dequantizes."""
    loose = is_call(node, aten.linear.default) and any(
        is_call(source, llvq.dequantize.default) for source in node.all_input_nodes
    )
    return "a dequantize still feeds a linear" if loose else None


def only_state_mutates(node: Node) -> str | None:
    """Nothing is mutated but pages and rings."""
    known = is_call(node, *WRITES)
    return "only pages and rings may be mutated" if writes_in_place(node) and not known else None


def has_implementation(node: Node) -> str | None:
    """Every llvq op says what the target runs it with."""
    is_llvq = getattr(node.target, "namespace", None) == "llvq"
    chosen = "impl" in provenance(node)
    return "no implementation was chosen" if is_llvq and not chosen else None


SPECS = (
    Spec(Level.CAPTURED, no_device),
    Spec(Level.CAPTURED, no_core_aten),
    Spec(Level.CANONICAL, one_spelling),
    Spec(Level.CANONICAL, attention_raised),
    Spec(Level.QUANTIZED, whole_blocks),
    Spec(Level.QUANTIZED, quantized_once),
    Spec(Level.QUANTIZED, scalar_scale),
    Spec(Level.FUSED, no_loose_pairs, needs_all=True),
    Spec(Level.CANONICAL, only_state_mutates),
    Spec(Level.LOWERED, has_implementation),
)


def verify(program: Program, *, limited: bool = False) -> None:
    """Raise SpecError at the first node that breaks a law of the program's level.

    `limited`: a bisect limit was reached, so that rewrites may be missing.
    """
    for stage, gm in program.graphs.items():
        verify_graph(stage, gm, program.level, limited=limited)
        _require_weights(program, gm)


def verify_graph(stage: str, gm: GraphModule, level: Level, *, limited: bool = False) -> None:
    """Raise SpecError at the first node of one graph that breaks a law of `level`."""
    gm.graph.lint()
    laws = [
        spec.law
        for spec in SPECS
        if spec.level <= level <= spec.until and not (limited and spec.needs_all)
    ]
    for node in gm.graph.nodes:
        for law in (*laws, stale):
            _require(law(node), node, stage, level)


def stale(node: Node) -> str | None:
    """Whether the recorded value of a call is not what the call gives."""
    if node.op != "call_function":
        return None
    said, found = (pytree.tree_map_only(torch.Tensor, _look, v) for v in (val(node), infer(node)))
    same = pytree.tree_leaves(said) == pytree.tree_leaves(found)
    return None if same else f"it is recorded as {said} but computes {found}"


def _look(value: torch.Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _require(reason: str | None, node: Node, stage: str, level: Level) -> None:
    if reason is not None:
        raise SpecError(
            f"graph {stage!r} is not legal at level {level.name.lower()}",
            where=where(node),
            because=f"{node.target}: {reason}",
            fix="run the compiler with --print-ir-after all and look at the pass before",
        )


def _require_weights(program: Program, gm: GraphModule) -> None:
    """Every weight a graph reads must have a record in the plan."""
    made = {name for record in program.weights.values() for name in record.targets}
    missing = sorted({str(n.target) for n in gm.graph.nodes if n.op == "get_attr"} - made)
    if missing:
        raise SpecError(
            f"{len(missing)} weights have no record in the weight plan",
            because=", ".join(missing[:8]),
            fix="the pass that introduced them must append a WeightRecord",
        )
