"""VMAF by an external ffmpeg that has libvmaf. llvq ships none and downloads none."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from llvq.errors import OutputError

SECONDS = 600
# Raw frames in, scores out; the first input is the distorted one.
FILTER = "[0:v]format=yuv420p[d];[1:v]format=yuv420p[r];[d][r]libvmaf=log_fmt=json:log_path=scores"


@dataclass(frozen=True)
class Vmaf:
    """An ffmpeg that can score videos."""

    ffmpeg: Path

    def score(self, reference: Tensor, value: Tensor) -> float:
        """The mean VMAF of uint8 frames [F, H, W, 3], 0..100. Raises OutputError."""
        with tempfile.TemporaryDirectory() as folder:
            for name, frames in (("reference", reference), ("value", value)):
                (Path(folder) / name).write_bytes(frames.contiguous().numpy().tobytes())
            _run([str(self.ffmpeg), *_arguments(reference)], folder)
            document = json.loads((Path(folder) / "scores").read_text(encoding="utf-8"))
        return float(document["pooled_metrics"]["vmaf"]["mean"])


def find_vmaf() -> Vmaf | None:
    """The ffmpeg on the PATH, if it has libvmaf."""
    found = shutil.which("ffmpeg")
    return Vmaf(Path(found)) if found and has_libvmaf(Path(found)) else None


def has_libvmaf(ffmpeg: Path) -> bool:
    """Whether that program runs and lists the filter."""
    try:
        listed = subprocess.run(
            [str(ffmpeg), "-hide_banner", "-filters"],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "libvmaf" in listed.stdout


def _arguments(frames: Tensor) -> list[str]:
    height, width = frames.shape[1:3]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "24", "-i"]
    inputs = [*raw, "value", *raw, "reference"]
    return ["-hide_banner", "-loglevel", "error", *inputs, "-lavfi", FILTER, "-f", "null", "-"]


def _run(command: list[str], folder: str) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        because = done.stderr.strip().splitlines()[-1:] if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        because = [str(error)]
    if because is not None:
        raise OutputError(
            "ffmpeg could not compute VMAF",
            where=command[0],
            because=(because or ["it said nothing"])[0],
            fix="install an ffmpeg whose libvmaf has its models built in, or take it off the PATH",
        )
