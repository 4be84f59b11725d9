"""VMAF by a real ffmpeg, and what is said when there is none."""

from __future__ import annotations

from pathlib import Path

import imageio_ffmpeg
import pytest
import torch

from llvq.errors import OutputError
from llvq.quality.vmaf import Vmaf, find_vmaf, has_libvmaf

FFMPEG = Path(imageio_ffmpeg.get_ffmpeg_exe())
G = torch.Generator().manual_seed(0)
COARSE = torch.rand(4, 3, 12, 16, generator=G) * 255
FRAMES = (
    torch.nn.functional.interpolate(COARSE, (192, 256), mode="bicubic")
    .clamp(0, 255)
    .to(torch.uint8)
    .permute(0, 2, 3, 1)
)


def test_a_worse_video_scores_lower() -> None:
    assert has_libvmaf(FFMPEG)
    vmaf = Vmaf(FFMPEG)
    noise = torch.randint(-60, 61, FRAMES.shape, generator=G)
    worse = (FRAMES.int() + noise).clamp(0, 255).to(torch.uint8)
    same, distorted = vmaf.score(FRAMES, FRAMES), vmaf.score(FRAMES, worse)
    assert 90 < same <= 100
    assert 0 <= distorted < same - 10


def test_it_is_found_on_the_path_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_vmaf() is None
    (tmp_path / "ffmpeg").symlink_to(FFMPEG)
    assert find_vmaf() == Vmaf(tmp_path / "ffmpeg")


def test_a_program_that_is_no_ffmpeg(tmp_path: Path) -> None:
    program = tmp_path / "ffmpeg"
    assert not has_libvmaf(program)
    program.write_text("#!/bin/sh\necho no such filter >&2\nexit 1\n")
    program.chmod(0o755)
    assert not has_libvmaf(program)
    with pytest.raises(OutputError, match="VMAF") as caught:
        Vmaf(program).score(FRAMES, FRAMES)
    assert "no such filter" in str(caught.value)
