"""Arguments for a call of an op: random tensors that could be what its names say.

Codes are any bytes, scales are positive, a table names pages that are there, and everything else is
normal. What pages hold is about as large as what comes from the chunk, as in a model that norms its
keys: of larger ones a softmax is so sharp that the reference, which rounds them, is percents off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llvq.artifact.kernels import Check

CODES_SCALE = "codes_scale"
CODES_RMS = 3.0  # of the numbers that E2M1 has, each as often


def random_arguments(check: Check, device: torch.device, seed: int) -> dict[str, Any]:
    """The arguments of a check by name, tensors filled and on the device."""
    random = torch.Generator(device).manual_seed(seed)
    slots = _slots(check)
    return {name: _fill(name, value, slots, random) for name, value in check.arguments.items()}


def _slots(check: Check) -> int:
    """How many pages there are to name."""
    pages = check.arguments.get("pages")
    return int(pages[0].shape[2]) if pages else 1


def _fill(name: str, value: Any, slots: int, random: torch.Generator) -> Any:
    if isinstance(value, list):
        packed = any(isinstance(item, Tensor) and item.dtype == torch.uint8 for item in value)
        return [_fill(_of_pages(item, packed), item, slots, random) for item in value]
    if not isinstance(value, Tensor):
        return value
    filled = torch.empty_strided(
        value.shape, value.stride(), dtype=value.dtype, device=random.device
    )
    return filled.copy_(_values(name, value, slots, random))


def _of_pages(item: Any, packed: bool) -> str:
    """What a tensor of a page pool is: beside codes, everything is a scale."""
    if not isinstance(item, Tensor):
        return "values"
    if item.dtype == torch.float32:
        return CODES_SCALE if packed else "page_scale"
    return "block_scales" if packed else "values"


def _values(name: str, like: Tensor, slots: int, random: torch.Generator) -> Tensor:
    sizes, device = like.shape, random.device
    if like.dtype == torch.uint8:
        return torch.randint(256, sizes, generator=random, device=device, dtype=torch.uint8)
    if not like.dtype.is_floating_point:
        high = slots if name in ("table", "slot") else 2
        return torch.randint(high, sizes, generator=random, device=device)
    if _is_scale(name):
        scales = torch.rand(sizes, generator=random, device=device) + 0.5
        return scales / CODES_RMS if name == CODES_SCALE else scales
    return torch.randn(sizes, generator=random, device=device)


def _is_scale(name: str) -> bool:
    return name.endswith(("_scale", "_scales", "_global")) or name == "scales"
