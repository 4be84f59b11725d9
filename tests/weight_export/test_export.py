"""A program written for a tool reads back to the byte."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch

from llvq.artifact import Box
from llvq.box import write_program
from llvq.calibration import calibration_of
from llvq.checkpoints.longlive import read_dit
from llvq.checkpoints.source import open_tensors
from llvq.compiler import compile_model
from llvq.errors import RecipeError
from llvq.models.config import ModelConfig
from llvq.recipe import NVFP4
from llvq.runtime.load import open_checked
from llvq.sources import DictSource
from llvq.weight_export import export as module
from llvq.weight_export.export import Exported, export_weights
from llvq.weight_export.formats import TOOLS
from llvq.weight_export.program import ProgramSource
from tests.weight_export.conftest import Made

SUFFIX = {"folder": "", "safetensors": ".safetensors", "torch": ".pt"}
INPUT = 0.0123


def quiet(done: int, total: int) -> None:
    pass


class Static(ProgramSource):
    """The program as if it had been calibrated."""

    def __init__(self, program: Box) -> None:
        super().__init__(program)
        self._inputs = {n.removesuffix(".weight"): "" for n in self._packed}

    def read(self, name: str) -> torch.Tensor:
        return torch.tensor(INPUT) if name.endswith(".input_scale") else super().read(name)


@pytest.fixture
def static(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ProgramSource", Static)


def exported(program: Box, format: str, folder: Path) -> tuple[Exported, Path]:
    path = folder / f"m{SUFFIX[TOOLS[format].container]}"
    return export_weights(program, format, path, progress=quiet), path


@pytest.mark.usefixtures("static")
@pytest.mark.parametrize("format", TOOLS)
def test_what_is_written_is_read_back_to_the_byte(
    program: Box, format: str, tmp_path: Path
) -> None:
    made, path = exported(program, format, tmp_path)
    assert os.listdir(tmp_path) == [path.name]
    seen = read_dit(path, num_heads=2)
    source, tool = ProgramSource(program), TOOLS[format]
    assert len(made.layers) == 20 and len(made.plain) == 6
    assert any(f"{tool.layout.title}, 20 linears packed, 6 in bf" in n for n in seen.notes)
    for name in source.names():
        mine, theirs = source.packed(name), seen.tensors.packed(name)
        assert (mine is None) == (theirs is None), name
        if mine is None or theirs is None:
            assert torch.equal(seen.tensors.read(name), source.read(name)), name
            continue
        for a, b in zip(
            mine.read_rows(0, source.spec(name).shape[0]),
            theirs.read_rows(0, source.spec(name).shape[0]),
            strict=True,
        ):
            assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), name
        # fp32 cannot hold the reciprocal of every scale.
        assert torch.allclose(mine.global_scale(), theirs.global_scale(), rtol=2e-7, atol=0)
        if tool.with_input_scales:
            scale = seen.tensors.read(name.removesuffix("weight") + "input_scale")
            assert torch.allclose(scale, torch.tensor(INPUT), rtol=2e-7, atol=0)


def test_a_longlive_file_has_the_keys_and_the_words_of_its_script(
    program: Box, tmp_path: Path
) -> None:
    made, path = exported(program, "longlive-4o6", tmp_path)
    document = torch.load(path, weights_only=True)
    keys = document["generator"]
    # 27 tensors a block and 15 outside; of each packed weight four instead of one.
    assert len(keys) == 2 * 27 + 15 + 3 * 20
    assert keys["model.blocks.0.self_attn.q.quantized_weight_metadata"].tolist() == [
        64,
        64,
        128,
        64,
    ]
    assert document["quantization"]["materialized_modules"] == list(made.layers)
    assert document["quantization"]["activation_scale_rule"] == "mse"
    assert made.notes == ()


@pytest.mark.parametrize("format", ["modelopt", "compressed-tensors"])
def test_without_static_scales_servers_are_told_weights_alone(
    program: Box, format: str, tmp_path: Path
) -> None:
    made, path = exported(program, format, tmp_path)
    assert "activations stay in BF16 there" in made.notes[0]
    config = json.loads((path / "config.json").read_text())
    group = config["quantization_config"]["config_groups"]["group_0"]
    assert not group.get("input_activations")
    assert config["quantization_config"]["ignore"] == list(made.plain)
    assert not any("input" in name.split(".")[-1] for name in open_tensors(path).names())


def test_modelopts_folder_loads_in_diffusers(program: Box, tmp_path: Path) -> None:
    """Names and shapes: every tensor that is not packed goes where the model has one."""
    from diffusers import WanTransformer3DModel

    made, path = exported(program, "modelopt", tmp_path)
    config = json.loads((path / "config.json").read_text())
    config.pop("quantization_config")
    own = {n: t.shape for n, t in WanTransformer3DModel.from_config(config).state_dict().items()}
    found = open_tensors(path)
    packed = {f"{layer}.weight" for layer in made.layers}
    beside = {f"{layer}.{s}" for layer in made.layers for s in ("weight_scale", "weight_scale_2")}
    assert set(found.names()) == own.keys() | beside
    assert all(found.spec(name).shape == tuple(own[name]) for name in own if name not in packed)
    assert all(found.spec(n).shape == (own[n][0], own[n][1] // 2) for n in packed)


def test_static_scales_are_needed_by_lightx2v(program: Box, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs static input scales"):
        exported(program, "lightx2v", tmp_path)
    assert not os.listdir(tmp_path)


def test_the_names_of_modelopt_for_what_weights_were_quantized_behind(
    smoothed: Made, tmp_path: Path
) -> None:
    made, path = exported(smoothed.program, "modelopt", tmp_path)
    names = set(open_tensors(path).names())
    words = json.loads((path / "config.json").read_text())["quantization_config"]
    svd = "blocks.0.ffn.net.2.svdquant_lora_a" in names
    assert words["quant_algo"] == ("NVFP4_SVD" if svd else "NVFP4_AWQ")
    assert words["config_groups"]["group_0"].get("lora_rank") == (4 if svd else None)
    # Two of twenty are behind the norm that holds their factor.
    assert sum(name.endswith(".pre_quant_scale") for name in names) == 18
    assert sum("svdquant_lora_b" in name for name in names) == (20 if svd else 0)
    assert any("18 linears multiply their input by a pre_quant_scale" in n for n in made.notes)


@pytest.mark.parametrize("smoothed", ["awq"], indirect=True)
def test_factors_are_written_for_comfyui(smoothed: Made, tmp_path: Path) -> None:
    _, path = exported(smoothed.program, "comfyui", tmp_path)
    source, seen = ProgramSource(smoothed.program), read_dit(path, num_heads=2).tensors
    factors = [name for name in source.names() if name.endswith(".pre_quant_scale")]
    assert len(factors) == 18
    for name in (*factors, "blocks.1.norm3.weight"):
        assert torch.equal(seen.read(name), source.read(name)), name


@pytest.mark.usefixtures("static")
def test_compressed_tensors_own_converter_makes_its_layout_of_our_modelopt(
    program: Box, tmp_path: Path
) -> None:
    from compressed_tensors.entrypoints.convert.converters.modelopt_nvfp4 import (
        ModelOptNvfp4Converter,
    )

    files = {}
    for format in ("modelopt", "compressed-tensors"):
        export_weights(program, format, tmp_path / format, progress=quiet)
        source = open_tensors(tmp_path / format)
        files[format] = {name: source.read(name) for name in source.names()}
    suffix = ".weight_scale"
    packed = [n.removesuffix(suffix) for n in files["modelopt"] if n.endswith(suffix)]
    made = ModelOptNvfp4Converter(targets=[f"re:^{re.escape(name)}$" for name in packed])
    converted, ours = made.process(dict(files["modelopt"])), files["compressed-tensors"]
    assert converted.keys() == ours.keys()
    for name, tensor in ours.items():
        theirs = converted[name].reshape(tensor.shape)
        assert theirs.dtype == tensor.dtype
        assert torch.allclose(theirs.float(), tensor.float(), rtol=2e-7, atol=0), name


def test_a_program_with_static_scales_is_what_lightx2v_needs(
    tiny_config: ModelConfig, weights: DictSource, tmp_path: Path
) -> None:
    """Through the compiler: layers that read one input share a scale, and each gets it back."""
    linears = [n for n in weights.names() if n.startswith("dit.blocks.") and ".weight" in n]
    layers = [n.removesuffix(".weight") for n in linears if len(weights.spec(n).shape) == 2]
    scales = {layer: torch.tensor(scale_of(layer)) for layer in layers}
    tensors = {name: weights.read(name) for name in weights.names()}
    source = DictSource(tensors | {f"{k}.input_scale": v for k, v in scales.items()})
    compiled = compile_model(tiny_config, NVFP4, calibration=calibration_of(source))
    write_program(compiled, source, tmp_path / "p.nvfp4")
    opened = open_checked(tmp_path / "p.nvfp4", kinds=("program",))
    export_weights(opened, "lightx2v", tmp_path / "m.safetensors", progress=quiet)
    seen = read_dit(tmp_path / "m.safetensors", num_heads=2).tensors
    for layer, scale in scales.items():
        found = seen.read(f"{layer.removeprefix('dit.')}.input_scale")
        assert torch.allclose(found, scale, rtol=3e-7, atol=0), layer


def scale_of(layer: str) -> float:
    """Equal for siblings that read one value."""
    shared = re.sub(r"self_attn\.[qkv]$", "self_attn.qkv", layer)
    shared = re.sub(r"blocks\.\d+\.cross_attn\.[kv]$", "cross_attn.kv", shared)
    return 0.001 + len(shared) / 1000 + sum(map(ord, shared)) / 1e6
