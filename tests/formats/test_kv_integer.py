"""Integer pages against torchao's affine quantization, which is KIVI's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchao.quantization.quant_primitives import (
    MappingType,
    _choose_qparams_affine_tinygemm,
    _dequantize_affine_tinygemm,
    _quantize_affine_tinygemm,
)

from llvq.errors import CacheError
from llvq.formats.kv_integer import GROUP, dequantize, pack, quantize, specs, unpack

BITS = pytest.mark.parametrize("bits", [4, 2])
TOKENS, HEADS, WIDTH = 7, 3, 2 * GROUP


def chunk(seed: int = 0) -> Tensor:
    """Keys as they are found: an offset and a size of its own for every channel."""
    random = torch.Generator().manual_seed(seed)
    offset, size = torch.randn(2, WIDTH, generator=random)
    x = torch.randn(TOKENS, HEADS, WIDTH, generator=random)
    return (x * size.exp() + 3 * offset).bfloat16()


@BITS
def test_codes_and_values_are_those_of_torchao(bits: int) -> None:
    """tinygemm's primitives: its zero is the middle of the range, which fp32 holds exactly."""
    x, highest, block = chunk(), 2**bits - 1, (1, 1, GROUP)
    codes, scale, zero = quantize(x, bits)
    middle = zero.float() + scale.float() * 2 ** (bits - 1)
    args = (block, scale.float(), middle, torch.uint8, 0, highest)
    theirs = _quantize_affine_tinygemm(x.float(), *args)
    assert torch.equal(codes, theirs)
    values = _dequantize_affine_tinygemm(theirs, *args, output_dtype=torch.float32)
    torch.testing.assert_close(dequantize(codes, scale, zero), values)
    chosen, _ = _choose_qparams_affine_tinygemm(
        x.float(), MappingType.ASYMMETRIC, block, torch.uint8, 0, highest
    )
    torch.testing.assert_close(scale.float(), chosen.reshape_as(scale), rtol=2**-8, atol=0)


@BITS
@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=1, max_size=GROUP),
    power=st.integers(-30, 30),
)
def test_no_value_moves_by_more_than_half_a_step(
    bits: int, values: list[float], power: int
) -> None:
    x = torch.tensor((values * GROUP)[:GROUP]).ldexp(torch.tensor(power)).bfloat16()
    codes, scale, zero = quantize(x, bits)
    back, highest = dequantize(codes, scale, zero), 2**bits - 1
    # The stored scale may be too small for the range by half a unit of its last place.
    limit = scale.float() * (0.5 + highest * 2**-8)
    assert ((back - x.float()).abs() <= limit + x.float().abs() * 2**-20).all()
    assert back.min() == x.float().min()


@BITS
def test_a_group_of_one_value_is_exact(bits: int) -> None:
    x = torch.tensor([0.0, -0.0, 3.0, -1e-30, 1e30]).bfloat16().repeat_interleave(GROUP)
    codes, scale, zero = quantize(x, bits)
    assert not codes.any() and not scale.any()
    assert torch.equal(dequantize(codes, scale, zero), x.float())


@BITS
@pytest.mark.parametrize("spoil", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_spoils_its_own_group_alone(bits: int, spoil: float) -> None:
    x = chunk()
    clean = dequantize(*quantize(x, bits))
    x[2, 1, 5] = spoil
    codes, scale, zero = quantize(x, bits)
    back = dequantize(codes, scale, zero)
    assert back[2, 1, :GROUP].isnan().all()
    assert codes.max() <= 2**bits - 1
    back[2, 1, :GROUP] = clean[2, 1, :GROUP]
    assert torch.equal(back, clean)


@pytest.mark.parametrize(
    ("bits", "codes", "packed"),
    [(4, [1, 2, 15, 0], [0x21, 0x0F]), (2, [1, 2, 3, 0, 0, 0, 0, 3], [0b00111001, 0b11000000])],
)
def test_the_first_code_is_in_the_lowest_bits(
    bits: int, codes: list[int], packed: list[int]
) -> None:
    given = torch.tensor(codes, dtype=torch.uint8)
    assert pack(given, bits).tolist() == packed
    assert unpack(pack(given, bits), bits).tolist() == codes


@BITS
def test_packing_keeps_every_code(bits: int) -> None:
    codes = torch.randint(2**bits, (3, 5, WIDTH), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (3, 5, WIDTH * bits // 8)
    assert torch.equal(unpack(packed, bits), codes)


@pytest.mark.parametrize(("bits", "effective"), [(4, 4.5), (2, 2.5)])
def test_scale_and_zero_are_counted(bits: int, effective: float) -> None:
    found = specs(bits, 30, 4, 7040, 24, 128, torch.bfloat16)
    nbytes = sum(torch.Size(shape).numel() * dtype.itemsize for _, dtype, shape in found)
    assert nbytes * 8 == effective * 30 * 2 * 4 * 7040 * 24 * 128


@BITS
def test_heads_must_hold_whole_groups(bits: int) -> None:
    with pytest.raises(CacheError, match=f"INT{bits} cache cannot hold heads of 96 channels"):
        specs(bits, 1, 1, 1, 1, 96, torch.bfloat16)
