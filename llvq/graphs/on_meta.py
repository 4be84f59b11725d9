"""Run a graph without its bytes: every operator is called, on tensors that only have a shape.

So a graph of unknown origin is proved to do what it says before anything is allocated for it: its
operators take the arguments they are given, and every value has the dtype and shape recorded.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.fx import GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode

from llvq.graphs.record import bad_graph

# What PyTorch raises for arguments that do not fit an operator.
MISUSE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
_MAX_INTEGER = 2**63
_META = torch.device("meta")
_DEVICES = ("Device", "Optional[Device]")
# Runs the call of a node on the values of its arguments.
Call = Callable[[Node, tuple[Any, ...], dict[str, Any]], Any]


def run_on_meta(
    gm: GraphModule, *, shapes: Mapping[str, Sequence[int]] | None = None, call: Call | None = None
) -> Mapping[Node, Any]:
    """The value of every node, computed on `meta` from the recorded values of the inputs.

    `shapes`: of inputs, by node name, that are to have another than the recorded one. `call` runs
    the calls in place of their operators.
    Raises ArtifactError naming the node: an operator that refuses its arguments, or needs data.
    """
    values: dict[Node, Any] = {}
    with torch.inference_mode(), _OnMeta():
        for node in gm.graph.nodes:
            values[node] = _value(node, values, shapes or {}, call or checked_call)
    return values


def check_values(gm: GraphModule, values: Mapping[Node, Any]) -> None:
    """Every value has the dtype and shape that its node records. Raises ArtifactError."""
    for node, value in values.items():
        found, recorded = layout(value), layout(node.meta.get("val"))
        if node.op != "output" and found != recorded:
            raise bad_graph(f"it gives {found}, and is recorded as {recorded}", where=_name(node))


class _OnMeta(TorchDispatchMode):
    """Whatever device a call names, or takes by default, is `meta`."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        names = [argument.name for argument in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        devices = [a.name for a in func._schema.arguments if str(a.type) in _DEVICES]
        return func(**{**given, **dict.fromkeys(devices, _META)})


def _value(
    node: Node, values: Mapping[Node, Any], shapes: Mapping[str, Sequence[int]], call: Call
) -> Any:
    if node.op in ("placeholder", "get_attr"):
        value = pytree.tree_map_only(torch.Tensor, _empty, node.meta["val"])
        return value.new_empty(shapes[node.name]) if node.name in shapes else value
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    return args[0] if node.op == "output" else call(node, args, kwargs)


def checked_call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return _call(node.target, args, kwargs)
    except MISUSE as error:
        first = (str(error).splitlines() or [""])[0]
        raise bad_graph(
            f"{node.target} cannot be called like this: {type(error).__name__} {first[:200]}",
            where=_name(node),
        ) from error


def _call(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Python's own operators are for sizes: on text or lists `2 * x` could fill any memory."""
    if isinstance(target, torch._ops.OpOverload):
        return target(*args, **kwargs)
    if target is operator.getitem:
        if not isinstance(args[0], list | tuple) or not isinstance(args[1], int):
            raise TypeError("it takes one of several results")
    elif not all(isinstance(argument, int | float) for argument in args):
        raise TypeError("it takes numbers")
    result = target(*args, **kwargs)
    if isinstance(result, int) and abs(result) >= _MAX_INTEGER:
        raise OverflowError("the result has more than 64 bits")
    return result


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with a storage of its own, of the shape and dtype given."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def layout(value: Any) -> Any:
    """What is compared of two values: dtype and shape of tensors, anything else as it is."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, list | tuple):
        return [layout(item) for item in value]
    return value


def _name(node: Node) -> str:
    return f"node {node.name}"
