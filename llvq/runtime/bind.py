"""Bind the llvq ops of a loaded graph to what runs them: one Python call, no dispatcher, no schema.

The graph stays data until here; which implementation a node has is in the graph.
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from llvq.backends.base import REFERENCE
from llvq.backends.implementations import Implementation, find_implementation
from llvq.backends.triton.specialize import Launcher


class BoundOp:
    """An llvq op with its implementation and what launches its kernels; a target of FX calls."""

    def __init__(self, op: str, impl: str, function: Implementation, launch: Launcher) -> None:
        self.op, self.impl, self.function, self.launch = op, impl, function, launch
        # FX names a call, and the global that the generated code finds it by, after these.
        self.__name__ = self.__qualname__ = op
        self.__module__ = __name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.launch, *args, **kwargs)

    def __repr__(self) -> str:
        return f"llvq.{self.op}[{self.impl}]"


def bind(gm: GraphModule, launch: Launcher) -> None:
    """Give every llvq node of a lowered graph its implementation as target.

    What runs as `reference` stays the custom op. Raises KernelError: there is no such
    implementation.
    """
    bound: dict[tuple[str, str], BoundOp] = {}
    for node in gm.graph.nodes:
        op, impl = op_of(node), implementation_of(node)
        if op is None or impl == REFERENCE:
            continue
        if (op, impl) not in bound:
            bound[op, impl] = BoundOp(op, impl, find_implementation(impl, op), launch)
        node.target = bound[op, impl]
    gm.recompile()


def op_of(node: Node) -> str | None:
    """The name of the llvq op that a node calls, bound or not; None for any other node."""
    if isinstance(node.target, BoundOp):
        return node.target.op
    if getattr(node.target, "namespace", None) != "llvq":
        return None
    return str(node.target._schema.name).removeprefix("llvq::")  # type: ignore[union-attr]


def implementation_of(node: Node) -> str:
    """What the graph says that an llvq node runs with."""
    custom = node.meta.get("custom") or {}
    return str((custom.get("llvq") or {}).get("impl", REFERENCE))
