"""Compile all kernels of a box for its chip, several at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

from triton.errors import TritonError

from llvq.backends.triton.build import Binary, build
from llvq.backends.triton.collect import Launches
from llvq.backends.triton.specialize import Specialization
from llvq.errors import KernelError, TargetError

Progress = Callable[[int, int], None]
# What a compiler raises for a kernel that it cannot compile: a pass that fails is a RuntimeError.
FAILURES = (KernelError, TritonError, RuntimeError, AssertionError)


def build_all(found: Launches, chip: str, progress: Progress | None = None) -> list[Binary]:
    """A binary of every kernel, by name. `progress` is told how many are done, and of how many.

    Triton and ptxas leave the interpreter's lock, so threads are enough. Raises TargetError: the
    first kernel that cannot be compiled, the op and the node that launch it.
    """
    made: list[Binary] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {
            pool.submit(build, k, wanted, chip): wanted for wanted, k in found.kernels.items()
        }
        for future in as_completed(running):
            try:
                made.append(future.result())
            except FAILURES as error:
                pool.shutdown(cancel_futures=True)
                raise _refusal(error, running[future], found, chip) from error
            if progress is not None:
                progress(len(made), len(running))
    return sorted(made, key=lambda binary: binary.name)


def _refusal(error: Exception, wanted: Specialization, found: Launches, chip: str) -> TargetError:
    call = found.made_by[wanted]
    reason = error.because if isinstance(error, KernelError) else None
    return TargetError(
        f"kernel {wanted.kernel} of llvq.{call.op} cannot be compiled for {chip}",
        where=call.where,
        because=reason or f"{type(error).__name__}: {error}".splitlines()[0],
        fix="choose another target, or exclude the layer in the recipe",
    )
