from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

from llvq.checkpoints.dit_sizes import check_stated, dit_sizes, stated_heads
from llvq.checkpoints.specs import dit_specs, in_bf16
from llvq.errors import CheckpointError
from llvq.models.config import LONGLIVE2_5B, SELF_FORCING_1_3B, DitConfig

PATH = Path("m.pt")
# config.json of the release of Wan2.2-TI2V-5B.
ORIGINAL = {
    "_class_name": "WanModel",
    "_diffusers_version": "0.33.0",
    "dim": 3072,
    "eps": 1e-06,
    "ffn_dim": 14336,
    "freq_dim": 256,
    "in_dim": 48,
    "model_type": "ti2v",
    "num_heads": 24,
    "num_layers": 30,
    "out_dim": 48,
    "text_len": 512,
}


@pytest.mark.parametrize("config", [LONGLIVE2_5B.dit, SELF_FORCING_1_3B.dit])
def test_sizes_are_read_off_the_tensors(config: DitConfig) -> None:
    assert dit_sizes(in_bf16(dit_specs(config)), {}, PATH) == config


def test_the_released_config_agrees() -> None:
    check_stated(LONGLIVE2_5B.dit, ORIGINAL, PATH)
    assert stated_heads(ORIGINAL) == 24


def test_a_config_that_diffusers_wrote_agrees(tmp_path: Path, dit_config: DitConfig) -> None:
    model = WanTransformer3DModel(
        num_attention_heads=dit_config.num_heads,
        attention_head_dim=dit_config.head_dim,
        in_channels=dit_config.in_dim,
        out_channels=dit_config.out_dim,
        text_dim=dit_config.text_dim,
        ffn_dim=dit_config.ffn_dim,
        num_layers=dit_config.num_layers,
    )
    stated = {**model.config, "_class_name": "WanTransformer3DModel", "patch_size": [1, 2, 2]}
    check_stated(dit_config, stated, PATH)
    assert stated_heads(stated) == dit_config.num_heads


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"num_layers": 40}, "disagree on num_layers"),
        ({"in_dim": "48"}, "disagree on in_dim"),
        ({"attention_head_dim": 64}, "disagree on attention_head_dim"),
        ({"patch_size": [1, 4, 4]}, "disagree on patch_size"),
        ({"model_type": "i2v"}, "model_type = i2v is not supported"),
        ({"eps": 1e-5}, "eps = 1e-05 is not supported"),
        ({"qk_norm": {"a": []}}, "is not supported"),
        ({"image_dim": 1280}, "image_dim = 1280 is not supported"),
    ],
)
def test_a_config_of_another_model(changed: dict[str, object], what: str) -> None:
    with pytest.raises(CheckpointError, match=what):
        check_stated(LONGLIVE2_5B.dit, {**ORIGINAL, **changed}, PATH)


def test_what_is_no_config_of_wan_says_nothing() -> None:
    check_stated(LONGLIVE2_5B.dit, {"num_layers": 3, "eps": 1}, PATH)


def test_a_matrix_that_is_none(dit_config: DitConfig) -> None:
    specs = in_bf16(dit_specs(dit_config))
    specs["head.head.weight"] = in_bf16({"x": (4,)})["x"]
    with pytest.raises(CheckpointError, match="not a denoiser") as caught:
        dit_sizes(specs, {}, PATH)
    assert caught.value.because == "head.head.weight is [4], expected 2 dimensions above 0"


def test_the_dtype_of_a_spec_does_not_matter(dit_config: DitConfig) -> None:
    specs = {n: type(s)(torch.float32, s.shape) for n, s in in_bf16(dit_specs(dit_config)).items()}
    assert dit_sizes(specs, {}, PATH) == dit_config
