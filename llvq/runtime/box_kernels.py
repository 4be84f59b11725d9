"""The kernels of a box on the GPU: its binaries, loaded through the driver."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.fx import GraphModule

from llvq.artifact import Box
from llvq.artifact.kernels import KernelTable, kernel_file, read_table
from llvq.backends.triton.sources import sources_digest
from llvq.errors import KernelError
from llvq.runtime.bind import bind, implementation_of, op_of
from llvq.runtime.device import TARGET_DEVICES, require
from llvq.runtime.kernels import Kernels, load_kernel
from llvq.runtime.self_check import self_check


def bind_kernels(box: Box, gms: Mapping[str, GraphModule], device: torch.device) -> None:
    """Bind the ops of graphs of a box for a GPU to its kernels, once those are found to be right on
    `device`, which is the current one.

    Raises TargetError: the machine is of another kind; KernelError: a kernel that is not of this
    llvq, cannot be loaded, or does not compute what its op says; ArtifactError.
    """
    require(box.manifest["target"])
    check_sources(box)
    chip = box.manifest["kernels"]["chip"]
    table = read_table(box, chip)
    kernels = load_kernels(box, table, chip, device)
    used = {(op_of(n), implementation_of(n)) for gm in gms.values() for n in gm.graph.nodes}
    self_check([c for c in table.checks if (c.op, c.impl) in used], kernels, device)
    torch.cuda.empty_cache()  # checks take more memory than the box
    for gm in gms.values():
        bind(gm, kernels)


def needs_kernels(box: Box) -> bool:
    """Whether the target of a box runs kernels; a program has none."""
    return TARGET_DEVICES.get(str(box.manifest["target"])) == "cuda"


def check_sources(box: Box) -> None:
    """The code that launches kernels is of the version that compiled them. Raises KernelError."""
    made = box.manifest["kernels"]
    if not needs_kernels(box) or (made is not None and made["sources"] == sources_digest()):
        return
    raise KernelError(
        "the kernels of the box are of another version of llvq",
        where=str(box.path),
        because=f"it was exported by llvq {box.manifest['versions']['llvq']} from other kernel "
        "sources than those installed here, which would launch them",
        fix=f"llvq export PROGRAM --target {box.manifest['target']}, with the llvq that runs it",
    )


def load_kernels(box: Box, table: KernelTable, chip: str, device: torch.device) -> Kernels:
    """Every kernel of an open box, on the device. Raises KernelError, ArtifactError."""
    loaded = {}
    with torch.cuda.device(device):
        for name, entry in table.kernels.items():
            cubin = box.file(kernel_file(chip, name)).read_bytes()
            sizes = {"warps": entry.warps, "shared": entry.shared, "scratch": entry.scratch}
            loaded[name] = load_kernel(name, entry.entry, cubin, **sizes)
    return Kernels(loaded, device)
