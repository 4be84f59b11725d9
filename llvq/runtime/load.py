"""Load a box: check it, build its graphs, attach its weights. Imports nothing of the compiler."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import llvq.dialect  # noqa: F401  (graphs call its ops)
from llvq import graphs
from llvq.artifact import Box, open_box
from llvq.artifact.records import check_records
from llvq.backends import cudnn_attention
from llvq.errors import ArtifactError
from llvq.runtime.attention_plans import plans_of
from llvq.runtime.box_kernels import bind_kernels, check_sources, needs_kernels
from llvq.runtime.cpu_convolutions import widen_on_cpu
from llvq.runtime.device import TARGET_DEVICES, exact_device, obstacles, require
from llvq.runtime.executable import DECODING, CompiledStage, Executable, Streamed
from llvq.runtime.fit import StageSpec, check_fit, located, misfit
from llvq.runtime.fold import attach_weights
from llvq.runtime.rehearsal import rehearse, weights_to_stream
from llvq.runtime.streamed_weights import (
    LIMITS,
    HostMemory,
    families,
    stream_weights,
    streamed,
)


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
    box = open_box(path, known_ops=op_table(), hash_weights=hash_weights, **options)
    check_records(box.manifest, where=str(box.path))
    check_fit(box)
    return box


def open_runnable(path: str | Path, *, hash_weights: bool = True) -> Box:
    """Open a box that this machine can run. Raises ArtifactError, KernelError (it has the kernels
    of another llvq)."""
    reasons = obstacles()
    box = open_checked(
        path,
        kinds=("box",),
        targets=TARGET_DEVICES.keys() - reasons.keys(),
        reasons=reasons,
        hash_weights=hash_weights,
    )
    check_sources(box)
    return box


def load(path: str | Path, *, hash_weights: bool = True) -> Executable:
    """Load a box for the device that its target names."""
    box = open_runnable(path, hash_weights=hash_weights)
    return executable(box, TARGET_DEVICES[box.manifest["target"]])


def executable(
    box: Box,
    device: str,
    *,
    stages: Collection[str] | None = None,
    documents: Mapping[str, Any] | None = None,
    specs: Mapping[str, StageSpec] | None = None,
    low_memory: bool = False,
) -> Executable:
    """Build the stages of an open box on a device: all, or those named.

    `documents`: graphs to build in place of those of the box, that read the same weights, and in
    `specs` what they take and give.
    `low_memory`: weights stay in the memory of the host, and are copied when they are used. Raises
    ArtifactError: graphs that do not do what they say, weights that are not theirs, more memory
    than the machine has; TargetError: the machine is of another kind; KernelError: a kernel that
    does not compute what its op says. No weight is read before all of it fits.
    """
    if needs_kernels(box):
        require(box.manifest["target"])
    facts, described = check_fit(box)
    specs = described | dict(specs or {})
    documents = {name: box.graph(name) for name in specs} | dict(documents or {})
    tensors = box.tensors(device=device)
    chosen = [name for name in specs if stages is None or name in stages]
    rehearsed = {name: rehearse(box, name, documents[name], device) for name in chosen}
    read = set().union(*(graphs.weights_used(document) for document in documents.values()))
    if differing := sorted(read ^ set(tensors)):
        raise misfit(box, [f"weight {name} is {_side(name, read)}" for name in differing])
    groups = weights_to_stream(box, rehearsed, device, LIMITS) if low_memory else {}
    moving = streamed(groups) if low_memory else None
    where = exact_device(device)
    built = {name: stage.graph for name, stage in rehearsed.items()}
    with torch.cuda.device(where) if where.type == "cuda" else nullcontext():
        if needs_kernels(box):
            bind_kernels(box, built, where)
            for plan in plans_of(built, {name: specs[name].inputs for name in built}):
                cudnn_attention.prepare(*plan, device=where)
        try:
            keep = None if moving is None else HostMemory(where, moving.names).keep
            attach_weights(built, tensors, keep)
        except ArtifactError as error:
            raise located(box, error, str(error.where)) from error
        for names in families(groups):
            stream_weights({name: built[name] for name in names}, groups, where)
        widen_on_cpu(built.values(), where)
        torch.cuda.empty_cache()  # what weights were before they were folded; nothing on a CPU
    made = {
        name: CompiledStage(name, gm, specs[name].inputs, tuple(specs[name].outputs))
        for name, gm in built.items()
    }
    return Executable(made, facts, where, streamed=moving)


def executable_on_two(
    box: Box, device: str, decode_device: str, *, stages: Collection[str], low_memory: bool = False
) -> Executable:
    """Like `executable`, with the stages that decode, and their weights, on a device of their own.

    Raises as `executable` does; see `check_decode_device` for which devices may decode.
    """
    decoding = [name for name in DECODING if name in stages]
    others = [name for name in stages if name not in decoding]
    model = executable(box, device, stages=others, low_memory=low_memory)
    decoder = executable(box, decode_device, stages=decoding, low_memory=low_memory)
    both = {**model.stages, **decoder.stages}
    return replace(
        model,
        stages=both,
        decode_device=decoder.device,
        streamed=_joined(model.streamed, decoder.streamed),
    )


def _joined(one: Streamed | None, two: Streamed | None) -> Streamed | None:
    if one is None or two is None:
        return None
    return Streamed(
        one.host + two.host,
        one.slots + two.slots,
        {**one.copied, **two.copied},
        (*one.names, *two.names),
    )


def _side(name: str, read: Collection[str]) -> str:
    return "in no file" if name in read else "read by no graph"
