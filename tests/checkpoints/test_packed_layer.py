"""Weights that other tools have packed, against the values those tools decode them to.

The tools are installed: ModelOpt, compressed-tensors, torchao, comfy-kitchen. For LongLive's own
files there are vectors of the fouroversix reference. LightX2V's layout is written out here.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llvq.checkpoints.packed_layer import PackedLayer, open_layer
from llvq.checkpoints.packed_layouts import FULL_RANGE, LAYOUTS, RULE_RANGE
from llvq.errors import CheckpointError
from llvq.formats import nvfp4
from llvq.sources import DictSource

PATH = Path("made/by/hand.safetensors")
GOLDEN = load_file(Path(__file__).parents[1] / "data" / "nvfp4_4over6.safetensors")
INPUTS = sorted({name.split(".")[0] for name in GOLDEN})
SHAPES = [(128, 64), (48, 96), (200, 144), (1, 16), (130, 272)]
Made = tuple[dict[str, Tensor], Tensor]


def weight(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    return torch.randn(rows, columns, generator=generator, dtype=torch.bfloat16) * 0.1


def by_modelopt(w: Tensor) -> Made:
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    packed, scales, g = NVFP4QTensor.quantize(w.clone(), 16)
    values = packed.dequantize(
        dtype=torch.float32, scale=scales, double_scale=g, block_sizes={-1: 16}
    )
    stored = {"weight": packed._quantized_data, "weight_scale": scales, "weight_scale_2": g}
    return stored, values


def by_modelopt_swizzled(w: Tensor) -> Made:
    from modelopt.torch.export.diffusers_utils import pad_nvfp4_weights, swizzle_nvfp4_scales

    stored, values = by_modelopt(w)
    stored = {f"x.{name}": tensor for name, tensor in stored.items()}
    stored = swizzle_nvfp4_scales(pad_nvfp4_weights(stored, "row"))
    return {name.removeprefix("x."): tensor for name, tensor in stored.items()}, values


def by_compressed_tensors(w: Tensor) -> Made:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import preset_name_to_scheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    scheme = preset_name_to_scheme("NVFP4A16", ["Linear"])
    blocks = w.float().unflatten(-1, (-1, 16))
    gparam = generate_gparam(w.float().min(), w.float().max())
    scale, _ = calculate_qparams(
        blocks.amin(-1), blocks.amax(-1), scheme.weights, global_scale=gparam
    )
    tool = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized")
    made = tool.compress(
        {"weight": w.float(), "weight_scale": scale, "weight_global_scale": gparam}, scheme
    )
    stored = {name: made[name] for name in ("weight_packed", "weight_scale")}
    # Its decompressor does this in bf16, which rounds the scales.
    values = dequantize(
        unpack_fp4_from_uint8(made["weight_packed"], *w.shape, dtype=torch.float32),
        scale=made["weight_scale"].float(),
        args=scheme.weights,
        global_scale=gparam,
        dtype=torch.float32,
    )
    return {**stored, "weight_global_scale": gparam.reshape(1)}, values


def by_comfyui(w: Tensor) -> Made:
    from comfy_kitchen.tensor import TensorCoreNVFP4Layout

    codes, params = TensorCoreNVFP4Layout.quantize(w)
    params = params.__class__(
        scale=params.scale,
        block_scale=params.block_scale,
        orig_dtype=torch.float32,
        orig_shape=params.orig_shape,
    )
    values = TensorCoreNVFP4Layout.dequantize(codes, params)[: w.shape[0], : w.shape[1]]
    named = TensorCoreNVFP4Layout.state_dict_tensors(codes, params)
    return {f"weight{suffix}": t for suffix, t in named.items()}, values


def by_torchao(w: Tensor) -> Made:
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    g = per_tensor_amax_to_scale(w.abs().max())
    t = NVFP4Tensor.to_nvfp4(w, per_tensor_scale=g, is_swizzled_scales=True)
    stored = {
        "_weight_qdata": t.qdata,
        "_weight_scale": t.scale,
        "_weight_per_tensor_scale": t.per_tensor_scale,
    }
    return stored, t.dequantize(torch.float32)


def by_lightx2v(w: Tensor) -> Made:
    """Its converter runs on a GPU: what vLLM's kernel writes, from the description of the tiles."""
    q = nvfp4.quantize(w)
    rows, blocks = q.scales.shape
    tall, wide = -(-rows // 128) * 128, -(-blocks // 4) * 4
    tiles = torch.zeros(tall * wide, dtype=torch.uint8)
    scale_bytes = q.scales.view(torch.uint8)
    for m in range(rows):
        for k in range(blocks):
            at = (m // 128) * (wide // 4 * 512) + (k // 4) * 512
            tiles[at + (m % 32) * 16 + (m % 128) // 32 * 4 + k % 4] = scale_bytes[m, k]
    stored = {
        "weight": q.codes,
        "weight_scale": tiles.view(torch.float8_e4m3fn).reshape(tall, wide),
        "weight_global_scale": 1 / q.global_scale,
    }
    return stored, nvfp4.dequantize(q.codes, q.scales, q.global_scale, torch.float32)


TOOLS = {
    "modelopt": by_modelopt,
    "modelopt-swizzled": by_modelopt_swizzled,
    "compressed-tensors": by_compressed_tensors,
    "comfyui": by_comfyui,
    "torchao": by_torchao,
    "lightx2v": by_lightx2v,
}


def opened(stored: dict[str, Tensor], layout: str, rows: int) -> PackedLayer:
    source = DictSource(
        {f"a.{name}": t for name, t in stored.items()} | {"a.bias": torch.ones(rows)}
    )
    return open_layer(source, "a", LAYOUTS[layout], full=FULL_RANGE, path=PATH)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tool", TOOLS)
def test_a_weight_decodes_to_what_its_tool_decodes_it_to(tool: str, shape: tuple[int, int]) -> None:
    stored, expected = TOOLS[tool](weight(*shape))
    layer = opened(stored, tool, shape[0])
    assert layer.spec.shape == shape
    codes, scales = layer.read_rows(0, shape[0])
    values = nvfp4.dequantize(codes, scales, layer.global_scale(), torch.float32)
    torch.testing.assert_close(values, expected.float(), rtol=3e-7, atol=0)


@pytest.mark.parametrize("tool", TOOLS)
def test_rows_in_pieces_are_the_rows(tool: str) -> None:
    layer = opened(TOOLS[tool](weight(300, 80))[0], tool, 300)
    whole = layer.read_rows(0, 300)
    for start, stop in ((0, 1), (127, 129), (5, 300), (256, 260), (7, 7)):
        codes, scales = layer.read_rows(start, stop)
        assert torch.equal(codes, whole[0][start:stop])
        assert torch.equal(scales.view(torch.uint8), whole[1][start:stop].view(torch.uint8))


@pytest.mark.parametrize("rule", ["static_6", "mse", "mae", "abs_max"])
@pytest.mark.parametrize("name", INPUTS)
def test_a_longlive_weight_is_that_of_the_fouroversix_reference(name: str, rule: str) -> None:
    golden = {k.split(".")[2]: v for k, v in GOLDEN.items() if k.startswith(f"{name}.{rule}.")}
    codes = golden["codes"]
    rows, columns = codes.shape[0], 2 * codes.shape[1]
    stored = {
        "quantized_weight_values": codes,
        "quantized_weight_scale_factors": golden["scales_swizzled"].view(torch.float8_e4m3fn),
        "quantized_weight_amax": golden["amax"],
        "quantized_weight_metadata": torch.tensor([rows, columns] * 2, dtype=torch.int32),
    }
    source = DictSource({f"a.{k}": v for k, v in stored.items()})
    layer = open_layer(source, "a", LAYOUTS["longlive-4o6"], full=RULE_RANGE[rule], path=PATH)
    found = layer.read_rows(0, rows)
    assert torch.equal(found[0], codes)
    assert torch.equal(found[1].view(torch.uint8), golden["scales"])
    if golden["amax"] > 0:
        divisor = 6 * 448 if rule == "static_6" else 6 * 256
        torch.testing.assert_close(layer.global_scale(), golden["amax"][0] / divisor)


def test_a_longlive_weight_is_cut_to_its_own_size() -> None:
    q = nvfp4.quantize(weight(128, 64), block_rule="four_over_six")
    stored = {
        "quantized_weight_values": q.codes,
        "quantized_weight_scale_factors": nvfp4.swizzle_scales(q.scales),
        "quantized_weight_amax": q.global_scale.reshape(1) * 1536,
        "quantized_weight_metadata": torch.tensor([100, 48, 128, 64], dtype=torch.int32),
    }
    layer = opened(stored, "longlive-4o6", 100)
    assert layer.spec.shape == (100, 48)
    codes, scales = layer.read_rows(90, 100)
    assert torch.equal(codes, q.codes[90:100, :24])
    assert torch.equal(scales.float(), q.scales[90:100, :3].float())


def broken(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Damage -> tensors; the name of the damage is a word of the error."""
    e4m3 = torch.float8_e4m3fn
    without = {k: v for k, v in tensors.items() if k != "weight_scale_2"}
    return {
        "a.weight_scale_2 is missing": without,
        "a.weight_scale is torch.uint8, expected torch.float8_e4m3fn": tensors
        | {"weight_scale": tensors["weight_scale"].view(torch.uint8)},
        r"a.weight_scale is \[6, 48\], expected \[48, 6\]": tensors
        | {"weight_scale": tensors["weight_scale"].view(torch.uint8).t().contiguous().view(e4m3)},
        r"a.weight_scale_2 is \[2\], expected \[\] or \[1\]": tensors
        | {"weight_scale_2": torch.ones(2)},
        "a.weight_scale_2 is nan": tensors | {"weight_scale_2": torch.tensor(torch.nan)},
        "a.weight_scale_2 is 0.0": tensors | {"weight_scale_2": torch.tensor(0.0)},
        "a.weight_scale_2 is -1.0": tensors | {"weight_scale_2": torch.tensor(-1.0)},
        "a.weight_scale_2 is torch.float16, expected torch.float32": tensors
        | {"weight_scale_2": torch.tensor(1.0, dtype=torch.float16)},
        r"a.weight is \[4608\], expected two dimensions": tensors
        | {"weight": tensors["weight"].reshape(-1).repeat(2)},
        r"a.weight is \[48, 49\], expected K = 98 to be a multiple of 16": tensors
        | {"weight": torch.zeros(48, 49, dtype=torch.uint8)},
    }


@pytest.mark.parametrize("words", broken(by_modelopt(weight(48, 96))[0]))
def test_a_tensor_that_does_not_fit_is_named_with_what_was_expected(words: str) -> None:
    stored = broken(by_modelopt(weight(48, 96))[0])[words]
    with pytest.raises(CheckpointError, match=words) as caught:
        opened(stored, "modelopt", 48)
    assert caught.value.where == str(PATH) and caught.value.fix


@pytest.mark.parametrize(
    "sizes", [[48, 96, 128, 64], [0, 64, 128, 64], [128, 64, 128], [128, 64] * 2 + [1, 0]]
)
def test_sizes_that_are_not_those_of_the_codes(sizes: list[int]) -> None:
    stored = {
        "quantized_weight_values": torch.zeros(128, 32, dtype=torch.uint8),
        "quantized_weight_scale_factors": torch.zeros(512).to(torch.float8_e4m3fn),
        "quantized_weight_amax": torch.ones(1),
        "quantized_weight_metadata": torch.tensor(sizes, dtype=torch.int32),
    }
    with pytest.raises(CheckpointError, match="quantized_weight"):
        opened(stored, "longlive-4o6", 128)
