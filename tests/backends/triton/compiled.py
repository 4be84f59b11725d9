"""Kernels of an op, compiled for a chip: `compiled("sm_90a", quantize, x, "max")` is one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from llvq.backends.triton.build import Binary, Resources, build, resources
from llvq.backends.triton.launchers import Collector
from llvq.backends.triton.specialize import Specialization

CHIPS = ("sm_90a", "sm_100a", "sm_103a", "sm_120a")


@dataclass(frozen=True)
class Compiled:
    binary: Binary
    resources: Resources


_MADE: dict[tuple[str, Specialization], Compiled] = {}


def compiled(chip: str, wrapper: Callable[..., Any], *args: Any, **more: Any) -> list[Compiled]:
    """Every kernel that a wrapper launches for these arguments, in order; tensors may be anywhere.

    What was built once is not built again in this process.
    """
    collect = Collector()
    on_meta = pytree.tree_map_only(Tensor, lambda t: t.to("meta"), (args, more))
    wrapper(collect, *on_meta[0], **on_meta[1])
    assert collect.wanted
    return [_make(chip, kernel, wanted) for wanted, kernel in collect.wanted.items()]


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _make(chip: str, kernel: Any, wanted: Specialization) -> Compiled:
    if (chip, wanted) not in _MADE:
        binary = build(kernel, wanted, chip)
        _MADE[chip, wanted] = Compiled(binary, resources(binary))
    return _MADE[chip, wanted]
