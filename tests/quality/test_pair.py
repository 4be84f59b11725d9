from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llvq.api import quantize_checkpoint
from llvq.checkpoints.random import write_random_checkpoint
from llvq.errors import ArtifactError, CheckpointError, TargetError
from llvq.quality.compare import Request, compare
from llvq.quality.pair import open_pair


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


def test_the_same_loras_must_be_merged_into_both(files: Any, tmp_path: Path) -> None:
    for name in ("model.pt", "config.json"):  # the denoiser alone is compiled sooner
        shutil.copy(files.checkpoint.parent / name, tmp_path / name)
    base, dim = tmp_path / "model.pt", files.config.dit.dim
    halves = {"A": torch.ones(2, dim), "B": torch.ones(dim, 2)}
    names = {side: f"blocks.0.self_attn.q.lora_{side}.weight" for side in halves}
    torch.save({names[side]: halves[side] for side in halves}, tmp_path / "one.pt")
    shutil.copy(tmp_path / "one.pt", tmp_path / "same.pt")
    lora, same = [tmp_path / "one.pt"], [tmp_path / "same.pt"]
    size = files.config.pixel_hw
    program = quantize_checkpoint(base, tmp_path / "with", lora=lora, size=size)
    assert open_pair(base, program, lora=same).model.loras[0].rank == 2
    with pytest.raises(CheckpointError, match="LoRAs of the program are others") as caught:
        open_pair(base, program, lora=lora, lora_alpha=[1.0])
    assert "merged into it: one.pt (alpha 2)" in str(caught.value)
    with pytest.raises(CheckpointError, match="LoRAs of the program are others") as caught:
        open_pair(files.checkpoint, files.program, lora=lora)
    assert caught.value.fix == "give the same: leave out --lora"
