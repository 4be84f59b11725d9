"""Configs, against the code of the tools that read or write them."""

from __future__ import annotations

import json

import pytest

from llvq.models.config import LONGLIVE2_5B, DitConfig
from llvq.weight_export import configs

IGNORE = ["proj_out", "condition_embedder.time_proj"]


def test_diffusers_builds_the_model_from_its_config() -> None:
    from diffusers import WanTransformer3DModel

    dit = DitConfig(dim=64, ffn_dim=128, num_heads=2, num_layers=1, text_dim=32, freq_dim=32)
    config = configs.diffusers_config(dit)
    model = WanTransformer3DModel.from_config(config)
    for key, value in config.items():
        if key[0] != "_":
            assert getattr(model.config, key) == value, key
    assert model.proj_out.weight.shape == (48 * 4, 64)


@pytest.mark.parametrize("static", [True, False])
def test_compressed_tensors_takes_it_for_its_own_preset(static: bool) -> None:
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme

    config = QuantizationConfig.model_validate(
        configs.compressed_tensors_config(IGNORE, static=static)
    )
    preset = preset_name_to_scheme("NVFP4" if static else "NVFP4A16", ["Linear"])
    group = config.config_groups["group_0"]
    for part in ("weights", "input_activations"):
        ours, theirs = getattr(group, part), getattr(preset, part)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            for key in ("num_bits", "type", "strategy", "group_size", "dynamic", "symmetric"):
                assert getattr(ours, key) == getattr(theirs, key), (part, key)
    assert config.format == "nvfp4-pack-quantized" and config.ignore == IGNORE


def test_comfyuis_header() -> None:
    header = configs.comfyui_header(["blocks.0.ffn.0"])
    layers = json.loads(header["_quantization_metadata"])["layers"]
    assert layers == {"blocks.0.ffn.0": {"format": "nvfp4"}}


def test_longlives_document() -> None:
    args = (["model.a"], ["model.b"])
    made = configs.longlive_document(
        *args, LONGLIVE2_5B.dit, source="llvq program 1", activation="static_6"
    )
    assert made["checkpoint_format"] == "longlive_generator_nvfp4"
    assert made["checkpoint_version"] == 1 and made["model_name"] == "Wan2.2-TI2V-5B"
    expected = {"format": "nvfp4", "backend": "fouroversix", "materialized": True}
    expected |= {"dtype": "bfloat16", "weight_scale_rule": "mse"}
    assert expected.items() <= made["quantization"].items()
    other = configs.longlive_document(*args, DitConfig(dim=64), source="s", activation="mse")
    assert "model_name" not in other
