"""A packed file seen as weights and facts; and what is damaged, mixed or missing in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from llvq.calibration import calibration_of
from llvq.checkpoints.longlive import read_dit
from llvq.checkpoints.packed import PackedSource, unpack
from llvq.checkpoints.packed_layouts import LAYOUTS
from llvq.checkpoints.source import open_tensors
from llvq.errors import CheckpointError, FormatError, LlvqError
from llvq.formats import nvfp4
from llvq.models.config import DitConfig
from llvq.sources import DictSource, TensorSource, TensorSpec
from llvq.weights import WeightRecord, materialize

PATH = Path("m.safetensors")
FP8 = torch.float8_e4m3fn


def q(rows: int = 48, columns: int = 96) -> nvfp4.Nvfp4:
    generator = torch.Generator().manual_seed(rows + columns)
    return nvfp4.quantize(torch.randn(rows, columns, generator=generator))


def modelopt(rows: int = 48, columns: int = 96, **more: Tensor) -> dict[str, Tensor]:
    """A file of ModelOpt's with one packed linear and one in bf16."""
    packed = q(rows, columns)
    tensors = {
        "a.weight": packed.codes,
        "a.weight_scale": packed.scales,
        "a.weight_scale_2": packed.global_scale,
        "a.bias": torch.ones(rows, dtype=torch.bfloat16),
        "b.weight": torch.ones(4, 4, dtype=torch.bfloat16),
        "norm.weight": torch.ones(4, dtype=torch.bfloat16),
    }
    return tensors | {name.replace("__", "."): tensor for name, tensor in more.items()}


def opened(tensors: dict[str, Tensor]) -> tuple[TensorSource, tuple[str, ...]]:
    return unpack(DictSource(tensors), {}, PATH)


def test_a_packed_linear_is_a_weight_in_bf16_that_is_also_packed() -> None:
    source, notes = opened(modelopt())
    packed = q()
    expected = nvfp4.dequantize(packed.codes, packed.scales, packed.global_scale, torch.bfloat16)
    assert set(source.names()) == {"a.weight", "a.bias", "b.weight", "norm.weight"}
    assert source.spec("a.weight").shape == (48, 96)
    assert torch.equal(source.read("a.weight"), expected)
    assert torch.equal(source.read_rows("a.weight", 5, 9), expected[5:9])
    assert source.packed("b.weight") is None
    assert notes == (
        "recognised: ModelOpt NVFP4, 1 linears packed, 1 in bfloat16, no input scales",
    )


def test_it_is_taken_over_to_the_byte() -> None:
    source, _ = opened(modelopt())
    record = WeightRecord("t", "quantize", ("a.weight",), block_rule="four_over_six")
    made, packed = materialize(record, source), q()
    assert torch.equal(made["t.codes"], packed.codes)
    assert torch.equal(made["t.scales"].view(torch.uint8), packed.scales.view(torch.uint8))
    assert torch.equal(made["t.global_scale"], packed.global_scale.reshape(1))


def test_what_is_known_of_the_input_becomes_facts() -> None:
    source, notes = opened(
        modelopt(
            a__input_scale=torch.tensor([0.5]),
            a__pre_quant_scale=torch.ones(96, dtype=torch.bfloat16),
            a__svdquant_lora_a=torch.ones(3, 96, dtype=torch.bfloat16),
            a__svdquant_lora_b=torch.ones(48, 3, dtype=torch.bfloat16),
        )
    )
    facts = calibration_of(source)["a"]
    assert facts.packed and facts.rank == 3 and facts.pre_quant_scale == "a.pre_quant_scale"
    assert source.read("a.input_scale") == 0.5 and source.read("a.input_scale").shape == ()
    assert "static input scales" in notes[0]


@pytest.mark.parametrize(
    ("name", "suffix", "stored"),
    [
        ("compressed-tensors", "input_global_scale", 2.0),
        ("lightx2v", "input_global_scale", 2.0),
        ("lightx2v", "input_absmax", 1344.0),
        ("comfyui", "input_scale", 0.5),
    ],
)
def test_an_input_scale_in_the_words_of_each_tool(name: str, suffix: str, stored: float) -> None:
    layout = LAYOUTS[name]
    packed = q(128, 64)
    tensors = {
        f"a.{layout.codes}": packed.codes,
        f"a.{layout.scales}": packed.scales,
        f"a.{layout.global_scale}": torch.ones(layout.scalar),
        f"a.{suffix}": torch.full(layout.scalar, stored),
    }
    source, _ = unpack(DictSource(tensors), {}, PATH, layout=name)
    assert source.read("a.input_scale") == 0.5


BROKEN: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "a.weight_scale is missing": lambda t: t.pop("a.weight_scale"),
    "c.weight_scale_2 belongs to no packed weight": lambda t: t.update(
        {"c.weight_scale_2": torch.ones(())}
    ),
    "a.weight is torch.bfloat16, expected torch.uint8": lambda t: t.update(
        {"a.weight": torch.ones(48, 96, dtype=torch.bfloat16)}
    ),
    "b.weight is torch.float8_e4m3fn": lambda t: t.update({"b.weight": torch.ones(4, 4).to(FP8)}),
    "a.input_scale is nan": lambda t: t.update({"a.input_scale": torch.tensor(torch.nan)}),
    "a.input_scale is torch.bfloat16": lambda t: t.update(
        {"a.input_scale": torch.ones((), dtype=torch.bfloat16)}
    ),
    "c.weight_scale_2 is missing": lambda t: t.update({"c.weight": torch.ones(2, 8).byte(),
                                                       "c.weight_scale": torch.ones(2, 1).to(FP8)}),
}  # fmt: skip


@pytest.mark.parametrize("words", BROKEN)
def test_what_is_broken_is_named_with_what_was_expected(words: str) -> None:
    tensors = modelopt()
    BROKEN[words](tensors)
    with pytest.raises(CheckpointError, match=words.replace(".", r"\.")) as caught:
        opened(tensors)
    assert caught.value.where == str(PATH) and caught.value.because and caught.value.fix


def test_a_block_scale_that_is_nan_is_named_with_its_row() -> None:
    tensors = modelopt()
    tensors["a.weight_scale"].view(torch.uint8)[7, 2] = 0x7F
    source, _ = opened(tensors)
    record = WeightRecord("t", "quantize", ("a.weight",), block_rule="max")
    with pytest.raises(FormatError, match=r"a\.weight \(its block scales\)") as caught:
        materialize(record, source)
    assert caught.value.where == "row 7"


class Watched(DictSource):
    """Remembers the largest read."""

    largest = 0

    def read(self, name: str) -> Tensor:
        return self._seen(super().read(name))

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        return self._seen(DictSource.read(self, name)[start:stop])

    def spec(self, name: str) -> TensorSpec:
        tensor = DictSource.read(self, name)
        return TensorSpec(tensor.dtype, tuple(tensor.shape))

    def _seen(self, tensor: Tensor) -> Tensor:
        self.largest = max(self.largest, tensor.nbytes)
        return tensor


@pytest.mark.parametrize("layout", ["modelopt", "comfyui"])
def test_rows_are_read_in_pieces(layout: str) -> None:
    watched = Watched(modelopt(4096, 512))
    packed = PackedSource(watched, LAYOUTS[layout], PATH, full=2688.0)
    watched.largest = 0
    packed.read_rows("a.weight", 1000, 1010)
    assert watched.largest <= 2 * 128 * 512 // 16 + 10 * 256


def of_a_denoiser(config: DitConfig, layout: str) -> dict[str, Tensor]:
    """A whole denoiser in the words of ModelOpt or of LongLive, without llvq's own writer."""
    from llvq.checkpoints.specs import dit_specs

    tensors: dict[str, Tensor] = {}
    for name, shape in dit_specs(config).items():
        w = torch.full(shape, 0.5, dtype=torch.bfloat16)
        layer, _, last = name.rpartition(".")
        if len(shape) != 2 or last != "weight" or not name.startswith("blocks."):
            tensors[name] = w
        elif layout == "modelopt":
            packed = nvfp4.quantize(w)
            tensors[name], tensors[f"{name}_scale"] = packed.codes, packed.scales
            tensors[f"{name}_scale_2"] = packed.global_scale
        else:
            rows, columns = -(-shape[0] // 128) * 128, -(-shape[1] // 64) * 64
            padded = torch.zeros(rows, columns, dtype=torch.bfloat16)
            padded[: shape[0], : shape[1]] = w
            packed = nvfp4.quantize(padded, block_rule="four_over_six")
            values = {"values": packed.codes, "scale_factors": nvfp4.swizzle_scales(packed.scales)}
            values["amax"] = torch.tensor([0.5])
            values["metadata"] = torch.tensor([*shape, rows, columns], dtype=torch.int32)
            tensors |= {f"{layer}.quantized_weight_{k}": v for k, v in values.items()}
    return tensors


@pytest.mark.parametrize("rule", ["mse", "static_6"])
def test_longlives_file_opens_as_a_denoiser(
    tmp_path: Path, dit_config: DitConfig, rule: str
) -> None:
    weights = of_a_denoiser(dit_config, "longlive")
    document = {"generator": {f"model.{name}": t for name, t in weights.items()}}
    document |= {"quantization": {"scale_rule": rule, "weight_scale_rule": None}}
    torch.save(document, tmp_path / "model_4o6.pt")
    checkpoint = read_dit(tmp_path / "model_4o6.pt")
    assert checkpoint.config == dit_config
    assert any("LongLive-2.0 four-over-six, 20 linears packed, 6 in" in n for n in checkpoint.notes)
    packed = checkpoint.tensors.packed("blocks.1.ffn.2.weight")
    assert packed is not None
    torch.testing.assert_close(
        packed.global_scale(), torch.tensor(0.5 / (1536 if rule == "mse" else 2688))
    )


def test_longlives_file_without_its_rule_is_refused(tmp_path: Path, dit_config: DitConfig) -> None:
    torch.save({"generator": of_a_denoiser(dit_config, "longlive")}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"scale rule of m\.pt is unknown"):
        read_dit(tmp_path / "m.pt")


def test_a_folder_of_modelopts_opens_as_a_denoiser(tmp_path: Path, dit_config: DitConfig) -> None:
    save_file(of_a_denoiser(dit_config, "modelopt"), tmp_path / "m.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "modelopt"}}))  # fmt: skip  # noqa: E501
    checkpoint = read_dit(tmp_path)
    assert any("ModelOpt NVFP4, 20 linears packed" in note for note in checkpoint.notes)
    assert torch.equal(
        checkpoint.tensors.read("blocks.0.ffn.0.weight"),
        torch.full((dit_config.ffn_dim, dit_config.dim), 0.5, dtype=torch.bfloat16),
    )


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_comfyuis_prefixes_are_taken_off(
    tmp_path: Path, dit_config: DitConfig, prefix: str
) -> None:
    tensors = of_a_denoiser(dit_config, "modelopt")
    save_file({f"{prefix}{name}": t for name, t in tensors.items()}, tmp_path / "m.safetensors")
    tensors = read_dit(tmp_path / "m.safetensors", layout="modelopt").tensors
    assert tensors.packed("blocks.1.self_attn.o.weight") is not None


DTYPES = st.sampled_from([torch.uint8, torch.int32, torch.bfloat16, torch.float32, FP8])
SUFFIXES = st.sampled_from(sorted({s for x in LAYOUTS.values() for s in (*x.suffixes, x.codes)}))


def every_layout() -> dict[str, Tensor]:
    """A file of one layout or another, before it is damaged."""
    packed = q(48, 96)
    tiles = nvfp4.swizzle_scales(packed.scales)
    return {
        "a.weight": packed.codes,
        "a.weight_scale": tiles.reshape(128, 8),
        "a.weight_scale_2": packed.global_scale,
        "a.comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8),
        "a.bias": torch.ones(48),
        "b.weight": torch.ones(3, 3),
    }


@st.composite
def damage(draw: st.DrawFn) -> dict[str, Tensor]:
    """Some tensors dropped, renamed, cast, reshaped, or with other bytes."""
    tensors = draw(st.sampled_from([modelopt, every_layout]))()
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(sorted(tensors) or ["a.weight"]))
        tensor = tensors.pop(name, torch.ones(2))
        how = draw(st.sampled_from(["drop", "rename", "cast", "reshape", "bytes"]))
        if how == "rename":
            tensors[f"{draw(st.sampled_from('ab'))}.{draw(SUFFIXES)}"] = tensor
        elif how == "cast":
            tensors[name] = tensor.float().to(draw(DTYPES))
        elif how == "reshape":
            shape = draw(st.lists(st.integers(0, 33), max_size=3))
            tensors[name] = torch.zeros(shape, dtype=tensor.dtype)
        elif how == "bytes" and tensor.numel():
            raw = tensor.clone().contiguous().reshape(-1).view(torch.uint8)
            raw[draw(st.integers(0, raw.numel() - 1))] = draw(st.integers(0, 255))
            tensors[name] = raw.view(tensor.dtype).reshape(tensor.shape)
    return tensors or {"x": torch.ones(1)}


@settings(max_examples=400, deadline=2000)
@given(tensors=damage(), layout=st.sampled_from([None, *LAYOUTS]))
def test_a_damaged_file_is_read_or_refused(tensors: dict[str, Tensor], layout: str | None) -> None:
    try:
        source, _ = unpack(DictSource(tensors), {}, PATH, layout=layout)
        for name in source.names():
            value, spec = source.read(name), source.spec(name)
            assert (value.dtype, tuple(value.shape)) == (spec.dtype, spec.shape)
            if packed := source.packed(name):
                codes, scales = packed.read_rows(0, spec.shape[0])
                assert codes.shape == (spec.shape[0], spec.shape[1] // 2)
                assert scales.shape == (spec.shape[0], spec.shape[1] // 16)
                assert packed.global_scale() > 0
        calibration_of(source)
    except LlvqError as error:
        assert error.what and error.fix


@settings(
    max_examples=100, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 900), value=st.integers(0, 255), cut=st.integers(0, 400))
def test_a_file_with_another_byte_is_read_or_refused(
    tmp_path: Path, at: int, value: int, cut: int
) -> None:
    path = tmp_path / "m.safetensors"
    save_file(modelopt(16, 32), path)
    data = bytearray(path.read_bytes())
    data[at % len(data)] = value
    path.write_bytes(data[: len(data) - cut // 4])
    try:
        read_dit(path)
        raise AssertionError("it holds no denoiser")
    except LlvqError:
        pass
    try:
        file = open_tensors(path)
        source, _ = unpack(file, file.metadata, path)
        for name in source.names():
            source.read(name)
    except LlvqError:
        pass
