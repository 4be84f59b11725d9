"""Both forms of a denoiser make the same video, as far as their numbers agree."""

from __future__ import annotations

import pytest
import torch

from benchmarks.denoise_models import Plain, random_inputs
from benchmarks.denoise_rollout import draw, errors_by_chunk, roll_llvq, roll_plain
from benchmarks.random_weights import device_weights, weight_specs
from llvq.compiler import compile_model, instantiate
from llvq.models.config import ModelConfig
from llvq.recipe import BF16, NVFP4, Recipe
from llvq.sources import DictSource

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("recipe", "least", "most"), [(BF16, 0, 0.02), (NVFP4, 0.02, 0.5)], ids=["bf16", "nvfp4"]
)
def test_a_video_past_the_window(
    tiny_config: ModelConfig, recipe: Recipe, least: float, most: float
) -> None:
    chunks = tiny_config.stream.window_chunks + 2
    weights = device_weights(weight_specs(tiny_config, torch.bfloat16), CPU, seed=1)
    plain = Plain(tiny_config, weights, random_inputs(tiny_config, CPU, seed=1), CPU)
    drawn = draw(tiny_config, chunks, CPU, seed=2)
    model = instantiate(compile_model(tiny_config, recipe), DictSource(weights))
    wanted = roll_plain(plain.model, tiny_config, drawn)
    errors = errors_by_chunk(roll_llvq(model, tiny_config, drawn), wanted)
    assert len(errors) == chunks and all(least <= error < most for error in errors)


def test_the_same_seed_draws_the_same(tiny_config: ModelConfig) -> None:
    one, same, other = (draw(tiny_config, 2, CPU, seed) for seed in (3, 3, 4))
    assert torch.equal(one.noises[1][0], same.noises[1][0])
    assert not torch.equal(one.noises[1][0], other.noises[1][0])
    assert not torch.equal(one.noises[0][0], one.noises[1][0])
