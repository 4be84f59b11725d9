"""What a graph costs: multiply-accumulates of matrix products, and bytes that its calls move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.fx import GraphModule, Node

LINEARS = ("aten.linear.default", "llvq.nvfp4_linear.default", "llvq.nvfp4_linear_lowrank.default")
CONVOLUTIONS = ("aten.conv2d.default", "aten.conv3d.default")
ATTENTIONS = (
    "llvq.attention.default",
    "llvq.paged_attention.default",
    "llvq.paged_attention_kept.default",
)
# Calls whose first three results are an activation in NVFP4.
PRODUCERS = (
    "llvq.quantize.default",
    "llvq.quantize_lowrank.default",
    "llvq.norm_modulate_quantize.default",
    "llvq.gelu_quantize.default",
)
# Calls that gather rows of their first argument: they read as much as they return.
GATHERS = ("aten.embedding.default", "aten.index_select.default")
# Which arguments are page pools for all layers. A history that is partly kept in the model's dtype
# counts as pages.
POOLS = {
    "llvq.write_page.default": (0,),
    "llvq.write_kept.default": (0,),
    "llvq.paged_attention.default": (3,),
    "llvq.paged_attention_kept.default": (3,),
}
# What bytes hold: the parts of NVFP4 activations and weights, or anything else.
ACTIVATION = ("x codes", "x scales", "x global scale")
WEIGHT = ("w codes", "w scales", "w global scale")
PLAIN = "plain"


def macs(gm: GraphModule) -> int:
    """Multiply-accumulates of linears, convolutions and attention; 2 FLOP each."""
    return sum(node_macs(node) for node in gm.graph.nodes if node.op == "call_function")


def node_macs(node: Node) -> int:
    """Multiply-accumulates of one call; 0 for anything that is not a matrix product."""
    name = str(node.target)
    if name in LINEARS:
        features = _shape(node.args[0])[-1] * (2 if name in LINEARS[1:] else 1)
        rank = _shape(node.args[8])[1] if name == LINEARS[2] else 0
        return _numel(node) * (features + rank)
    if name == "llvq.lowrank_add.default":
        x, rank = _shape(node.args[1]), _shape(node.args[2])[0]
        return (torch.Size(x).numel() + _numel(node)) * rank
    if name == "llvq.quantize_lowrank.default":
        return torch.Size(_shape(node.args[0])).numel() * _shape(node.args[1])[0]
    if name in CONVOLUTIONS:
        weight = _shape(node.args[1])
        return _numel(node) * (torch.Size(weight).numel() // weight[0])
    if name in ATTENTIONS:
        keys = _shape(node.args[1])[1] * (1 + _pages(node))
        return 2 * _numel(node) * keys
    return 0


def node_bytes(node: Node, values: Mapping[Node, Any]) -> Counter[str]:
    """Bytes that one call reads and writes, each tensor once, by what they hold.

    `values` are those of `run_on_meta`. A call that returns views moves nothing. Of a page pool
    counts what the call touches: the page that it writes, or those of a full window.
    """
    moved: Counter[str] = Counter()
    results = list(_tensors(values[node]))
    sources = {_key(t) for source in node.all_input_nodes for t in _tensors(values[source])}
    if results and all(_key(t) in sources for t in results):
        return moved
    for place, tensor in enumerate(results):
        kinds = ACTIVATION if str(node.target) in PRODUCERS else ()
        moved[kinds[place] if place < len(kinds) else PLAIN] += _nbytes(tensor)
    for role, nbytes in _reads(node, values):
        moved[role] += nbytes
    return moved


def _reads(node: Node, values: Mapping[Node, Any]) -> Iterator[tuple[str, int]]:
    name = str(node.target)
    roles = ACTIVATION + WEIGHT if name in LINEARS[1:] else ()
    for place, argument in enumerate(node.args):
        role = roles[place] if place < len(roles) else PLAIN
        for source in _nodes(argument):
            for tensor in _tensors(values[source]):
                yield role, _read(node, place, tensor, values)


def _read(node: Node, place: int, tensor: torch.Tensor, values: Mapping[Node, Any]) -> int:
    """Bytes of one argument that a call touches."""
    name = str(node.target)
    if name in GATHERS and place == 0:
        return sum(_nbytes(result) for result in _tensors(values[node]))
    if place not in POOLS.get(name, ()):
        return _nbytes(tensor)
    layers, _, slots, *_ = tensor.shape
    chunks = _pages(node) if "attention" in name else 1
    return tensor.nbytes // (layers * slots) * chunks


def _nodes(argument: Any) -> Iterator[Node]:
    return (leaf for leaf in pytree.tree_leaves(argument) if isinstance(leaf, Node))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _nbytes(tensor: torch.Tensor) -> int:
    """What is behind an expanded tensor counts once."""
    held = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(size for size, stride in held if stride) * tensor.itemsize


def _pages(node: Node) -> int:
    """Pages of history at the full window; none for attention without a cache."""
    if "paged" not in str(node.target):
        return 0
    table: Any = node.args[4]
    return int(table.meta["val"].shape[0])


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _numel(node: Node) -> int:
    return int(node.meta["val"].numel())
