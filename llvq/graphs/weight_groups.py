"""Weights of a graph in groups, in the order in which it reads them, to be copied ahead of use.

A few slots of memory take turns: a group lies in the slot of its place modulo SLOTS from before its
first reader to after its last, and the next group of that slot may come then. What does not go
round like this stays: small weights, very large ones, and those that are read again much later.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.fx import GraphModule

from llvq.graphs.on_meta import Call, run_on_meta

SLOTS = 3
# Where weights begin within a slot: what kernels may assume of a pointer, and more.
ALIGNMENT = 256


@dataclass(frozen=True)
class Limits:
    """`sizes` are bytes that a group may have, of which the best is chosen; a larger weight stays.
    So does one below `smallest`, since a copy of less takes longer than it is worth."""

    sizes: tuple[int, ...] = (2**25, 2**26, 3 * 2**25, 2**27)
    smallest: int = 2**18


@dataclass(frozen=True)
class WeightUse:
    """A weight, and the places of the nodes that first and last read it or a view of it."""

    name: str
    nbytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Group:
    """Weights that are copied together, one after the other. Groups do not begin or end earlier
    than those before them."""

    weights: tuple[WeightUse, ...]
    first: int
    last: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(weight.name for weight in self.weights)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each weight begins."""
        places = [0]
        for weight in self.weights[:-1]:
            places.append(places[-1] + aligned(weight.nbytes))
        return tuple(places)

    @property
    def nbytes(self) -> int:
        return sum(aligned(weight.nbytes) for weight in self.weights)


def aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def weight_uses(gm: GraphModule, call: Call | None = None) -> list[WeightUse]:
    """Every weight that a graph reads, by its first use; one that it returns has no last.

    `call` runs calls on `meta`, as for `run_on_meta`. Raises ArtifactError.
    """
    nodes, values = list(gm.graph.nodes), run_on_meta(gm, call=call)
    owner = {_key(values[node]): str(node.target) for node in nodes if node.op == "get_attr"}
    places: dict[str, list[int]] = {}
    for place, node in enumerate(nodes):
        for source in node.all_input_nodes:
            for name in {owner[key] for key in map(_key, _tensors(values[source])) if key in owner}:
                at = len(nodes) * 2 if node.op == "output" else place
                places.setdefault(name, []).append(at)
    sizes = {str(node.target): values[node].nbytes for node in nodes if node.op == "get_attr"}
    uses = [WeightUse(name, sizes[name], min(at), max(at)) for name, at in places.items()]
    return sorted(uses, key=lambda use: use.first)


def group_all(
    uses: Mapping[str, Sequence[WeightUse]],
    *,
    stay: Collection[str] = (),
    limits: Limits | None = None,
) -> dict[str, tuple[Group, ...]]:
    """Groups of each of several graphs that share their slots: a weight that cannot go round in one
    of them stays for all, as do those of `stay`. They take the least memory that they can: none
    where going round would save nothing."""
    chosen = limits or Limits()
    best: dict[str, tuple[Group, ...]] = {name: () for name in uses}
    saved = 0
    for size in chosen.sizes:
        made = _group_all(uses, set(stay), chosen.smallest, size)
        moving = {w.name: w.nbytes for each in made.values() for g in each for w in g.weights}
        saving = sum(moving.values()) - SLOTS * slot_bytes(made)
        if saving > saved:
            best, saved = made, saving
    return best


def _group_all(
    uses: Mapping[str, Sequence[WeightUse]], staying: set[str], smallest: int, size: int
) -> dict[str, tuple[Group, ...]]:
    while True:
        made = {name: _groups(each, staying, smallest, size) for name, each in uses.items()}
        late = {name for groups in made.values() for name in _late(groups)}
        if not late:
            return made
        staying |= late


def slot_bytes(groups: Mapping[str, Sequence[Group]]) -> int:
    """What each slot must hold."""
    return max((group.nbytes for each in groups.values() for group in each), default=0)


def _groups(
    uses: Sequence[WeightUse], stay: Collection[str], smallest: int, size: int
) -> tuple[Group, ...]:
    parts: list[list[WeightUse]] = []
    filled = 0
    for use in uses:
        if use.name in stay or not smallest <= use.nbytes <= size:
            continue
        if not parts or filled + aligned(use.nbytes) > size:
            parts.append([])
            filled = 0
        parts[-1].append(use)
        filled += aligned(use.nbytes)
    made: list[Group] = []
    for part in parts:
        last = max(use.last for use in part)
        made.append(Group(tuple(part), part[0].first, max(last, made[-1].last if made else 0)))
    return tuple(made)


def _late(groups: Sequence[Group]) -> Iterator[str]:
    """Weights that are still read when their slot is needed again: the first group of them alone,
    since a group lasts at least as long as those before it."""
    for group, later in zip(groups, groups[SLOTS:], strict=False):
        if group.last >= later.first:
            yield from (use.name for use in group.weights if use.last >= later.first)
            return


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
