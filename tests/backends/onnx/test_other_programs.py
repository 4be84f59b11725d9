"""Programs of other dtypes, sizes and page formats as ONNX, against llvq's own runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llvq.errors import TargetError
from llvq.models.config import ModelConfig
from llvq.recipe import DecodeRecipe, KvRecipe
from tests.backends.onnx.conftest import FP32, Make, Program, check_all, error, worst


@pytest.mark.parametrize("dialect", ["standard", "portable"])
def test_in_bf16_it_is_no_farther_than_bf16_is_from_fp32(
    in_bf16: Program, in_fp32: Program, dialect: str, tmp_path: Path
) -> None:
    """Both programs have the same codes, so their distance is what rounding to bf16 does."""
    folder = in_bf16.export(dialect, tmp_path / "m")
    for stage in ("condition", "modulate", "denoise", "decode_first", "decode"):
        wanted = in_bf16.wanted(stage)
        given = {
            spec.name: in_bf16.values[spec.name].to(spec.dtype)
            for spec in in_fp32.runtime.stage(stage).inputs
        }
        exact = in_fp32.wanted(stage, **given)
        rounding = max(error(exact[n].numpy(), tensor) for n, tensor in wanted.items())
        assert worst(in_bf16, folder, stage) < 1.5 * rounding, stage


@pytest.mark.parametrize("kv_format", ["fp8", "none"])
def test_other_pages_another_size_and_relative_positions(
    make_program: Make, tiny_config: ModelConfig, kv_format: str, tmp_path: Path
) -> None:
    stream = replace(tiny_config.stream, relative_rope=kv_format == "fp8")
    config = replace(tiny_config, stream=stream, latent_hw=(6, 4))
    program = make_program(config, replace(FP32, kv=KvRecipe(kv_format)))
    check_all(program, program.export("portable", tmp_path / "m"), 1e-4)


def test_another_size_with_two_latents_per_call(
    make_program: Make, whole_config: ModelConfig, tmp_path: Path
) -> None:
    config = replace(whole_config, latent_hw=(6, 8))
    program = make_program(config, replace(FP32, decode=DecodeRecipe(2)))
    check_all(program, program.export("portable", tmp_path / "m"), 1e-4)


def test_a_decoder_in_fp8_is_refused(
    make_program: Make, whole_config: ModelConfig, tmp_path: Path
) -> None:
    assert whole_config.vae is not None
    config = replace(whole_config, vae=replace(whole_config.vae, dec_dim=16))
    program = make_program(config, replace(FP32, decode=DecodeRecipe(conv="fp8")))
    with pytest.raises(TargetError, match="has no translation to ONNX") as caught:
        program.export("portable", tmp_path / "m")
    assert str(caught.value).count("\n") == 3 and "fp8_" in str(caught.value)
    assert not (tmp_path / "m").exists()
