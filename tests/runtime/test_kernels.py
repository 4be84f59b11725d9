"""Launching binaries through the driver: what is handed to it, and what it refuses."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.specialize import specialize
from llvq.errors import KernelError
from llvq.runtime import kernels
from llvq.runtime.kernels import Kernels, LoadedKernel, launch, load_kernel

CPU = torch.device("cpu")
X = torch.randn(32)


@triton.jit
def kernel(x, bias, rows, eps, SIZE: tl.constexpr):
    pass


class Driver:
    """A driver that notes what it is called with; a call of `failing` gives an error."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.calls = failing, []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> int:
            if name == "cuGetErrorString":
                args[1]._obj.value = b"out of memory"
            elif name == "cuModuleGetFunction":
                args[0]._obj.value = 77
            elif name == "cuLaunchKernel":
                self.launched = launched(*args)
            self.calls.append(name)
            return 2 if name == self.failing else 0

        return call


def launched(function: Any, *rest: Any) -> tuple[Any, ...]:
    """(function, grid, threads, shared memory, eight bytes of each parameter)."""
    *sizes, stream, places, extra = rest
    assert stream.value == 5 and extra is None
    values = [ctypes.string_at(place, 4) for place in places]
    pointers = [ctypes.cast(place, ctypes.POINTER(ctypes.c_uint64))[0] for place in places]
    return function.value, sizes[:3], sizes[3:6], sizes[6], values, pointers


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    stream = type("Stream", (), {"cuda_stream": 5})
    monkeypatch.setattr(kernels, "_driver", lambda: found)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return found


def test_arguments_lie_in_order_with_scratch_and_a_null_behind(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Tensor] = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: made.append(empty(*a, **k)) or made[-1])
    loaded = LoadedKernel("k", function=77, warps=8, shared=1024, scratch=256)
    launch(loaded, (3, 2), [X, 41, 0.5], CPU)
    function, grid, threads, shared, values, pointers = driver.launched
    assert (function, grid, threads, shared) == (77, [3, 2, 1], [256, 1, 1], 1024)
    assert len(values) == 5
    assert pointers[0] == X.data_ptr() and pointers[4] == 0
    assert values[1] == bytes(ctypes.c_int32(41)) and values[2] == bytes(ctypes.c_float(0.5))
    assert made[0].nbytes == 256 * 6 and pointers[3] == made[0].data_ptr()


def test_a_launcher_runs_the_binary_of_the_name(driver: Driver) -> None:
    args = (X, None, 7, 0.25)
    name = specialize(kernel, args, {"SIZE": 4}, warps=4, stages=2).name
    run = Kernels({name: LoadedKernel(name, 77, 4, 0, 0)}, CPU)
    run(kernel, (9,), *args, SIZE=4)
    _, grid, threads, _, values, pointers = driver.launched
    assert (grid, threads, len(values)) == ([9, 1, 1], [128, 1, 1], 5)
    assert pointers[0] == X.data_ptr() and values[1] == bytes(ctypes.c_int32(7))
    assert pointers[3:] == [0, 0]


def test_a_kernel_that_was_not_compiled_is_named(driver: Driver) -> None:
    run = Kernels({}, CPU)
    with pytest.raises(KernelError, match=r"there is no kernel kernel\.[0-9a-f]{16}") as caught:
        run(kernel, (9,), X, None, 7, 0.25, SIZE=4)
    assert "'x': '*fp32'" in str(caught.value) and "'SIZE': 4" in str(caught.value)
    assert not driver.calls


@pytest.mark.parametrize(("shared", "asks"), [(48 * 1024, False), (48 * 1024 + 1, True)])
def test_more_shared_memory_than_usual_is_asked_for(
    driver: Driver, shared: int, asks: bool
) -> None:
    found = load_kernel("k", "entry", b"cubin", warps=4, shared=shared, scratch=0)
    assert found == LoadedKernel("k", 77, 4, shared, 0)
    assert ("cuFuncSetAttribute" in driver.calls) is asks


@pytest.mark.parametrize("failing", ["cuModuleLoadData", "cuModuleGetFunction"])
def test_the_words_of_the_driver_reach_the_user(driver: Driver, failing: str) -> None:
    driver.failing = failing
    with pytest.raises(KernelError, match=rf"{failing} gives 2: out of memory"):
        load_kernel("k", "entry", b"cubin", warps=4, shared=0, scratch=0)
