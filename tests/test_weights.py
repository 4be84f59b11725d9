"""Carrying out weight records in memory."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from llvq import weights
from llvq.calibration import LayerFacts
from llvq.errors import CheckpointError, FormatError
from llvq.formats import nvfp4
from llvq.residual import residual_of
from llvq.sources import DictSource, TensorSpec
from llvq.weights import WeightRecord, materialize, target_specs

A = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
B = torch.randn(3, 32, generator=torch.Generator().manual_seed(1)).mul(9).bfloat16()
SOURCE = DictSource({"a": A, "b": B, "bias": A[:, 0], "one": torch.tensor(2.5), "int": A[0].int()})


@pytest.fixture(params=[1 << 24, 64])
def _small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "CHUNK_ELEMENTS", request.param)


def raw(t: Tensor) -> Tensor:
    return t.reshape(-1).view(torch.uint8)


def check_specs(record: WeightRecord, targets: dict[str, Tensor]) -> None:
    got = {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in targets.items()}
    assert got == target_specs(record, SOURCE)


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("name", ["a", "bias", "one", "int"])
def test_copy(name: str) -> None:
    record = WeightRecord("t", "copy", (name,))
    targets = materialize(record, SOURCE)
    check_specs(record, targets)
    assert torch.equal(targets["t"], SOURCE.read(name))


@pytest.mark.usefixtures("_small_chunks")
def test_concat_casts() -> None:
    record = WeightRecord("t", "concat", ("b", "a", "b"), dtype=torch.float32)
    targets = materialize(record, SOURCE)
    check_specs(record, targets)
    assert torch.equal(targets["t"], torch.cat((B, A, B)).float())


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("rule", nvfp4.BLOCK_RULES)
def test_quantize_joins_sources_with_their_own_scale(rule: str) -> None:
    record = WeightRecord("t", "quantize", ("a", "b"), block_rule=rule)
    targets = materialize(record, SOURCE)
    check_specs(record, targets)
    parts = [nvfp4.quantize(x, block_rule=rule) for x in (A, B)]
    assert torch.equal(targets["t.codes"], torch.cat([p.codes for p in parts]))
    assert torch.equal(raw(targets["t.scales"]), torch.cat([raw(p.scales) for p in parts]))
    assert torch.equal(targets["t.global_scale"], torch.stack([p.global_scale for p in parts]))


S, DOWN, UP = torch.rand(32) + 0.2, torch.randn(4, 32), torch.randn(6, 4)
AMAX = A.float().unflatten(1, (-1, 16)).abs().amax(-1) * torch.tensor([1.0, 0.6])
FACTS = {"s": S, "down": DOWN, "up": UP, "amax": AMAX, "scale": torch.tensor(0.5)}


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("rule", nvfp4.BLOCK_RULES)
def test_quantize_takes_smoothing_and_branch_out_of_their_own_source(rule: str) -> None:
    known = LayerFacts(pre_quant_scale="s", lora_down="down", lora_up="up", rank=4)
    source = DictSource({"a": A, "b": B, **FACTS})
    record = WeightRecord("t", "quantize", ("b", "a"), block_rule=rule, facts=(LayerFacts(), known))
    targets = materialize(record, source)
    parts = [
        nvfp4.quantize(x, block_rule=rule)
        for x in (B, residual_of(source, "a", known, None).read("a"))
    ]
    assert torch.equal(targets["t.codes"], torch.cat([p.codes for p in parts]))
    assert torch.equal(raw(targets["t.scales"]), torch.cat([raw(p.scales) for p in parts]))
    assert torch.equal(targets["t.global_scale"], torch.stack([p.global_scale for p in parts]))


@pytest.mark.usefixtures("_small_chunks")
def test_block_magnitudes_give_the_scales_of_modelopt() -> None:
    """Oracle: modelopt's static quantizer. Its tensor scale is that of the weight's own maximum."""
    tensor = pytest.importorskip("modelopt.torch.quantization.qtensor").NVFP4QTensor
    record = WeightRecord(
        "t", "quantize", ("a",), block_rule="max", facts=(LayerFacts(weight_amax="amax"),)
    )
    targets = materialize(record, DictSource({"a": A, **FACTS}))
    quantizer = SimpleNamespace(block_sizes={-1: 16}, _amax=AMAX, global_amax=A.float().abs().max())
    scales, g = tensor.get_weights_scaling_factor_from_quantizer(quantizer, A)
    packed, _, _ = tensor.quantize(A.float(), 16, scales, g)
    torch.testing.assert_close(targets["t.global_scale"], g.reshape(1))
    assert torch.equal(raw(targets["t.scales"]), raw(scales))
    assert torch.equal(targets["t.codes"], packed._quantized_data)


def test_block_magnitudes_beyond_the_weight_are_reached() -> None:
    """The 4 of four-over-six is a magnitude of 1.5 times the block's: no scale may saturate."""
    facts = (LayerFacts(weight_amax="amax"),)
    record = WeightRecord("t", "quantize", ("a",), block_rule="max", facts=facts)
    targets = materialize(record, DictSource({"a": A, "amax": AMAX * 3}))
    reached = targets["t.scales"].float() * targets["t.global_scale"] * 6
    torch.testing.assert_close(reached, AMAX * 3, rtol=2**-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_scale_is_one_fp32_number_times_a_factor(dtype: torch.dtype) -> None:
    record = WeightRecord("t", "scale", ("scale",), factor=1.75)
    source = DictSource({"scale": torch.tensor(0.5, dtype=dtype)})
    targets = materialize(record, source)
    assert targets["t"].dtype == torch.float32 and targets["t"] == 0.875
    assert target_specs(record, source) == {"t": TensorSpec(torch.float32, ())}


@pytest.mark.parametrize("bad", [0.0, -1.0, torch.nan, torch.inf])
def test_a_scale_that_is_not_positive_is_named(bad: float) -> None:
    with pytest.raises(FormatError, match="tensor scale "):
        materialize(
            WeightRecord("t", "scale", ("scale",)), DictSource({"scale": torch.tensor(bad)})
        )


def test_multiply_rounds_operands_and_product() -> None:
    source = DictSource({"s": S, "n": S + 1})
    record = WeightRecord("t", "multiply", ("n", "s"), dtype=torch.bfloat16)
    targets = materialize(record, source)
    wanted = ((S + 1).bfloat16().double() * S.bfloat16().double()).float().bfloat16()
    assert torch.equal(targets["t"], wanted)
    assert target_specs(record, source) == {"t": TensorSpec(torch.bfloat16, (32,))}


@pytest.mark.parametrize("op", ["copy", "concat", "quantize"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_weights_are_named(op: str, bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "CHUNK_ELEMENTS", 64)
    spoiled = A.clone()
    spoiled[4, 7] = bad
    record = WeightRecord("t", op, ("w",), block_rule="max")
    with pytest.raises(FormatError, match="tensor w holds a NaN or an Inf") as caught:
        materialize(record, DictSource({"w": spoiled}))
    assert caught.value.where == "row 4"


def test_a_cast_that_overflows_is_named() -> None:
    record = WeightRecord("t", "copy", ("w",), dtype=torch.float16)
    with pytest.raises(FormatError, match="tensor w"):
        materialize(record, DictSource({"w": torch.tensor([1.0, 1e6])}))


def test_fp8_is_copied() -> None:
    w = torch.ones(3, 4).to(torch.float8_e4m3fn)
    got = materialize(WeightRecord("t", "copy", ("w",)), DictSource({"w": w}))["t"]
    assert torch.equal(raw(got), raw(w))


@pytest.mark.parametrize(
    "record",
    [
        WeightRecord("t", "copy", ("a", "b")),
        WeightRecord("t", "concat", ()),
        WeightRecord("t", "concat", ("a", "bias")),
        WeightRecord("t", "concat", ("bias", "int")),
        WeightRecord("t", "concat", ("one",)),
        WeightRecord("t", "quantize", ("a",)),
        WeightRecord("t", "quantize", ("bias",), block_rule="max"),
        WeightRecord("t", "quantize", ("int",), block_rule="max"),
        WeightRecord("t", "quantize", ("a", "b"), block_rule="max", facts=(LayerFacts(),)),
        WeightRecord("t", "scale", ("one", "one")),
        WeightRecord("t", "scale", ("bias",)),
        WeightRecord("t", "multiply", ("a", "a")),
        WeightRecord("t", "multiply", ("bias", "int")),
    ],
)
def test_records_that_do_not_fit(record: WeightRecord) -> None:
    with pytest.raises(FormatError, match="cannot make weight t"):
        target_specs(record, SOURCE)


def test_missing_source() -> None:
    with pytest.raises(CheckpointError, match="no tensor 'zzz'"):
        target_specs(WeightRecord("t", "copy", ("zzz",)), SOURCE)


class PackedSource(DictSource):
    """A source that holds `a` in NVFP4, with scales of its own."""

    def __init__(self, held: nvfp4.Nvfp4) -> None:
        super().__init__({"a": A, "b": B})
        self.held = held

    def packed(self, name: str) -> PackedRows | None:
        return PackedRows(self.held) if name == "a" else None


@dataclass(frozen=True)
class PackedRows:
    held: nvfp4.Nvfp4

    def global_scale(self) -> Tensor:
        return self.held.global_scale

    def read_rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.held.codes[start:stop], self.held.scales[start:stop]


@pytest.mark.usefixtures("_small_chunks")
def test_a_packed_source_is_taken_over_and_its_neighbour_quantized() -> None:
    held = nvfp4.quantize(A, block_rule="mse_sweep")
    record = WeightRecord("t", "quantize", ("b", "a"), block_rule="max")
    targets = materialize(record, PackedSource(held))
    fresh = nvfp4.quantize(B, block_rule="max")
    assert torch.equal(targets["t.codes"], torch.cat([fresh.codes, held.codes]))
    assert torch.equal(raw(targets["t.scales"]), torch.cat([raw(fresh.scales), raw(held.scales)]))
    assert torch.equal(
        targets["t.global_scale"], torch.stack([fresh.global_scale, held.global_scale])
    )


@pytest.mark.parametrize("part", ["scales", "global_scale"])
def test_a_packed_source_with_a_nan_is_named(part: str) -> None:
    held = nvfp4.quantize(A)
    spoiled = getattr(held, part).clone()
    spoiled.view(-1).view(torch.uint8)[-1] = 0x7F
    spoiled.view(-1).view(torch.uint8)[-2:-1] = 0xFF
    record = WeightRecord("t", "quantize", ("a",), block_rule="max")
    with pytest.raises(FormatError, match=r"tensor a \(its (block scales|global scale)\)"):
        materialize(record, PackedSource(held._replace(**{part: spoiled})))
