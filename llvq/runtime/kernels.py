"""Launch compiled kernels through the CUDA driver: nothing is compiled, Triton is not asked.

A binary takes the arguments of its signature in order, and then two pointers that Triton adds: to
scratch memory, where a kernel builds its tensor descriptors, and to a profiler's, always null.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from llvq.backends.triton.specialize import Argument, Constant, Specialization, specialize
from llvq.errors import KernelError

MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
SHARED_BY_DEFAULT = 48 * 1024


@dataclass(frozen=True)
class LoadedKernel:
    """A kernel on the device. `function` is the driver's handle."""

    name: str
    function: int
    warps: int
    shared: int
    scratch: int


class Kernels:
    """The binaries of a box, on one device, by name. A launcher (see `specialize.Launcher`)."""

    def __init__(self, loaded: Mapping[str, LoadedKernel], device: torch.device) -> None:
        self.loaded, self.device = dict(loaded), device

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
        name = wanted.name
        if name not in self.loaded:
            self.loaded[name] = self.missing(kernel, wanted)
        launch(self.loaded[name], grid, [a for a in args if a is not None], self.device)

    def missing(self, kernel: Any, wanted: Specialization) -> LoadedKernel:
        """The binary of a launch that has none: a box compiles nothing. Raises KernelError."""
        raise KernelError(
            f"there is no kernel {wanted.name}",
            because=f"it was not compiled: {dict(wanted.signature)}, {dict(wanted.constants)}",
            fix="export the program again, with the llvq that runs it",
        )


def load_kernel(
    name: str, entry: str, cubin: bytes, *, warps: int, shared: int, scratch: int
) -> LoadedKernel:
    """Put a binary on the current device. Raises KernelError with the driver's words."""
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _call("cuModuleLoadData", name, ctypes.byref(module), cubin)
    _call("cuModuleGetFunction", name, ctypes.byref(function), module, entry.encode())
    if shared > SHARED_BY_DEFAULT:
        _call("cuFuncSetAttribute", name, function, MAX_DYNAMIC_SHARED, shared)
    return LoadedKernel(name, function.value or 0, warps, shared, scratch)


def launch(
    kernel: LoadedKernel, grid: Sequence[int], args: Sequence[Argument], device: torch.device
) -> None:
    """Queue one launch on the current stream of the device."""
    blocks = (*grid, 1, 1)[:3]
    scratch = None
    if kernel.scratch:
        nbytes = kernel.scratch * prod(blocks)
        scratch = torch.empty(nbytes, dtype=torch.uint8, device=device)
    values = [_parameter(value) for value in (*args, scratch, None)]
    places = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
    function = ctypes.c_void_p(kernel.function)
    sizes = (*blocks, 32 * kernel.warps, 1, 1, kernel.shared)
    _call("cuLaunchKernel", kernel.name, function, *sizes, stream, places, None)


def _parameter(value: Argument) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_uint64(value.data_ptr())
    if value is None:
        return ctypes.c_uint64(0)
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int32(value)


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _call(function: str, kernel: str, *args: Any) -> None:
    code = getattr(_driver(), function)(*args)
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise KernelError(
            f"kernel {kernel} could not be loaded or launched",
            because=f"{function} gives {code}: {(text.value or b'').decode()}",
            fix="check that the box was exported for this GPU, and that its driver is recent",
        )
