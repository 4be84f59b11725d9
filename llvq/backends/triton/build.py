"""Compile a specialization for a chip, on any machine: no GPU is asked.

`ptxas` is asked for registers and spills, so that a test can hold both.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from llvq.backends.triton.specialize import ALIGNMENT, Specialization
from llvq.errors import KernelError

# Chip -> what Triton calls it. ptxas always gets the "a" variant: wgmma and tcgen05 need it.
ARCHITECTURES = {"sm_90a": 90, "sm_100a": 100, "sm_103a": 103, "sm_120a": 120}
# What one block may use, by the CUDA programming guide (opt-in maximum), in bytes.
SHARED_MEMORY = {"sm_90a": 232448, "sm_100a": 232448, "sm_103a": 232448, "sm_120a": 101376}


@dataclass(frozen=True)
class Binary:
    """A compiled kernel. `shared` and `scratch` are bytes per block: shared and global memory."""

    name: str
    entry: str
    chip: str
    cubin: bytes
    ptx: str
    warps: int
    shared: int
    scratch: int


@dataclass(frozen=True)
class Resources:
    """What ptxas says of a kernel: registers per thread, bytes that do not fit into them."""

    registers: int
    spilled: int


def build(kernel: Any, wanted: Specialization, chip: str) -> Binary:
    """Compile. Raises KernelError: an unknown chip, more shared memory than it has."""
    if chip not in ARCHITECTURES:
        raise KernelError(
            f"no kernels for {chip!r}", fix=f"choose one of {', '.join(ARCHITECTURES)}"
        )
    target = GPUTarget("cuda", ARCHITECTURES[chip], 32)
    options = {
        "num_warps": wanted.warps,
        "num_stages": wanted.stages,
        "enable_fp_fusion": not wanted.exact,
    }
    made = triton.compile(_source(kernel, wanted), target=target, options=options)
    if made.metadata.shared > SHARED_MEMORY[chip]:
        raise KernelError(
            f"kernel {wanted.name} does not fit {chip}",
            because=f"it takes {made.metadata.shared} bytes of shared memory per block, "
            f"{chip} has {SHARED_MEMORY[chip]}",
            fix="give it smaller tiles or fewer stages",
        )
    return Binary(
        wanted.name,
        made.metadata.name,
        chip,
        made.asm["cubin"],
        made.asm["ptx"],
        made.metadata.num_warps,
        made.metadata.shared,
        made.metadata.global_scratch_size,
    )


def _source(kernel: Any, wanted: Specialization) -> ASTSource:
    constants = dict(wanted.constants)
    signature = dict(wanted.signature) | {name: "constexpr" for name in constants}
    places = {name: place for place, name in enumerate(kernel.arg_names)}
    divisible = {(places[name],): [["tt.divisibility", ALIGNMENT]] for name in wanted.divisible}
    return ASTSource(
        kernel, {name: signature[name] for name in kernel.arg_names}, constants, divisible
    )


def resources(binary: Binary) -> Resources:
    """Assemble the PTX once more, and read what ptxas reports."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(binary.ptx, encoding="ascii", errors="replace")
        ptxas = get_ptxas(ARCHITECTURES[binary.chip]).path
        command = [ptxas, "-v", f"--gpu-name={binary.chip}", str(source), "-o", f"{folder}/out"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", report)
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert registers and spilled, report
    return Resources(int(registers[1]), max(int(spilled[1]), int(spilled[2])))
