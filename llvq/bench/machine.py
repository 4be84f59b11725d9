"""What a measurement was made on: versions, device, driver, clocks, memory."""

from __future__ import annotations

import csv
import platform
import resource
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from io import StringIO

import torch

import llvq

# What nvidia-smi is asked; nothing of it changes a setting.
QUERIES = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.limit",
    "temperature.gpu",
)


def versions() -> dict[str, str]:
    found = {"llvq": llvq.__version__, "torch": torch.__version__}
    with suppress(PackageNotFoundError):
        found["triton"] = version("triton")
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        found["cudnn"] = str(torch.backends.cudnn.version())
    return found | {"python": platform.python_version()}


def device_text(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def gpu_state(device: torch.device) -> dict[str, str]:
    """Driver, clocks and limits as nvidia-smi reads them now; empty where there is none."""
    command = shutil.which("nvidia-smi")
    if device.type != "cuda" or command is None:
        return {}
    index = torch.cuda.current_device() if device.index is None else device.index
    uuid = str(torch.cuda.get_device_properties(index).uuid)
    asked = [f"--query-gpu=uuid,{','.join(QUERIES)}", "--format=csv,noheader"]
    done = subprocess.run([command, *asked], capture_output=True, text=True, check=False)
    return _row_of(done.stdout, uuid)


def _row_of(text: str, uuid: str) -> dict[str, str]:
    for name, *values in csv.reader(StringIO(text), skipinitialspace=True):
        if name.removeprefix("GPU-") == uuid:
            return dict(zip(QUERIES, values, strict=True))
    return {}


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> Mapping[str, int | str]:
    """Bytes, and what they are of."""
    if device.type == "cuda":
        return {"bytes": torch.cuda.max_memory_allocated(device), "of": "tensors on the device"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"bytes": peak, "of": "this process (RSS)"}
