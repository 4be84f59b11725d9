"""Calibrated, compiled and run: a model with outlier channels loses no more than without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llvq.calibrate.facts_file import with_facts
from llvq.calibrate.run import Request, calibrate
from llvq.checkpoints.model import VideoModel
from llvq.compiler import compile_model, instantiate
from llvq.formats.nvfp4 import dequantize
from llvq.quality.metrics import Energies, energies, sqnr_db
from llvq.recipe import BF16, NVFP4, KvRecipe, Recipe
from llvq.runtime.session import Prompt, Session
from llvq.sources import DictSource
from llvq.weights import materialize

# Only the linears differ: pages keep their dtype.
LINEARS = replace(NVFP4, kv=KvRecipe(format="none"))
CHANNELS, FACTOR = [3, 21, 40], 30.0


@pytest.fixture(scope="module")
def outliers(model: VideoModel) -> VideoModel:
    """The checkpoint with large channels in front of linears: after norms, in v and in the MLP."""
    tensors = {name: model.source.read(name).clone() for name in model.source.names()}
    for name in ("self_attn.v", "cross_attn.v", "ffn.0"):
        tensors[f"dit.blocks.0.{name}.weight"][CHANNELS] *= FACTOR
    tensors["dit.blocks.0.norm3.weight"][CHANNELS] *= FACTOR
    for scale in (1, 4):
        tensors["dit.blocks.0.modulation"][:, scale, CHANNELS] += FACTOR
    for name in ("self_attn.q", "self_attn.k", "self_attn.v", "ffn.0", "cross_attn.q"):
        tensors[f"dit.blocks.0.{name}.weight"][:, CHANNELS] /= FACTOR
    return replace(model, source=DictSource(tensors))


def latents(model: VideoModel, recipe: Recipe) -> Tensor:
    """Of eight videos in one sampling step each: more steps would multiply the noise of chance."""
    compiled = compile_model(model.config, recipe, calibration=model.calibration)
    executable, rows = instantiate(compiled, model.source), []
    for seed in range(100, 108):
        random = torch.Generator().manual_seed(seed)
        prompt = torch.randn(
            1, model.config.dit.text_len, model.config.dit.text_dim, generator=random
        )
        script = [Prompt(prompt.bfloat16())] * 2
        session = Session(executable, script, seed=seed, steps=1, latents_only=True)
        rows += [chunk.latents.float() for chunk in session]
    return torch.cat(rows)


@pytest.fixture(scope="module")
def reference(outliers: VideoModel) -> Tensor:
    return latents(outliers, BF16)


@pytest.fixture(scope="module")
def uncalibrated(outliers: VideoModel, reference: Tensor) -> float:
    return sqnr_db(reference, latents(outliers, LINEARS))


@pytest.mark.parametrize(
    ("name", "gain_db"),
    # A static scale alone saves the search for the largest value, and cannot be better than it.
    [("max", -0.5), ("awq_lite", 2.0), ("smoothquant", 2.0), ("svdquant", 8.0)],
)
def test_calibration_pays(
    outliers: VideoModel,
    request_of: Callable[[str], Request],
    reference: Tensor,
    uncalibrated: float,
    tmp_path: Path,
    name: str,
    gain_db: float,
) -> None:
    found = calibrate(outliers, LINEARS, request_of(name), tmp_path / "work")
    calibrated = latents(with_facts(outliers, found.path), LINEARS)
    assert sqnr_db(reference, calibrated) >= uncalibrated + gain_db


def weight_error(model: VideoModel) -> Energies:
    """Of all weights in NVFP4 against those of the checkpoint."""
    compiled = compile_model(model.config, LINEARS, calibration=model.calibration)
    errors = []
    for record in compiled.weights.values():
        if record.op == "quantize":
            made = materialize(record, model.source)
            parts = [made[f"{record.target}.{part}"] for part in ("codes", "scales")]
            weights = [model.source.read(name).float() for name in record.sources]
            segments = [len(weight) for weight in weights]
            scale = made[f"{record.target}.global_scale"]
            found = dequantize(*parts, scale, torch.float32, segments=segments)
            errors.append(energies(torch.cat(weights), found))
    return sum(errors[1:], errors[0])


@pytest.mark.parametrize("large", [False, True], ids=["alike", "outliers"])
def test_a_sweep_of_weights_pays_in_weights(
    model: VideoModel,
    outliers: VideoModel,
    request_of: Callable[[str], Request],
    tmp_path: Path,
    large: bool,
) -> None:
    """And there alone: it does not see that small weights meet large activations."""
    bare = outliers if large else model
    found = calibrate(bare, LINEARS, request_of("mse"), tmp_path / "work")
    swept = with_facts(bare, found.path)
    assert weight_error(swept).sqnr_db > weight_error(bare).sqnr_db + 0.05
