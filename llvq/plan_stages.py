"""Lowered stages as they run on a target: their weights in the form that they are held in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from llvq import graphs
from llvq.backends.base import TRITON, Target, is_compiled
from llvq.backends.implementations import find_implementation, table
from llvq.compiler import Stage
from llvq.errors import KernelError
from llvq.graphs.allocations import Allocations, allocations
from llvq.graphs.on_meta import checked_call
from llvq.graphs.weight_groups import WeightUse, weight_uses
from llvq.runtime.bind import implementation_of, op_of
from llvq.runtime.contract import InputSpec
from llvq.runtime.fold import attach_weights, foldable, leaves_of
from llvq.sources import TensorSpec


@dataclass(frozen=True)
class Fold:
    """What `op` computes at load: bytes of the weights that it reads, their names, and the names of
    what it gives, with their places among its results."""

    op: str
    nbytes: int
    sources: tuple[str, ...]
    results: Mapping[str, int]


@dataclass(frozen=True)
class RunningStage:
    """`weights` and `folds` are in the order in which they are loaded. A weight that `folds` gives
    is in `weights` as well."""

    graph: GraphModule
    inputs: tuple[InputSpec, ...]
    weights: Mapping[str, TensorSpec]
    folds: tuple[Fold, ...]
    allocations: Allocations
    uses: tuple[WeightUse, ...]

    @property
    def results(self) -> tuple[int, ...]:
        """Bytes of each tensor that it returns."""
        *_, output = self.graph.graph.nodes
        return tuple(node.meta["val"].nbytes for node in output.all_input_nodes)


def running_stages(stages: Mapping[str, Stage], target: Target) -> dict[str, RunningStage]:
    """Stages that were lowered for a target, as a loader builds them."""
    gms = {n: graphs.load(graphs.dump(s.graph), device="meta") for n, s in stages.items()}
    folds = {name: tuple(_folds(gm)) for name, gm in gms.items()}
    specs = {n: s for gm in gms.values() for n, s in graphs.weights(gm).items()}
    attach_weights(gms, {n: torch.empty(s.shape, dtype=s.dtype, device="meta")
                         for n, s in specs.items()})  # fmt: skip
    call = launching(target)
    return {
        name: RunningStage(
            gm,
            stages[name].inputs,
            graphs.weights(gm),
            folds[name],
            allocations(gm, call),
            tuple(weight_uses(gm)),
        )
        for name, gm in gms.items()
    }


def _folds(gm: GraphModule) -> Iterator[Fold]:
    """Of a lowered graph whose weights are as they are stored."""
    plan = foldable(gm)
    for base, results in leaves_of(plan).items():
        sources = tuple(_sources(base))
        yield Fold(
            op_of(base) or "",
            sum(source.meta["val"].nbytes for source in sources),
            tuple(str(source.target) for source in sources),
            {plan[leaf]: 0 if leaf is base else leaf.args[1] for leaf in results},  # type: ignore[misc]
        )


def _sources(node: Node) -> Iterator[Node]:
    """The stored weights that a node is computed from, each once."""
    waiting, seen = [node], set[Node]()
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                waiting.append(source)
                if source.op == "get_attr":
                    yield source


def launching(target: Target) -> Any:
    """What runs calls of a lowered graph on `meta`: kernels of ours with all that their launches
    allocate, where Triton is there to tell; None where ops run as they are."""
    if target.chip is None:
        return None
    try:
        table(TRITON)
    except KernelError:
        return None
    return _launch


def _launch(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    op, impl = op_of(node), implementation_of(node)
    if op is None or not is_compiled(impl):
        return checked_call(node, args, kwargs)
    return find_implementation(impl, op)(_launches_nothing, *args, **kwargs)


def _launches_nothing(*_: Any, **__: Any) -> None:
    """Stands in for a launcher."""
