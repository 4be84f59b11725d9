"""A box run without its bytes: its graphs do what they say, and it fits into memory."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule

from llvq import graphs
from llvq.artifact import Box
from llvq.errors import ArtifactError
from llvq.graphs.liveness import peak
from llvq.graphs.on_meta import check_values, run_on_meta
from llvq.graphs.weight_groups import Group, Limits, group_all, weight_uses
from llvq.runtime.device import memory_of
from llvq.runtime.fit import located
from llvq.runtime.fold import attach_weights
from llvq.runtime.streamed_weights import families, streamed

SMALLER = "use a machine with more, or quantize for a smaller video: --height, --width"


@dataclass(frozen=True)
class Rehearsed:
    """A stage, the most bytes that live while it runs, and those of its inputs."""

    graph: GraphModule
    workspace: int
    inputs: Mapping[str, int]


def rehearse(box: Box, name: str, document: Any, device: str) -> Rehearsed:
    """Run a stage without its bytes. Raises ArtifactError."""
    try:
        graph = graphs.load(document, device=device)
        values = run_on_meta(graph)
        check_values(graph, values)
        workspace = peak(graph, values).nbytes
    except ArtifactError as error:
        raise located(box, error, f"stage {name}") from error
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    inputs = {node.name: node.meta["val"].nbytes for node in places}
    needed = workspace + sum(inputs.values())
    _check_memory(box, f"stage {name} does", needed, device, "besides its weights, ", SMALLER)
    return Rehearsed(graph, workspace, inputs)


def weights_to_stream(
    box: Box, stages: Mapping[str, Rehearsed], device: str, limits: Limits
) -> dict[str, tuple[Group, ...]]:
    """Groups of the weights of each stage that are copied when they are used.

    Raises ArtifactError: even so the box does not fit.
    """
    gms = {name: deepcopy(stage.graph) for name, stage in stages.items()}  # to be folded
    stored = {n: s for gm in gms.values() for n, s in graphs.weights(gm).items()}
    attach_weights(gms, {n: torch.empty(s.shape, dtype=s.dtype, device="meta")
                         for n, s in stored.items()})  # fmt: skip
    groups: dict[str, tuple[Group, ...]] = {}
    for names in families(stages):
        groups |= group_all({name: weight_uses(gms[name]) for name in names}, limits=limits)
    held = {n: s.nbytes for gm in gms.values() for n, s in graphs.weights(gm).items()}
    found = streamed(groups)
    needed = sum(held.values()) - found.host + found.slots
    needed += sum(
        {n: size for stage in stages.values() for n, size in stage.inputs.items()}.values()
    )
    needed += sum(max(stages[name].workspace for name in names) for names in families(stages))
    fix = f"choose fewer bits for pages and convolutions in the recipe, or {SMALLER}"
    _check_memory(box, "the box does", needed, device, "with its weights on the host, ", fix)
    return groups


def _check_memory(box: Box, what: str, needed: int, device: str, besides: str, fix: str) -> None:
    available = memory_of(torch.device(device))
    if needed > available:
        raise ArtifactError(
            f"{what} not fit into memory",
            where=str(box.path),
            because=f"it needs {needed / 2**30:.1f} GiB {besides}{device} has "
            f"{available / 2**30:.1f}",
            fix=fix,
        )
