"""Before a box is trusted: its kernels against the references of their ops, on this device.

A box names a few calls that launch all of its kernels. Each is made once, on random tensors of the
shapes that it will see, and its results are held against those of plain torch code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from llvq.artifact.kernels import Check
from llvq.backends.implementations import find_implementation
from llvq.backends.triton.specialize import Launcher
from llvq.dialect import DIALECT, EXACT, Op
from llvq.errors import KernelError
from llvq.runtime.random_arguments import random_arguments

# Sums run in another order on every device, and a value that they move by an ulp may round to the
# next code: exact results may differ in so many bytes, and in numbers by so much of the largest.
FLIPPED, ULP = 1e-3, 2**-7


def self_check(checks: Iterable[Check], launch: Launcher, device: torch.device) -> None:
    """Raises KernelError naming op and kernels of the first check that fails."""
    for seed, check in enumerate(checks):
        _check(check, _Naming(launch), random_arguments(check, device, seed))


class _Naming:
    """A launcher that remembers what it launched."""

    def __init__(self, launch: Launcher) -> None:
        self.launch, self.names = launch, dict[str, None]()

    def __call__(self, kernel: Any, grid: tuple[int, ...], *args: Any, **more: Any) -> None:
        self.names[kernel.__name__] = None
        self.launch(kernel, grid, *args, **more)


def _check(check: Check, launch: _Naming, arguments: Mapping[str, Any]) -> None:
    op = DIALECT[check.op]
    ours = pytree.tree_map_only(Tensor, torch.clone, dict(arguments))
    with torch.inference_mode():
        found = find_implementation(check.impl, check.op)(launch, **ours)
        wanted = op.reference(**arguments)
    written = [argument.name for argument in op.overload._schema.arguments if _is_written(argument)]
    results = [found, *(ours[name] for name in written)]
    references = [wanted, *(arguments[name] for name in written)]
    if problem := next(_differences(op, results, references), None):
        raise KernelError(
            f"llvq.{check.op} computes something else here",
            where=f"kernel {', '.join(launch.names)}" if launch.names else check.impl,
            because=problem,
            fix="update the GPU's driver, or export the program again; if neither helps, report it",
        )


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _differences(op: Op, found: Any, wanted: Any) -> Iterator[str]:
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True)
    for index, (ours, reference) in enumerate(pairs):
        if reference is None:
            continue
        if ours.dtype != reference.dtype or ours.shape != reference.shape:
            yield f"result {index} is {ours.dtype} {list(ours.shape)}"
            continue
        off, limit = distance(op, ours, reference)
        if not off <= limit:  # NaN is no distance either
            yield f"result {index} is off by {off:.2g}, {limit:.2g} is allowed"


def distance(op: Op, ours: Tensor, reference: Tensor) -> tuple[float, float]:
    """How far two results are apart, and how far they may be."""
    if reference.dtype == torch.uint8 or (reference.itemsize == 1 and _by_bytes(op)):
        differ = _bytes(op, ours) != _bytes(op, reference)
        return differ.float().mean().item(), op.tolerance.flipped or FLIPPED
    if not reference.numel():
        return 0.0, 0.0
    wanted = reference.float()
    furthest = (ours.float() - wanted).abs().amax()
    return (furthest / wanted.abs().amax().clamp_min(1e-30)).item(), op.tolerance.relative or ULP


def _by_bytes(op: Op) -> bool:
    return op.tolerance == EXACT or op.tolerance.flipped > 0


def _bytes(op: Op, result: Tensor) -> Tensor:
    values = result.view(torch.uint8)
    codes = result.dtype == torch.uint8 and op.tolerance.flipped > 0
    return _positive_zeros(values) if codes else values


def _positive_zeros(codes: Tensor) -> Tensor:
    """E2M1 codes, two to a byte, with 0 for -0: far out, a GELU is one or the other."""
    low, high = codes & 15, codes >> 4
    return codes - 8 * (low == 8) - 128 * (high == 8)
