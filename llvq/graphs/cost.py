"""What a graph costs: multiply-accumulates of matrix products, and bytes that its calls move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.fx import GraphModule, Node

# Linears, and how many channels an element of their first argument has: a byte of codes has two.
LINEARS = {
    "aten.linear.default": 1,
    "llvq.fp8_linear.default": 1,
    "llvq.nvfp4_linear.default": 2,
    "llvq.nvfp4_linear_gate_residual.default": 2,
    "llvq.nvfp4_linear_gelu.default": 2,
    "llvq.nvfp4_linear_gelu_quantize.default": 2,
    "llvq.nvfp4_linear_lowrank.default": 2,
    "llvq.nvfp4_linear_swizzled.default": 2,
    "llvq.nvfp4_linear_w4a16.default": 1,
}
# Convolutions, and which argument is the weight; its first dimension is that of the features.
CONVOLUTIONS = {
    "aten.conv2d.default": 1,
    "aten.conv3d.default": 1,
    "llvq.conv3d_fp8.default": 2,
    "llvq.ring_conv.default": 1,
}
# Weights [2, 2, N, 2, 2, C], of which a pixel takes one of the first four.
SUBPIXEL_CONVOLUTION = "llvq.upsample_conv.default"
# Attention, and which argument is the page table, if there is one.
ATTENTIONS = {
    "llvq.attention.default": None,
    "llvq.attention_fp8.default": None,
    "llvq.attention_quantize_fp8.default": None,
    "llvq.paged_attention.default": 4,
    "llvq.paged_attention_fp4.default": 4,
    "llvq.paged_attention_fp8.default": 4,
    "llvq.paged_attention_quantize_fp8.default": 4,
    "llvq.paged_attention_kept.default": 4,
    "llvq.window_attention_quantize_fp8.default": None,
}
# Calls that gather rows of their first argument: they read as much as they return.
GATHERS = ("aten.embedding.default", "aten.index_select.default")
# They write frames, their second argument, into a part of a ring, their first.
RING_WRITES = ("llvq.ring_write.default", "llvq.ring_write_normed.default")
# They read frames of a ring, their first argument, that other frames may share: which argument says
# how many, and which is the weight, whose second dimension is how many each frame is made of.
RING_READS = {"llvq.ring_conv.default": (10, 1), "llvq.upsample_conv.default": (9, None)}
# Which argument is the page pool of all layers. A history that is partly kept in the model's dtype
# counts as pages.
POOLS = {
    "llvq.write_page.default": 0,
    "llvq.write_kept.default": 0,
    "llvq.paged_attention.default": 3,
    "llvq.paged_attention_fp4.default": 3,
    "llvq.paged_attention_fp8.default": 3,
    "llvq.paged_attention_quantize_fp8.default": 3,
    "llvq.paged_attention_kept.default": 3,
}


def macs(gm: GraphModule) -> int:
    """Multiply-accumulates of linears, convolutions and attention; 2 FLOP each."""
    return sum(node_macs(node) for node in gm.graph.nodes if node.op == "call_function")


def node_macs(node: Node) -> int:
    """Multiply-accumulates of one call; 0 for anything that is not a matrix product."""
    name = str(node.target)
    if name in LINEARS:
        features = _shape(node.args[0])[-1] * LINEARS[name]
        rank = _shape(node.args[8])[1] if "lowrank" in name else 0
        return _outputs(node) * (features + rank)
    if name == "llvq.lowrank_add.default":
        x, rank = _shape(node.args[1]), _shape(node.args[2])[0]
        return (torch.Size(x).numel() + _numel(node)) * rank
    if name == "llvq.quantize_lowrank.default":
        return torch.Size(_shape(node.args[0])).numel() * _shape(node.args[1])[0]
    if name in CONVOLUTIONS:
        weight = _shape(node.args[CONVOLUTIONS[name]])
        return _numel(node) * prod(weight[1:])
    if name == SUBPIXEL_CONVOLUTION:
        return _numel(node) * prod(_shape(node.args[1])[3:])
    if name in ATTENTIONS:
        keys = _shape(node.args[1])[1] * (1 + _pages(node))
        return 2 * torch.Size(_shape(node.args[0])).numel() * keys
    return 0


def node_bytes(node: Node, values: Mapping[Node, Any]) -> int:
    """Bytes that one call reads and writes, each tensor once.

    `values` are those of `run_on_meta`. A call that returns views moves nothing. Of a page pool
    counts what the call touches: the page that it writes, or those of a full window.
    """
    results = list(_tensors(values[node]))
    sources = {_key(t) for source in node.all_input_nodes for t in _tensors(values[source])}
    if results and all(_key(result) in sources for result in results):
        return 0
    written = sum(_nbytes(result) for result in results)
    if str(node.target) in GATHERS:
        return 2 * written
    read = (
        _read(node, place, tensor)
        for place, argument in enumerate(node.args)
        for source in _nodes(argument)
        for tensor in _tensors(values[source])
    )
    return written + sum(read)


def _read(node: Node, place: int, tensor: torch.Tensor) -> int:
    """Bytes of one argument that a call touches."""
    name = str(node.target)
    if name in RING_WRITES and place == 0:
        return prod(_shape(node.args[1])) * tensor.itemsize
    if name in RING_READS and place == 0:
        count, weight = RING_READS[name]
        depth = 1 if weight is None else _shape(node.args[weight])[1]
        frames: Any = node.args[count]
        return _nbytes(tensor[0]) * (frames + depth - 1)
    if POOLS.get(name) != place:
        return _nbytes(tensor)
    layers, _, slots, *_ = tensor.shape
    chunks = _pages(node) if name in ATTENTIONS else 1
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
    place = ATTENTIONS[str(node.target)]
    if place is None:
        return 0
    table: Any = node.args[place]
    return int(table.meta["val"].shape[0])


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _outputs(linear: Node) -> int:
    """How many sums a linear makes; what one with a GELU returns is made of them."""
    if isinstance(linear.meta["val"], torch.Tensor):
        return _numel(linear)
    x, w = (_shape(linear.args[place]) for place in (0, 3))
    return prod(x[:-1]) * w[0]


def _numel(node: Node) -> int:
    return int(node.meta["val"].numel())
