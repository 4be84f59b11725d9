"""Weights of loaded graphs: read once, computed with once, and held in no more than one form.

What a graph computes from weights alone with an llvq op (an NVFP4 weight widened to FP8) is done
when it is loaded: the result becomes a weight, shared by every graph that computes the same, and
what nothing else reads is given back at once. So memory holds all weights in their last form, and
of one of them the form before.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from llvq import graphs
from llvq.errors import ArtifactError
from llvq.runtime.bind import op_of
from llvq.sources import TensorSpec


def attach_weights(
    gms: Mapping[str, GraphModule],
    tensors: Mapping[str, Tensor],
    keep: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Give graphs, by the names of their stages, their weights out of `tensors`, which reads one
    whenever it is asked. `keep` takes each by name, in its last form, and gives what is held.

    Raises ArtifactError at a stage: a weight that is not there, or not what the graph says.
    """
    held: dict[str, Tensor] = {}
    kept = keep or _as_it_is
    for name, gm in gms.items():
        with _located(name):
            _fold(gm, foldable(gm), _Reader(tensors, graphs.weights(gm)), held, kept)
    for name, gm in gms.items():
        wanted = graphs.weights(gm)
        for weight in wanted.keys() - held.keys():
            held[weight] = kept(weight, tensors[weight])
        with _located(name):
            graphs.attach(gm, {weight: held[weight] for weight in wanted})


def _as_it_is(name: str, tensor: Tensor) -> Tensor:
    return tensor


@contextmanager
def _located(stage: str) -> Iterator[None]:
    try:
        yield
    except ArtifactError as error:
        error.where = f"stage {stage}"
        raise


def foldable(gm: GraphModule) -> dict[Node, str]:
    """Nodes that an llvq op computes from weights alone, and what follows from them alone.

    Each has a name that is the same for the same computation, in whatever graph.
    """
    names: dict[Node, str] = {}
    for node in gm.graph.nodes:
        if node.op != "call_function" or not node.all_input_nodes:
            continue
        inputs = node.all_input_nodes
        known = all(source.op == "get_attr" or source in names for source in inputs)
        if known and (op_of(node) is not None or any(source in names for source in inputs)):
            names[node] = _name(node, names)
    return names


def _name(node: Node, names: Mapping[Node, str]) -> str:
    """`folded_<digest>`, of the op and its arguments."""
    named = torch.fx.node.map_arg(
        (node.args, node.kwargs), lambda source: names.get(source, str(source.target))
    )
    text = repr((op_of(node) or str(node.target), named))
    return f"folded_{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class _Reader:
    """Reads weights of one graph; each must be what the graph says."""

    def __init__(self, tensors: Mapping[str, Tensor], specs: Mapping[str, TensorSpec]) -> None:
        self.tensors, self.specs = tensors, specs

    def __call__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        graphs.check_weights({name: self.specs[name]}, {name: tensor})
        return tensor


def _fold(
    gm: GraphModule,
    plan: dict[Node, str],
    read: _Reader,
    held: dict[str, Tensor],
    keep: Callable[[str, Tensor], Tensor],
) -> None:
    """Put results in place of the nodes of a plan, computing those that are not `held` yet."""
    for base, leaves in leaves_of(plan).items():
        if any(plan[leaf] not in held for leaf in leaves):
            with torch.no_grad():
                value = _evaluate(base, read)
            for leaf in leaves:
                result = value if leaf is base else value[leaf.args[1]]
                held[plan[leaf]] = keep(plan[leaf], result)
                del result
            del value
        for leaf in leaves:
            _replace(gm, leaf, plan[leaf])
    unread = [*reversed(plan), *(n for n in gm.graph.nodes if n.op == "get_attr")]
    for node in unread:
        if not node.users:
            gm.graph.erase_node(node)
    gm.recompile()


def leaves_of(plan: Mapping[Node, str]) -> dict[Node, list[Node]]:
    """Tensors of a plan that the rest of the graph reads, by the call that computes them."""
    found: dict[Node, list[Node]] = {}
    for node in plan:
        if isinstance(node.meta["val"], Tensor) and any(user not in plan for user in node.users):
            base = node.args[0] if node.target is operator.getitem else node
            assert isinstance(base, Node)
            found.setdefault(base, []).append(node)
    return found


def _evaluate(node: Node, read: _Reader) -> Any:
    if node.op == "get_attr":
        return read(str(node.target))
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), partial(_evaluate, read=read))
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _replace(gm: GraphModule, leaf: Node, name: str) -> None:
    gm.register_buffer(name, leaf.meta["val"])
    with gm.graph.inserting_before(leaf):
        weight = gm.graph.get_attr(name)
    weight.meta = leaf.meta
    leaf.replace_all_uses_with(weight)
