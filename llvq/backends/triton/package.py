"""Everything about kernels that goes into a box: binaries, their table, and calls to check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import triton
from torch import Tensor
from torch.fx import GraphModule

from llvq.artifact import BoxWriter
from llvq.artifact.kernels import Check, Entry, KernelTable, kernel_file, table_file
from llvq.backends.base import is_compiled
from llvq.backends.implementations import find_implementation
from llvq.backends.torch_ops import Reference
from llvq.backends.triton.build_all import Progress, build_all
from llvq.backends.triton.collect import Call, Launches, collect, launched_by
from llvq.backends.triton.sources import sources_digest
from llvq.runtime.contract import InputSpec

# Arguments whose tensors have a leading dimension of layers.
POOLS = ("pages", "kept")
# The most frames before its own that a call on a ring reads.
CONTEXT = 2


def write_kernels(
    writer: BoxWriter,
    stages: Mapping[str, GraphModule],
    inputs: Mapping[str, Sequence[InputSpec]],
    chip: str,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compile every kernel that lowered graphs launch into a box; gives what its manifest says.

    Raises TargetError naming op, node and kernel, and the reason that it cannot be compiled.
    """
    found = collect(stages, inputs)
    checks = [_check(call, found) for call in tuple(found.calls) if not _is_reference(call)]
    binaries = build_all(found, chip, progress)
    for binary in binaries:
        writer.add_bytes(kernel_file(chip, binary.name), binary.cubin)
    entries = {b.name: Entry(b.entry, b.warps, b.shared, b.scratch) for b in binaries}
    writer.add_json(table_file(chip), KernelTable(entries, checks).to_dict())
    made_with = {"triton": triton.__version__, "sources": sources_digest()}
    return {"chip": chip, "count": len(binaries), **made_with}


def _is_reference(call: Call) -> bool:
    """Whether there is nothing to hold a call against: it runs what it would be held against."""
    return isinstance(find_implementation(call.impl, call.op), Reference)


def _check(call: Call, found: Launches) -> Check:
    """A call with no more layers of pages and slots of a ring than it needs, whose kernels are in
    the box too: a ring of many convolutions would take gigabytes, in fp32 for a moment."""
    small = replace(call, arguments=_shrunk(call.arguments))
    if is_compiled(call.impl):
        found.note(small, launched_by(small)[1])
    return Check(call.op, call.impl, small.arguments)


def _shrunk(arguments: Mapping[str, Any]) -> dict[str, Any]:
    lengths = dict.fromkeys(POOLS, arguments.get("layer", 0) + 1)
    if "ring" in arguments:
        frames = arguments["frames"] if "frames" in arguments else arguments["x"].shape[0]
        lengths["ring"] = frames + CONTEXT
    return {
        name: _first(value, lengths[name]) if name in lengths else value
        for name, value in arguments.items()
    }


def _first(value: Any, count: int) -> Any:
    return value[:count] if isinstance(value, Tensor) else [page[:count] for page in value]
