"""NVFP4 against the fouroversix goldens, public quantizers, and at its edges."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llvq.errors import FormatError
from llvq.formats import nvfp4

GOLDENS = load_file(Path(__file__).parents[1] / "data" / "nvfp4_4over6.safetensors")
INPUTS = ("gaussian", "outlier", "student_t", "zero_block", "all_zero")
MIDPOINTS = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])


def as_bytes(t: Tensor) -> Tensor:
    return t.reshape(-1).view(torch.uint8)


def decode(q: nvfp4.Nvfp4, dtype: torch.dtype = torch.float32) -> Tensor:
    return nvfp4.dequantize(*q, dtype)


def random_weight(seed: int, rows: int = 8, width: int = 64, scale: float = 0.02) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(("rule", "theirs"), [("max", "static_6"), ("four_over_six", "mse")])
def test_bytes_equal_fouroversix(name: str, rule: str, theirs: str) -> None:
    q = nvfp4.quantize(GOLDENS[f"{name}.input"], block_rule=rule)
    golden = f"{name}.{theirs}"
    assert torch.equal(as_bytes(q.codes), GOLDENS[f"{golden}.codes"].flatten())
    assert torch.equal(as_bytes(q.scales), GOLDENS[f"{golden}.scales"].flatten())
    swizzled = nvfp4.swizzle_scales(q.scales)
    assert torch.equal(as_bytes(swizzled), GOLDENS[f"{golden}.scales_swizzled"])
    amax = GOLDENS[f"{golden}.amax"].squeeze()
    assert torch.equal(nvfp4.global_scale(amax, rule), q.global_scale)


def modelopt(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    module = pytest.importorskip("modelopt.torch.quantization.qtensor")
    q, scales, g = module.NVFP4QTensor.quantize(x.clone(), nvfp4.BLOCK)
    return q._quantized_data, scales, g


def diffusers_bfl(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return pytest.importorskip("diffusers.quantizers.bfl.utils").quantize_nvfp4(x)


def torchao(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    module = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    g = module.per_tensor_amax_to_scale(x.abs().max())
    t = module.NVFP4Tensor.to_nvfp4(x, per_tensor_scale=g)
    return t.qdata, t.scale, t.per_tensor_scale


def signed_codes(codes: Tensor) -> Tensor:
    """The order of the code on the number line; both zeros are 0."""
    nibbles = nvfp4.unpack(codes).to(torch.int64)
    return torch.where(nibbles >= 8, -(nibbles & 7), nibbles)


@pytest.mark.parametrize("oracle", [modelopt, diffusers_bfl, torchao])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", INPUTS[:3])
def test_public_quantizers_agree_but_at_midpoints(oracle, dtype: torch.dtype, name: str) -> None:
    x = GOLDENS[f"{name}.input"].to(dtype)
    if dtype == torch.float32:
        x = x * 1.1
    q = nvfp4.quantize(x)
    codes, scales, g = oracle(x)
    assert torch.allclose(g.float().reshape(()), q.global_scale, rtol=3e-7, atol=0)
    mine = q.scales.view(torch.uint8).int()
    theirs = scales.view(torch.uint8).int().view_as(mine)
    normal = q.scales.float() >= 2.0**-6
    ideal = x.float().unflatten(-1, (-1, 16)).abs().amax(-1) / 6 / q.global_scale
    halfway = (q.scales.float() + scales.float().view_as(q.scales)) / 2
    at_boundary = ((ideal - halfway).abs() <= 1e-6 * ideal) & ((mine - theirs).abs() == 1)
    assert ((mine == theirs) | at_boundary)[normal].all()

    same = (normal & (mine == theirs)).repeat_interleave(16, -1)
    ratio = x.float() / (q.scales.float() * q.global_scale).repeat_interleave(16, -1)
    distance = (ratio.abs().unsqueeze(-1) / MIDPOINTS - 1).abs().amin(-1)
    apart = (signed_codes(q.codes) - signed_codes(codes).view_as(ratio)).abs()
    assert (apart[same & (distance > 1e-6)] == 0).all()
    assert (apart[same] <= 1).all()


def test_codes_equal_ml_dtypes_on_every_tie() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    grid = torch.arange(-56, 56) / 8  # every value, midpoint and quarter step up to +-7
    x = torch.cat((grid, torch.full((16,), 6.0))).reshape(-1, 16)
    q = nvfp4.quantize(x, global_scale=torch.tensor(1.0))
    step = q.scales.float().repeat_interleave(16, -1)
    expected = torch.from_numpy((x / step).numpy().astype(ml_dtypes.float4_e2m1fn).astype("f4"))
    assert torch.equal(decode(q), expected * step)


def test_e2m1_values() -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    scales = torch.ones(1).to(torch.float8_e4m3fn)
    values = nvfp4.dequantize(nvfp4.pack(codes), scales, torch.tensor(1.0), torch.float32)
    expected = torch.tensor(nvfp4.E2M1_VALUES)
    assert torch.equal(values, torch.cat((expected, -expected)))
    assert torch.signbit(values[8])


@pytest.mark.parametrize("rule", nvfp4.BLOCK_RULES)
def test_all_zero_tensor(rule: str) -> None:
    q = nvfp4.quantize(torch.zeros(4, 32, dtype=torch.bfloat16), block_rule=rule)
    assert q.global_scale == 1
    assert not as_bytes(q.scales).any() and not q.codes.any()
    assert torch.equal(decode(q), torch.zeros(4, 32))


@pytest.mark.parametrize("rule", nvfp4.BLOCK_RULES)
def test_zero_block(rule: str) -> None:
    x = random_weight(0)
    x[3, 16:32] = -0.0
    q = nvfp4.quantize(x, block_rule=rule)
    assert q.scales[3, 1].float() == 0 and not q.codes[3, 8:16].any()


def test_block_that_underflows_has_codes_zero() -> None:
    x = torch.full((1, 32), 1e-6)
    x[0, 16:], x[0, 0] = -1e-6, 1e3
    q = nvfp4.quantize(x)
    assert q.scales[0, 1].float() == 0 and not q.codes[0, 8:].any()


@pytest.mark.parametrize("rule", nvfp4.BLOCK_RULES)
def test_subnormal_scale_saturates_and_keeps_the_block_maximum(rule: str) -> None:
    """The ideal scale 1.45 * 2**-9 rounds down, so that the largest ratio is 8.7."""
    x = torch.tensor([[6.0, 6.0, 2.9] + [0.0] * 13]) * 1.45 * 2**-9
    q = nvfp4.quantize(x, block_rule=rule, global_scale=torch.tensor(1.0))
    if rule == "max":
        assert nvfp4.unpack(q.codes)[0, :3].tolist() == [7, 7, 6]
    values = decode(q)[0]
    assert values[0] >= 6 * 2**-9 and values[0] == values[1] == values.max()


def test_signed_zeros() -> None:
    x = torch.tensor([[-0.0, -1e-3, 1e-3, 6.0] + [0.0] * 12])
    q = nvfp4.quantize(x)
    assert nvfp4.unpack(q.codes)[0, :4].tolist() == [0, 8, 0, 7]


@pytest.mark.parametrize("rule", nvfp4.BLOCK_RULES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_input_is_visible(rule: str, bad: float) -> None:
    x = random_weight(1)
    x[2, 5] = bad
    dynamic = nvfp4.quantize(x, block_rule=rule)
    assert dynamic.global_scale.isnan() and decode(dynamic).isnan().all()
    static = decode(nvfp4.quantize(x, block_rule=rule, global_scale=torch.tensor(1e-5)))
    assert static[2, :16].isnan().all()
    static[2, :16] = 0
    assert static.isfinite().all()


@pytest.mark.parametrize("rule", nvfp4.BLOCK_RULES)
@pytest.mark.parametrize("amax", [1e-30, 1e-36, 1e-38, 1e-40, 3e38])
def test_extreme_magnitudes(rule: str, amax: float) -> None:
    x = random_weight(2, scale=1.0)
    x = x / x.abs().max() * amax
    values = decode(nvfp4.quantize(x, block_rule=rule))
    # An E4M3 subnormal is half a step off at worst, below the smallest of which all is zero.
    floor = 6 * 2.0**-10 * nvfp4.GLOBAL_SCALE_MIN
    assert values.isfinite().all()
    assert ((values - x).abs() <= 0.3 * x.abs().max() + floor).all()


@pytest.mark.parametrize("rule", nvfp4.BLOCK_RULES)
def test_a_static_scale_saturates(rule: str) -> None:
    x = torch.full((1, 16), 1e4)
    q = nvfp4.quantize(-x, block_rule=rule, global_scale=torch.tensor(1.0))
    assert torch.equal(decode(q), torch.full((1, 16), -6.0 * 448))


@pytest.mark.parametrize("rule", nvfp4.BLOCK_RULES)
def test_given_scale_is_the_dynamic_one(rule: str) -> None:
    x = random_weight(3).bfloat16()
    g = nvfp4.global_scale(x.abs().max(), rule)
    one, two = (
        nvfp4.quantize(x, block_rule=rule),
        nvfp4.quantize(x, block_rule=rule, global_scale=g),
    )
    assert all(torch.equal(as_bytes(a), as_bytes(b)) for a, b in zip(one, two, strict=True))


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x = random_weight(4, rows=5, width=80)
    whole = nvfp4.quantize(x, block_rule="four_over_six")
    monkeypatch.setattr(nvfp4, "CPU_CHUNK_BLOCKS", 7)
    parts = nvfp4.quantize(x, block_rule="four_over_six")
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(as_bytes(whole.scales), as_bytes(parts.scales))


def test_leading_dimensions_and_strides() -> None:
    x = random_weight(5, rows=24, width=32).view(2, 3, 4, 32)
    q = nvfp4.quantize(x.transpose(0, 2))
    assert q.codes.shape == (4, 3, 2, 16) and q.scales.shape == (4, 3, 2, 2)
    assert torch.equal(decode(q).transpose(0, 2), decode(nvfp4.quantize(x)))
    assert nvfp4.quantize(torch.empty(0, 32)).codes.shape == (0, 16)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(4, 24),
        torch.zeros(()),
        torch.zeros(4, 16, dtype=torch.float64),
        torch.zeros(4, 16, dtype=torch.int32),
    ],
)
def test_refuses_what_it_cannot_hold(x: Tensor) -> None:
    with pytest.raises(FormatError, match="cannot quantize"):
        nvfp4.quantize(x)


def test_refuses_unknown_rules_and_mismatched_parts() -> None:
    with pytest.raises(FormatError, match="unknown block rule 'mse'"):
        nvfp4.quantize(torch.zeros(1, 16), block_rule="mse")
    q = nvfp4.quantize(random_weight(7))
    with pytest.raises(FormatError, match="do not belong together"):
        nvfp4.dequantize(q.codes, q.scales[:, :1], q.global_scale, torch.float32)
    with pytest.raises(FormatError, match="cannot cover segments"):
        nvfp4.dequantize(*q, torch.float32, segments=(3, 5))


def test_segments_scale_their_own_rows() -> None:
    parts = [nvfp4.quantize(random_weight(i, rows=i + 1, scale=10.0**i)) for i in range(3)]
    joined = nvfp4.Nvfp4(
        *(torch.cat([p[i].reshape(-1, *p[i].shape[1:]) for p in parts]) for i in range(3))
    )
    values = nvfp4.dequantize(*joined, torch.bfloat16, segments=(1, 2, 3))
    assert torch.equal(values, torch.cat([decode(p, torch.bfloat16) for p in parts]))
