"""`llvq.quantize_checkpoint`: the command as a call."""

from __future__ import annotations

from pathlib import Path

import pytest

import llvq
from llvq.checkpoints.random import write_random_checkpoint
from llvq.errors import RecipeError
from llvq.models.config import ModelConfig


def test_a_checkpoint_becomes_a_program(
    tmp_path: Path, tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = write_random_checkpoint(tmp_path / "in", tiny_config, seed=0)
    told: list[tuple[int, int]] = []
    path = llvq.quantize_checkpoint(
        checkpoint, size=(64, 96), progress=lambda done, total: told.append((done, total))
    )
    assert path == Path("model.nvfp4") and (path / "manifest.json").is_file()
    assert told[-1][0] == told[-1][1]


def test_an_unknown_recipe_is_refused_before_the_checkpoint_is_opened() -> None:
    with pytest.raises(RecipeError, match="no recipe"):
        llvq.quantize_checkpoint("nothing.pt", recipe="int4")
