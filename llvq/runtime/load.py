"""Load a box: check it, build its graphs, attach its weights. Imports nothing of the compiler."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

import llvq.dialect  # noqa: F401  (graphs call its ops)
from llvq import graphs
from llvq.artifact import Box, open_box
from llvq.runtime.contract import InputSpec
from llvq.runtime.executable import CompiledStage, Executable, RunFacts

TARGET_DEVICES = {"cpu": "cpu"}


def op_table(names: Collection[str] | None = None) -> dict[str, str]:
    """Schemas of ops, by name: all that are installed, or those named.

    For ATen ops only the name counts: PyTorch keeps their meaning, but not the wording of their
    schemas, from one version to the next.
    """
    installed = graphs.installed_schemas()
    chosen = installed if names is None else {name: installed[name] for name in names}
    return {name: schema if name.startswith("llvq.") else "aten" for name, schema in chosen.items()}


def open_checked(path: str | Path, *, hash_weights: bool = True, **options: Any) -> Box:
    """Open a box after all checks. Raises ArtifactError; executes nothing of it."""
    return open_box(path, known_ops=op_table(), hash_weights=hash_weights, **options)


def load(path: str | Path, *, hash_weights: bool = True) -> Executable:
    """Load a box for the device that its target names."""
    box = open_checked(
        path, kinds=("box",), targets=tuple(TARGET_DEVICES), hash_weights=hash_weights
    )
    return executable(box, TARGET_DEVICES[box.manifest["target"]])


def executable(box: Box, device: str) -> Executable:
    """Build every stage of an open box on a device."""
    tensors = box.tensors(device=device)
    shared: dict[str, torch.Tensor] = {}
    stages = {
        name: _stage(box, name, entry, tensors, shared, device)
        for name, entry in box.manifest["stages"].items()
    }
    return Executable(stages, RunFacts.from_dict(box.manifest["state"]), torch.device(device))


def _stage(
    box: Box,
    name: str,
    entry: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    shared: dict[str, torch.Tensor],
    device: str,
) -> CompiledStage:
    """One stage; a weight that several stages read is loaded once."""
    graph = graphs.load(box.graph(name), device=device)
    wanted = graphs.weights(graph)
    for weight in wanted:
        if weight not in shared:
            shared[weight] = tensors[weight]
    graphs.attach(graph, {weight: shared[weight] for weight in wanted})
    inputs = tuple(InputSpec.from_dict(spec) for spec in box.manifest["contract"][name])
    return CompiledStage(name, graph, inputs, tuple(entry["outputs"]))
