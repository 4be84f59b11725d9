"""Whose file it is: by what is in it, never by its name, and refused where that leaves it open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llvq.checkpoints.packed_layouts import LAYOUTS, LONGLIVE_4O6, MODELOPT
from llvq.checkpoints.packed_recognition import full_range, recognise
from llvq.errors import CheckpointError, RecipeError
from llvq.sources import DictSource

SWIZZLED, LINEAR = (128, 4), (48, 3)  # of scales, for a weight [48, 48]
ANYONE = (128, 64)  # a weight whose scales have one shape in both orders
MODELOPT_CONFIG = {"quant_method": "modelopt", "quant_algo": "NVFP4"}


def file(
    shape: tuple[int, int] = (48, 48), scales: tuple[int, int] = LINEAR, **more: Tensor
) -> DictSource:
    tensors = {
        "a.weight": torch.zeros(shape[0], shape[1] // 2, dtype=torch.uint8),
        "a.weight_scale": torch.ones(scales).to(torch.float8_e4m3fn),
        "a.weight_scale_2": torch.ones(()),
        "b.weight": torch.zeros(4, 4, dtype=torch.bfloat16),
    }
    return DictSource(tensors | {f"a.{name}": tensor for name, tensor in more.items()})


def told(source: DictSource, folder: Path, **metadata: object) -> str | None:
    found = recognise(source, metadata, folder / "m.safetensors", asked=None)
    return found and found.name


def test_linear_scales_are_modelopts(tmp_path: Path) -> None:
    assert told(file(), tmp_path) == "modelopt"


def test_a_marker_tensor_is_comfyuis(tmp_path: Path) -> None:
    marker = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    assert told(file(scales=SWIZZLED, comfy_quant=marker), tmp_path) == "comfyui"


def test_layer_metadata_alone_are_comfyuis(tmp_path: Path) -> None:
    layers = json.dumps({"format_version": "1.0", "layers": {"a": {"format": "nvfp4"}}})
    for shape, scales in (((48, 48), SWIZZLED), (ANYONE, (128, 4))):
        assert told(file(shape, scales), tmp_path, _quantization_metadata=layers) == "comfyui"


@pytest.mark.parametrize("config", [MODELOPT_CONFIG, {"producer": {"name": "modelopt"}}])
def test_modelopts_header_and_a_shape(tmp_path: Path, config: dict[str, object]) -> None:
    layers = json.dumps({"layers": {"a": {"format": "nvfp4"}}})
    header = {"quantization_config": json.dumps(config), "_quantization_metadata": layers}
    assert told(file(), tmp_path, **header) == "modelopt"
    assert told(file(scales=SWIZZLED), tmp_path, **header) == "modelopt-swizzled"


def test_a_config_beside_is_modelopts_export(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": MODELOPT_CONFIG}))
    assert told(file(ANYONE, (128, 4)), tmp_path) == "modelopt"


def test_older_exports_have_a_file_of_their_own_for_it(tmp_path: Path) -> None:
    text = json.dumps({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}})
    (tmp_path / "hf_quant_config.json").write_text(text)
    assert told(file(ANYONE, (128, 4)), tmp_path) == "modelopt"


def test_what_shapes_and_markers_leave_open_is_refused(tmp_path: Path) -> None:
    cases = (
        (file(scales=SWIZZLED), {}, ["modelopt-swizzled", "comfyui"]),
        (file(ANYONE, (128, 4)), {}, ["modelopt", "modelopt-swizzled", "comfyui"]),
        (
            file(ANYONE, (128, 4)),
            {"quantization_config": json.dumps(MODELOPT_CONFIG)},
            ["modelopt", "modelopt-swizzled"],
        ),
    )
    for source, metadata, names in cases:
        with pytest.raises(CheckpointError, match="does not say by which tool") as caught:
            told(source, tmp_path, **metadata)
        assert caught.value.fix == f"say it: --layout {' or --layout '.join(names)}"
        for name in names:
            assert recognise(source, metadata, tmp_path, asked=name) is LAYOUTS[name]


def test_names_that_only_one_tool_gives(tmp_path: Path) -> None:
    for name in ("compressed-tensors", "lightx2v", "torchao", "longlive-4o6"):
        layout = LAYOUTS[name]
        suffixes = (layout.codes, layout.scales, layout.global_scale)
        source = DictSource({f"a.{s}": torch.zeros(4, 4, dtype=torch.uint8) for s in suffixes})
        assert told(source, tmp_path) == name


def test_a_plain_checkpoint_is_not_packed(tmp_path: Path) -> None:
    assert told(DictSource({"a.weight": torch.zeros(4, 4)}), tmp_path) is None
    with pytest.raises(CheckpointError, match="holds no linear packed in NVFP4"):
        recognise(DictSource({}), {}, tmp_path, asked="comfyui")


def test_two_layouts_in_one_file(tmp_path: Path) -> None:
    source = file(quantized_weight_values=torch.zeros(2, 2, dtype=torch.uint8))
    with pytest.raises(CheckpointError, match="mixes layouts") as caught:
        told(source, tmp_path)
    assert "a.weight_scale_2 is of ModelOpt NVFP4" in str(caught.value)
    assert "a.quantized_weight_values is of LongLive-2.0" in str(caught.value)


def test_an_option_that_says_what_the_file_is_not(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not in layout lightx2v"):
        recognise(file(), {}, tmp_path, asked="lightx2v")
    with pytest.raises(RecipeError, match="unknown layout 'mine'"):
        recognise(file(), {}, tmp_path, asked="mine")


@pytest.mark.parametrize("config", ["{", "[]", '{"producer": 3}', 7])
def test_a_header_that_says_nothing_is_no_marker(tmp_path: Path, config: object) -> None:
    assert told(file(), tmp_path, quantization_config=config) == "modelopt"


def test_the_rule_that_an_amax_is_divided_by() -> None:
    def full(**rules: str) -> float:
        metadata = {f"quantization.{key}": rule for key, rule in rules.items()}
        return full_range(LONGLIVE_4O6, metadata, Path("model_4o6.pt"))

    assert full(scale_rule="static_6") == 2688 and full(scale_rule="mse") == 1536
    assert full(scale_rule="static_6", weight_scale_rule="abs_max") == 1536
    assert full_range(MODELOPT, {}, Path("m")) == 2688
    with pytest.raises(CheckpointError, match=r"scale rule of model_4o6\.pt is unknown"):
        full()
    with pytest.raises(CheckpointError, match="scale rule") as caught:
        full(weight_scale_rule="best")
    assert "quantization.weight_scale_rule = 'best'" in str(caught.value)
