"""How a pass puts nodes into a graph: values inferred, origin recorded, nothing copied."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from llvq.program import Program, val


class Builder:
    """Creates nodes in front of a root, with inferred values and a record of their origin.

    `root` is the node whose module and source line the new nodes inherit.
    """

    def __init__(self, program: Program, rule: str, root: Node, origin: tuple[Node, ...]) -> None:
        self.program, self.root, self.place = program, root, root
        self.graph: Graph = root.graph
        self.note = {"rule": rule, "from": [node.name for node in reversed(origin)]}

    def at(self, place: Node, *, like: Node | None = None) -> Builder:
        """The same, but that it inserts in front of `place`, with the module and line of `like`."""
        twin = copy.copy(self)
        twin.place, twin.root = place, like or self.root
        return twin

    def once(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """The call with these arguments, the first of them a node; made if it is not there yet.

        One that is further down moves up to where it is needed now.
        """
        for user in args[0].users:
            if is_call(user, target) and (user.args, user.kwargs) == (args, kwargs):
                if self.place < user:
                    self.place.prepend(user)
                return user
        return self.call(target, *args, **kwargs)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Insert a call; its value is inferred by running the op on meta tensors."""
        with self.graph.inserting_before(self.place):
            node = self.graph.call_function(target, args, kwargs)
        node.meta["val"] = infer(node)
        for key in ("nn_module_stack", "stack_trace"):
            if key in self.root.meta:
                node.meta[key] = self.root.meta[key]
        node.meta["custom"] = {"llvq": dict(self.note)}
        return node

    def parts(self, made: Node, count: int) -> tuple[Node, ...]:
        """The results of a call that gives several."""
        return tuple(self.once(operator.getitem, made, i) for i in range(count))

    def reshape(self, x: Node, shape: tuple[int, ...] | list[int]) -> Node:
        """`x` as `shape`; `x` itself, or what it was reshaped from, where that has the shape."""
        target = torch.ops.aten.reshape.default
        while tuple(val(x).shape) != tuple(shape) and x.target is target:
            x = x.args[0]  # type: ignore[assignment]
        return x if tuple(val(x).shape) == tuple(shape) else self.call(target, x, list(shape))

    def weight(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Node:
        """Read a weight of the plan by name."""
        gm = self.program.graph
        set_attribute(gm, name, torch.empty(shape, dtype=dtype, device="meta"))
        with self.graph.inserting_before(self.place):
            node = self.graph.get_attr(name)
        node.meta["val"] = torch.empty(shape, dtype=dtype, device="meta")
        return node


def infer(node: Node) -> Any:
    """The value of a call, by running it on the meta values of its arguments."""
    assert callable(node.target)
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), val)
    return node.target(*args, **kwargs)


def finish(gm: GraphModule) -> None:
    """Drop what nothing uses any more, and regenerate the code."""
    gm.graph.eliminate_dead_code()
    gm.delete_all_unused_submodules()
    gm.recompile()


def set_attribute(gm: GraphModule, path: str, value: torch.Tensor) -> None:
    """Give the module a buffer at a dotted path, making the modules on the way."""
    *parents, leaf = path.split(".")
    owner: torch.nn.Module = gm
    for part in parents:
        if not hasattr(owner, part):
            owner.add_module(part, torch.nn.Module())
        owner = getattr(owner, part)
    if not hasattr(owner, leaf):
        owner.register_buffer(leaf, value)


def shape(node: Node) -> tuple[int, ...]:
    return tuple(val(node).shape)


def dtype(node: Node) -> torch.dtype:
    return val(node).dtype


def is_call(node: Any, *targets: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets
