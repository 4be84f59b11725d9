"""Memory of a device: the most that a call takes, and giving back what is free."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch


def peak_beyond(call: Callable[[], Any], device: torch.device, before: int) -> int | None:
    """The most bytes of tensors while `call` runs, beyond those `before`; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def give_back(devices: Sequence[torch.device]) -> None:
    """What nothing refers to, and what the pools of PyTorch hold, back to the devices."""
    gc.collect()
    for device in devices:
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.empty_cache()
