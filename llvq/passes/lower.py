"""lower: write down, at every llvq op, which implementation the target runs it with."""

from __future__ import annotations

from collections.abc import Mapping

from torch.fx import GraphModule, Node

from llvq.backends.base import Target
from llvq.errors import TargetError
from llvq.passes.books import Book
from llvq.program import where


def lower(graphs: Mapping[str, GraphModule], target: Target) -> Book:
    """Choose implementations; TargetError where the target has none."""
    book = Book("implementation")
    for gm in graphs.values():
        for node in gm.graph.nodes:
            if is_llvq(node):
                book.sites += 1
                _choose(node, target)
                book.hits += 1
    return book


def is_llvq(node: Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "namespace", None) == "llvq"


def _choose(node: Node, target: Target) -> None:
    name = node.target._schema.name.removeprefix("llvq::")  # type: ignore[union-attr]
    reason = target.supports(name)
    if reason is not None:
        raise TargetError(
            f"target {target.name} cannot run llvq.{name}",
            where=where(node),
            because=reason,
            fix="choose another target, or exclude the layer in the recipe",
        )
    custom = node.meta.setdefault("custom", {})
    custom["llvq"] = {**custom.get("llvq", {}), "impl": target.implementation}
