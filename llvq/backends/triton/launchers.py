"""Launchers for machines that compile: one that only notes what it would run, one that runs it."""

from __future__ import annotations

from typing import Any

import torch

from llvq.backends.triton.build import build
from llvq.backends.triton.specialize import Argument, Constant, Specialization, specialize
from llvq.errors import KernelError
from llvq.runtime.device import chip_of as chip_of_capability
from llvq.runtime.kernels import Kernels, LoadedKernel, load_kernel


class Collector:
    """Notes the kernel and the specialization of every launch, and runs nothing.

    Ops called with tensors on `meta` launch what they would launch on the device.
    """

    def __init__(self) -> None:
        self.wanted: dict[Specialization, Any] = {}

    def __call__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        *args: Argument,
        warps: int = 4,
        stages: int = 2,
        exact: bool = False,
        **constants: Constant,
    ) -> None:
        wanted = specialize(kernel, args, constants, warps=warps, stages=stages, exact=exact)
        self.wanted[wanted] = kernel


class JustInTime(Kernels):
    """Builds each specialization for one GPU when it is first launched: for tests and tuning."""

    def __init__(self, device: torch.device) -> None:
        super().__init__({}, device)
        self.chip = chip_of(device)

    def missing(self, kernel: Any, wanted: Specialization) -> LoadedKernel:
        made = build(kernel, wanted, self.chip)
        sizes = {"warps": made.warps, "shared": made.shared, "scratch": made.scratch}
        return load_kernel(made.name, made.entry, made.cubin, **sizes)


def chip_of(device: torch.device) -> str:
    """The chip of a GPU, as targets name it. Raises KernelError for any other device."""
    if device.type != "cuda":
        raise KernelError(f"{device} is no GPU", fix="choose a CUDA device")
    return chip_of_capability(torch.cuda.get_device_capability(device))
