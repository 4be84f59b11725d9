"""LatentWriter: a whole file or none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llvq.errors import OutputError
from llvq.runtime.latents import LatentWriter


def test_chunks_become_one_tensor(tmp_path: Path) -> None:
    chunks = [torch.full((1, 2, 4, 3, 3), float(i)) for i in range(3)]
    with LatentWriter(tmp_path / "a.safetensors") as writer:
        for chunk in chunks:
            writer.append(chunk)
    assert writer.frames == 6
    assert torch.equal(load_file(tmp_path / "a.safetensors")["latents"], torch.cat(chunks, dim=1))
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), LatentWriter(tmp_path / "a.safetensors"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_shows_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write a\.safetensors"):
        LatentWriter(tmp_path / "nowhere" / "a.safetensors")
