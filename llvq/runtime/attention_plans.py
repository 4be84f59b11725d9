"""Plans of cuDNN, made when a box is loaded: a chunk must not wait for one.

A plan is for one length of the window, so there is one for each length of history that a stage
takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.fx import GraphModule, Node

from llvq.runtime.bind import implementation_of, op_of
from llvq.runtime.contract import InputSpec

OP, IMPLEMENTATION = "paged_attention_quantize_fp8", "triton:cudnn"

# Tokens, keys, heads, head dim, scale.
Shape = tuple[int, int, int, int, float]


def plans_of(
    gms: Mapping[str, GraphModule], inputs: Mapping[str, Sequence[InputSpec]]
) -> list[Shape]:
    """Every plan that attention over pages will ask for, once each, the shortest window first."""
    shapes: dict[Shape, None] = {}
    for name, gm in gms.items():
        lengths = next((s.allowed for s in inputs[name] if s.name == "page_table"), ())
        for node in gm.graph.nodes:
            if (op_of(node), implementation_of(node)) == (OP, IMPLEMENTATION):
                shapes |= dict.fromkeys(_shape(node, pages) for pages in lengths)
    return sorted(shapes)


def _shape(node: Node, pages: int) -> Shape:
    query, scale = node.args[0], node.args[7]
    assert isinstance(query, Node)
    _, tokens, heads, dim = query.meta["val"].shape
    factor = dim**-0.5 if scale is None else scale
    return tokens, (pages + 1) * tokens, heads, dim, float(factor)  # type: ignore[arg-type]
