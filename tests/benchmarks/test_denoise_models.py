"""Plain and compiled denoiser: the same inputs, the same history, and so the same velocity."""

from __future__ import annotations

import pytest
import torch

from benchmarks.denoise_models import Llvq, Plain, poisoned, random_inputs, relative_l2
from benchmarks.random_weights import device_weights, weight_specs
from llvq.compiler import compile_model, instantiate
from llvq.models.config import ModelConfig
from llvq.recipe import BF16, NVFP4, Recipe
from llvq.sources import DictSource

CPU = torch.device("cpu")


@pytest.mark.parametrize(("recipe", "limit"), [(BF16, 0.01), (NVFP4, 0.3)], ids=["bf16", "nvfp4"])
def test_both_forms_agree_as_far_as_their_numbers_do(
    tiny_config: ModelConfig, recipe: Recipe, limit: float
) -> None:
    weights = device_weights(weight_specs(tiny_config, torch.bfloat16), CPU, seed=1)
    given = random_inputs(tiny_config, CPU, seed=1)
    plain = Plain(tiny_config, weights, given, CPU)
    plain.fill()
    model = Llvq(instantiate(compile_model(tiny_config, recipe), DictSource(weights)), given)
    model.fill()
    assert plain.keys[0].shape[1] == 3 * tiny_config.chunk_tokens
    assert relative_l2(model.forward(), plain.forward()) < limit
    assert len(model.written) == len(plain.written) == tiny_config.dit.num_layers
    for ours, wanted in zip(model.written, plain.written, strict=True):
        assert relative_l2(ours[0], wanted[0]) < limit and relative_l2(ours[1], wanted[1]) < limit
    assert model.page_bytes == model.model.facts.pages.nbytes
    assert model.weight_bytes > 0


def test_memory_that_nobody_writes_shows() -> None:
    assert poisoned(lambda: torch.empty(3)).isnan().all()
    assert torch.equal(poisoned(lambda: torch.ones(3)), torch.ones(3))
    assert not torch.are_deterministic_algorithms_enabled()


def test_nan_is_no_small_error() -> None:
    wanted = torch.randn(4)
    assert relative_l2(wanted, wanted) == 0
    assert not relative_l2(torch.full((4,), torch.nan), wanted) < 1e9
    assert relative_l2(2 * wanted, wanted) == pytest.approx(1)
