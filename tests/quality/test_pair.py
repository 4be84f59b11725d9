from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from llvq.checkpoints.random import write_random_checkpoint
from llvq.errors import ArtifactError, CheckpointError, TargetError
from llvq.quality.compare import Request, compare


def test_refuses_another_checkpoint(files: Any, tmp_path: Path) -> None:
    other = write_random_checkpoint(tmp_path, files.config, seed=7)
    with pytest.raises(CheckpointError, match="another checkpoint") as caught:
        compare(other, files.program)
    assert len(str(caught.value).splitlines()) == 4
    assert "has other values" in str(caught.value)


def test_refuses_a_missing_part_a_broken_program_and_an_absent_device(
    files: Any, tmp_path: Path
) -> None:
    alone = tmp_path / "model.pt"
    for name in ("model.pt", "config.json"):
        shutil.copy(files.checkpoint.parent / name, tmp_path / name)
    with pytest.raises(CheckpointError, match="vae") as caught:
        compare(alone, files.program)
    assert "--vae" in str(caught.value)
    with pytest.raises(ArtifactError):
        compare(files.checkpoint, tmp_path)
    with pytest.raises(TargetError, match="abacus"):
        compare(files.checkpoint, files.program, Request(device="abacus"))
