"""Weights in the layouts of other tools: each tool's own reader decodes them to our values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from llvq.checkpoints.packed import unpack
from llvq.checkpoints.packed_layouts import LAYOUTS, RULE_RANGE
from llvq.formats import nvfp4
from llvq.sources import DictSource
from llvq.weight_export.stored import StoredSource
from tests.weight_export.conftest import Held, Make, PackedDict

PATH = Path("exported")
GOLDEN = load_file(Path(__file__).parents[1] / "data" / "nvfp4_4over6.safetensors")
SHAPES = [(128, 64), (48, 96), (200, 144), (1, 16), (130, 272)]
FULL = {"longlive-4o6": RULE_RANGE["mse"]}
INPUT = torch.tensor(0.0123)


def stored(source: PackedDict, layout: str) -> dict[str, Tensor]:
    """The file, in memory; every tensor is what its spec says, whole or by rows."""
    out = StoredSource(source, LAYOUTS[layout], full=FULL.get(layout, 2688.0))
    tensors = {name: out.read(name) for name in out.names()}
    for name, tensor in tensors.items():
        assert (tensor.dtype, tuple(tensor.shape)) == (out.spec(name).dtype, out.spec(name).shape)
        if tensor.ndim:
            half = tensor.shape[0] // 2
            rows = [out.read_rows(name, 0, half), out.read_rows(name, half, tensor.shape[0])]
            assert torch.equal(as_bytes(torch.cat([as_bytes(r) for r in rows])), as_bytes(tensor))
    return tensors


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def modelopt(t: dict[str, Tensor], rows: int) -> Tensor:
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    codes = t["a.weight"]
    packed = NVFP4QTensor((codes.shape[0], 2 * codes.shape[1]), torch.float32, codes)
    return packed.dequantize(
        dtype=torch.float32,
        scale=t["a.weight_scale"],
        double_scale=t["a.weight_scale_2"],
        block_sizes={-1: 16},
    )


def diffusers_bfl(t: dict[str, Tensor], rows: int) -> Tensor:
    from diffusers.quantizers.bfl.utils import dequantize_nvfp4

    return dequantize_nvfp4(t["a.weight"], t["a.weight_scale"], t["a.weight_scale_2"])


def compressed_tensors(t: dict[str, Tensor], rows: int) -> Tensor:
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import preset_name_to_scheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    codes = t["a.weight_packed"]
    return dequantize(
        unpack_fp4_from_uint8(codes, codes.shape[0], 2 * codes.shape[1], dtype=torch.float32),
        scale=t["a.weight_scale"].float(),
        args=preset_name_to_scheme("NVFP4", ["Linear"]).weights,
        global_scale=t["a.weight_global_scale"],
        dtype=torch.float32,
    )


def comfy_kitchen(t: dict[str, Tensor], rows: int) -> Tensor:
    from comfy_kitchen.tensor import TensorCoreNVFP4Layout

    params = TensorCoreNVFP4Layout.Params(
        scale=t["a.weight_scale_2"],
        block_scale=t["a.weight_scale"],
        orig_dtype=torch.float32,
        orig_shape=tuple(t["b.weight"].shape),
    )
    return TensorCoreNVFP4Layout.dequantize(t["a.weight"], params)[:rows]


def torchao(t: dict[str, Tensor], rows: int) -> Tensor:
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

    tensor = NVFP4Tensor(
        t["a._weight_qdata"],
        t["a._weight_scale"],
        16,
        torch.bfloat16,
        t["a._weight_per_tensor_scale"],
        is_swizzled_scales=True,
    )
    return tensor.dequantize(torch.float32)


READERS: list[tuple[str, Callable[[dict[str, Tensor], int], Tensor]]] = [
    ("modelopt", modelopt),
    ("modelopt", diffusers_bfl),
    ("compressed-tensors", compressed_tensors),
    ("comfyui", comfy_kitchen),
    ("torchao", torchao),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("layout", "reader"), READERS, ids=[r.__name__ for _, r in READERS])
def test_the_tools_reader_decodes_our_values(
    make_packed: Make,
    layout: str,
    reader: Callable[[dict[str, Tensor], int], Tensor],
    shape: tuple[int, int],
) -> None:
    source = make_packed(*shape)
    q = source.held["a.weight"].q
    expected = nvfp4.dequantize(q.codes, q.scales, q.global_scale, torch.float32)
    torch.testing.assert_close(
        reader(stored(source, layout), shape[0]), expected, rtol=3e-7, atol=0
    )


def test_comfy_kitchens_tiles_are_ours(make_packed: Make) -> None:
    from comfy_kitchen.float_utils import to_blocked

    source = make_packed(200, 144)
    blocked = to_blocked(source.held["a.weight"].q.scales.view(torch.uint8).float(), flatten=False)
    padded = stored(source, "comfyui")["a.weight_scale"]
    assert torch.equal(padded[:, :].view(torch.uint8).reshape(-1).float(), blocked.reshape(-1))


@pytest.mark.parametrize("shape", SHAPES)
def test_lightx2v_computes_our_product_of_scales(make_packed: Make, shape: tuple[int, int]) -> None:
    """As its loader does, from the absmax and from alpha."""
    source = make_packed(*shape, input_scale=INPUT)
    t, g = stored(source, "lightx2v"), source.held["a.weight"].q.global_scale
    torch.testing.assert_close(t["a.alpha"], INPUT * g)
    igs = (2688.0 / t["a.input_absmax"]).float()
    torch.testing.assert_close(t["a.input_global_scale"], igs)
    torch.testing.assert_close(1.0 / (igs * t["a.weight_global_scale"]), t["a.alpha"])
    tall, wide = -(-shape[0] // 128) * 128, -(-shape[1] // 64) * 4
    assert t["a.weight_scale"].shape == (tall, wide)
    flat = nvfp4.swizzle_scales(source.held["a.weight"].q.scales)
    assert torch.equal(as_bytes(t["a.weight_scale"]), as_bytes(flat))


@pytest.mark.parametrize("name", sorted({name.split(".")[0] for name in GOLDEN}))
def test_longlive_bytes_are_those_of_the_fouroversix_reference(name: str) -> None:
    golden = {k.split(".")[2]: v for k, v in GOLDEN.items() if k.startswith(f"{name}.mse.")}
    w = GOLDEN[f"{name}.input"]
    q = nvfp4.quantize(w, block_rule="four_over_six")
    t = stored(PackedDict({"a.weight": w}, {"a.weight": Held(q)}), "longlive-4o6")
    assert torch.equal(t["a.quantized_weight_values"], golden["codes"])
    scales = t["a.quantized_weight_scale_factors"]
    assert torch.equal(scales.view(torch.uint8), golden["scales_swizzled"])
    if golden["amax"] > 0:
        torch.testing.assert_close(t["a.quantized_weight_amax"], golden["amax"], rtol=3e-7, atol=0)
    assert t["a.quantized_weight_metadata"].tolist() == [*w.shape] * 2


def test_longlive_pads_rows_to_128_and_columns_to_64(make_packed: Make) -> None:
    t = stored(make_packed(130, 80), "longlive-4o6")
    codes = t["a.quantized_weight_values"]
    assert codes.shape == (256, 64) and not codes[130:].any() and not codes[:, 40:].any()
    assert t["a.quantized_weight_scale_factors"].shape == (256 * 8,)
    assert t["a.quantized_weight_metadata"].tolist() == [130, 80, 256, 128]


@settings(max_examples=60, deadline=None)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    rows=st.integers(1, 300),
    blocks=st.integers(1, 20),
    rule=st.sampled_from(nvfp4.BLOCK_RULES),
    seed=st.integers(0, 1000),
    static=st.booleans(),
)
def test_in_and_out_and_in_again_changes_nothing(
    make_packed: Make, layout: str, rows: int, blocks: int, rule: str, seed: int, static: bool
) -> None:
    facts = {"input_scale": torch.tensor(0.001 + seed / 7)} if static else {}
    source = make_packed(rows, 16 * blocks, rule=rule, seed=seed, **facts)
    metadata = {"quantization.scale_rule": "mse"}
    first = stored(source, layout)
    seen, _ = unpack(DictSource(first), metadata, PATH, layout=layout)
    again = stored(seen, layout)
    assert first.keys() == again.keys()
    for name, tensor in first.items():
        if tensor.numel() > 1:  # numbers are compared as they decode, below
            assert torch.equal(as_bytes(tensor), as_bytes(again[name])), name
    final, _ = unpack(DictSource(again), metadata, PATH, layout=layout)
    packed, same, q = seen.packed("a.weight"), final.packed("a.weight"), source.held["a.weight"].q
    assert packed is not None and same is not None
    assert torch.equal(packed.read_rows(0, rows)[0], q.codes)
    assert torch.equal(as_bytes(packed.read_rows(0, rows)[1]), as_bytes(q.scales))
    assert torch.equal(same.global_scale(), packed.global_scale())
    torch.testing.assert_close(packed.global_scale(), q.global_scale, rtol=2e-7, atol=0)
    if static and LAYOUTS[layout].inputs:
        assert torch.equal(final.read("a.input_scale"), seen.read("a.input_scale"))


def test_scales_without_an_exact_reciprocal_are_counted(make_packed: Make) -> None:
    source = make_packed(16, 16)
    exact = StoredSource(source, LAYOUTS["modelopt"])
    assert exact.inexact() == 0 and exact.layers() == ("a",)
    g = torch.tensor(0.9)
    while any(1 / torch.tensor(c) == g for c in near(1 / g)):
        g = torch.nextafter(g, torch.tensor(2.0))
    q = source.held["a.weight"].q._replace(global_scale=g)
    held = PackedDict({"a.weight": torch.zeros(16, 16)}, {"a.weight": Held(q)})
    assert StoredSource(held, LAYOUTS["compressed-tensors"]).inexact() == 1


def near(value: Tensor) -> list[float]:
    bits = value.view(torch.int32)
    return [(bits + step).view(torch.float32).item() for step in range(-20, 21)]


def test_what_is_not_packed_stays_and_facts_go_where_the_layout_has_them(
    make_packed: Make,
) -> None:
    facts = {"input_scale": INPUT, "pre_quant_scale": torch.ones(32)}
    source = make_packed(16, 32, **facts)
    assert torch.equal(stored(source, "comfyui")["b.weight"], source.read("b.weight"))
    assert "a.pre_quant_scale" in stored(source, "modelopt")
    assert not any("scale_2" in n or "pre_quant" in n for n in stored(source, "lightx2v"))
    assert not any("input" in name for name in stored(source, "longlive-4o6"))
    assert stored(source, "modelopt")["a.input_scale"] == INPUT
    assert stored(source, "compressed-tensors")["a.input_global_scale"].shape == (1,)
