"""How much memory the values of a graph take while it runs, found without running it.

The graph is run on `meta` tensors, which have storages but no bytes, so that a view is a view
exactly where the real call gives one. A storage lives from the call that makes it to the last call
that reads one of its views, as it does in the Python that FX generates. What a kernel allocates
for itself while it runs is not seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.fx import GraphModule, Node

from llvq.graphs.on_meta import run_on_meta


@dataclass(frozen=True)
class Peak:
    """The most bytes that are live at once, and the node during which they are."""

    nbytes: int
    node: str


@dataclass
class _Lifetime:
    nbytes: int
    born: int
    last: int


def peak(gm: GraphModule, values: Mapping[Node, Any] | None = None) -> Peak:
    """Inputs and weights do not count: their owner holds them. Outputs live to the end.

    `values` are those of `run_on_meta`, where the caller has them. Raises ArtifactError.
    """
    nodes, values = list(gm.graph.nodes), run_on_meta(gm) if values is None else values
    held = {_key(t) for node in nodes if node.op in ("placeholder", "get_attr")
            for t in _tensors(values[node])}  # fmt: skip
    lifetimes: dict[int, _Lifetime] = {}
    for index, node in enumerate(nodes):
        read = [t for source in node.all_input_nodes for t in _tensors(values[source])]
        for tensor in [*read, *_tensors(values[node])]:
            if _key(tensor) not in held:
                nbytes = tensor.untyped_storage().nbytes()
                lifetimes.setdefault(_key(tensor), _Lifetime(nbytes, index, index)).last = index
    live = list(accumulate(_changes(lifetimes.values(), len(nodes))))
    top = max(range(len(nodes)), key=live.__getitem__)
    return Peak(live[top], nodes[top].name)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _changes(lifetimes: Collection[_Lifetime], count: int) -> list[int]:
    """By how many bytes the live total changes when each node begins."""
    changes = [0] * (count + 1)
    for life in lifetimes:
        changes[life.born] += life.nbytes
        changes[life.last + 1] -= life.nbytes
    return changes[:count]
