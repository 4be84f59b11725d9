"""Sensitivities of a checkpoint, and what a budget keeps of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llvq.calibrate.measure import measure, within_budget
from llvq.calibrate.run import quantized_layers
from llvq.calibrate.videos import Videos
from llvq.checkpoints.model import VideoModel
from llvq.errors import RecipeError
from llvq.recipe import BF16, NVFP4


def test_every_linear_is_asked_and_the_same_seed_says_the_same(
    model: VideoModel, prompts_file: Path
) -> None:
    videos = Videos(prompts=prompts_file, chunks=2)
    told: list[tuple[str, int, int]] = []
    found = measure(model, NVFP4, videos, progress=lambda *row: told.append(row))
    assert tuple(found.scores) == tuple(found.elements) == quantized_layers(model, NVFP4)
    assert all(score > 0 for score in found.scores.values())
    assert max(found.scores.values()) < found.energy  # four bits, not noise
    assert found == measure(model, NVFP4, videos)
    chunks = [row for row in told if row[0] == "sensitivity, chunks"]
    assert chunks == [("sensitivity, chunks", done, 4) for done in range(5)], "2 videos of 2"


def test_a_budget_keeps_the_most_sensitive(model: VideoModel, prompts_file: Path) -> None:
    videos = Videos(prompts=prompts_file, chunks=1)
    found = measure(model, NVFP4, videos)
    recipe, spending = within_budget(model, NVFP4, videos, 6.0)
    worth = {name: found.scores[name] / found.elements[name] for name in found.scores}
    assert spending.kept[0].layer == max(worth, key=lambda name: worth[name])
    assert spending.bits <= 6.0
    kept = {f"dit.{layer.layer}" for layer in spending.kept}
    assert kept == set(recipe.linear.exclude) - set(NVFP4.linear.exclude)
    same, nothing = within_budget(model, NVFP4, videos, 4.5)
    assert same.linear == NVFP4.linear and not nothing.kept


def test_a_recipe_that_keeps_everything_has_nothing_to_measure(model: VideoModel) -> None:
    with pytest.raises(RecipeError, match="leaves nothing"):
        measure(model, BF16, Videos())
