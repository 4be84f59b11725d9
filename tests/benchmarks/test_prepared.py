"""Graphs made elsewhere: they return from disk as they were, and compute what a box computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.prepared import DENOISER, Prepared, Variant, executable, load, prepare, save
from benchmarks.random_weights import carry_out, device_weights, weight_specs
from llvq.compiler import Compiled, instantiate
from llvq.models.config import ModelConfig
from llvq.sources import DictSource

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(tiny_config: ModelConfig) -> Prepared:
    return prepare(tiny_config, Variant("w4a4-emulated"), "cpu")


def test_what_is_saved_is_loaded(prepared: Prepared, tmp_path: Path) -> None:
    save(prepared, tmp_path)
    assert load(tmp_path) == prepared
    assert prepared.documents.keys() == set(DENOISER)


def test_stages_compute_what_the_compiler_makes_of_the_same_weights(
    prepared: Prepared, compiled_nvfp4: Compiled, tiny_config: ModelConfig
) -> None:
    weights = device_weights(weight_specs(tiny_config, torch.bfloat16), CPU, seed=2)
    ours = executable(prepared, carry_out(prepared.records, weights), CPU, None)
    wanted = instantiate(compiled_nvfp4, DictSource(weights))
    prompt = {"prompt_embeds": torch.randn(1, 5, 32).bfloat16()}
    for name, value in wanted.stage("condition")(prompt).items():
        assert torch.equal(ours.stage("condition")(prompt)[name], value)
