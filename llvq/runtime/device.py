"""The machine that a box runs on: which targets it can run, and why not the others."""

from __future__ import annotations

import os

import torch

from llvq.backends.base import TARGETS
from llvq.errors import SessionError, TargetError

# The device of each target, as torch names it.
TARGET_DEVICES = {target.name: target.device for target in TARGETS}
# What to look for in a shop or a cloud.
GPUS = {
    "sm_90a": "H100, H200",
    "sm_100a": "B200, GB200",
    "sm_103a": "B300, GB300",
    "sm_120a": "RTX PRO 6000 Blackwell, RTX 5090",
}


def obstacles() -> dict[str, str]:
    """Why this machine cannot run a target, for each that it cannot."""
    here, found = None, f"torch {torch.__version__} finds no CUDA device"
    if torch.cuda.is_available():
        here = chip_of(torch.cuda.get_device_capability())
        found = f"the GPU here is {here} ({torch.cuda.get_device_name()})"
    return {
        target.name: f"{found}, and {target.name} is {GPUS[target.name]}"
        for target in TARGETS
        if target.chip is not None and target.chip != here
    }


def chip_of(capability: tuple[int, int]) -> str:
    """The chip of a compute capability, as targets name it."""
    return f"sm_{capability[0]}{capability[1]}a"


def require(target: str) -> torch.device:
    """The device that runs a target here. Raises TargetError."""
    if reason := obstacles().get(target):
        raise TargetError(
            f"target {target} cannot run here",
            because=reason,
            fix="use the machine that it is for, or export for this one: llvq export --target",
        )
    return exact_device(TARGET_DEVICES[target])


def check_decode_device(name: str, target: str) -> str:
    """A device that may decode what a box for `target` denoises: another GPU of the same kind.

    Raises SessionError.
    """
    if TARGET_DEVICES[target] != "cuda":
        raise _no_decoder(name, f"the box is for {target}, which has one device", "leave it out")
    own, count = exact_device(TARGET_DEVICES[target]), torch.cuda.device_count()
    others = [f"cuda:{index}" for index in range(count) if index != own.index]
    fix = f"use {' or '.join(others)}, or leave it out" if others else "leave it out"
    if name == str(own) or name == own.type:
        because = "that is the device of the denoiser, where decoding runs beside it anyway"
        raise _no_decoder(name, because, fix)
    if name not in others:
        here = f"this machine has {', '.join(sorted([str(own), *others]))}"
        raise _no_decoder(name, here, fix)
    if (chip := chip_of(torch.cuda.get_device_capability(name))) != target:
        raise _no_decoder(name, f"it is {chip}, and the kernels of the box are for {target}", fix)
    return name


def _no_decoder(name: str, because: str, fix: str) -> SessionError:
    return SessionError(f"{name} cannot decode", where="--decode-device", because=because, fix=fix)


def exact_device(device: str) -> torch.device:
    """A device as its tensors name it: `cuda` alone would differ, theirs has an index."""
    return torch.empty(0, device=device).device


def memory_of(device: torch.device) -> int:
    """All memory of a device in bytes, free or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
