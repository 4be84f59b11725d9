"""What a graph costs: multiply-accumulates of its matrix products, from recorded values alone."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten
LINEARS = ("aten.linear.default", "llvq.nvfp4_linear.default", "llvq.nvfp4_linear_lowrank.default")
CONVOLUTIONS = ("aten.conv2d.default", "aten.conv3d.default")
ATTENTIONS = (
    "llvq.attention.default",
    "llvq.paged_attention.default",
    "llvq.paged_attention_kept.default",
)


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
