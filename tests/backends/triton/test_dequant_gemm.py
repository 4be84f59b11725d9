"""Linears that decode NVFP4 in registers: their numbers, and what the compiler makes of them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.backends.triton.build import SHARED_MEMORY
from llvq.backends.triton.dequant_gemm import (
    TILES,
    choose_tile,
    nvfp4_linear_dequant,
    nvfp4_linear_w4a16,
)
from llvq.dialect import nvfp4_linear as w4a4
from llvq.dialect import nvfp4_linear_w4a16 as w4a16
from llvq.errors import TargetError
from llvq.formats import nvfp4
from tests.backends.triton.compiled import compiled, meta

BF16, FP32, FP8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
WIDE, MEDIUM, SMALL = TILES
CASES = pytest.mark.parametrize(
    ("lead", "segments", "features", "bias", "dtype"),
    [
        ((1, 1), (1,), 16, False, BF16),
        ((1, 16), (130,), 80, True, BF16),
        ((2, 65), (112, 32), 320, True, FP32),
        ((129,), (16, 130, 7), 272, False, BF16),
    ],
)


def stacked(randn: Any, rows: tuple[int, ...], features: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of very different size, quantized one by one and stacked."""
    parts = [nvfp4.quantize(randn(count, features) * 4.0**i) for i, count in enumerate(rows)]
    codes, scales = (torch.cat([part[i].view(torch.uint8) for part in parts]) for i in (0, 1))
    return codes, scales.view(FP8), torch.stack([part[2] for part in parts])


def check(op: Any, wrapper: Any, launch: Any, segments: tuple[int, ...], *args: Any) -> None:
    """Within the op's tolerance in each segment, and the same bytes again."""
    args = (*args[:-1], [] if len(segments) == 1 else list(segments), args[-1])
    found, wanted, again = wrapper(launch, *args), op.reference(*args), wrapper(launch, *args)
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    for a, b in zip(found.split(segments, -1), wanted.split(segments, -1), strict=True):
        error = (a.float() - b.float()).abs().max() / b.float().abs().max()
        assert error <= op.tolerance.relative
    assert torch.equal(found.view(torch.uint8), again.view(torch.uint8))


@CASES
def test_w4a16_is_the_linear_of_the_dialect(
    launch: Any, randn: Any, lead: Any, segments: Any, features: int, bias: bool, dtype: Any
) -> None:
    x, w = randn(*lead, features), stacked(randn, segments, features)
    b = randn(sum(segments)) if bias else None
    check(w4a16, nvfp4_linear_w4a16, launch, segments, x, *w, b, BF16)


@CASES
def test_the_emulation_is_the_linear_of_the_dialect(
    launch: Any, randn: Any, lead: Any, segments: Any, features: int, bias: bool, dtype: Any
) -> None:
    x = nvfp4.quantize(randn(*lead, features), block_rule="four_over_six")
    w = stacked(randn, segments, features)
    b = randn(sum(segments), dtype=dtype) if bias else None
    check(w4a4, nvfp4_linear_dequant, launch, segments, *x, *w, b, dtype)


def test_x_must_be_bf16(launch: Any, randn: Any) -> None:
    x, w = randn(3, 32, dtype=FP32), stacked(randn, (8,), 32)
    with pytest.raises(TargetError, match=r"no kernel for x in torch\.float32"):
        nvfp4_linear_w4a16(launch, x, *w, None, [], FP32)


def test_a_tile_is_chosen_by_what_it_leaves_idle() -> None:
    assert choose_tile(7040, 3072) == WIDE
    assert choose_tile(512, 6144) == MEDIUM
    assert choose_tile(16, 3072) == SMALL


def arguments(tokens: int, features: int, reduction: int, parts: int) -> tuple[Any, ...]:
    w = (meta(features, reduction // 2, dtype=torch.uint8),
         meta(features, reduction // 16, dtype=FP8), meta(parts, dtype=FP32))  # fmt: skip
    return (*w, meta(features), [features // parts] * parts, BF16)


SHAPES = [(7040, 9216, 3072, 3), (512, 6144, 3072, 2), (8, 3072, 14336, 1)]


@pytest.mark.parametrize(("tokens", "features", "reduction", "parts"), SHAPES)
def test_hopper_multiplies_by_warp_groups_and_spills_nothing(
    tokens: int, features: int, reduction: int, parts: int
) -> None:
    x, more = meta(1, tokens, reduction), arguments(tokens, features, reduction, parts)
    codes, scales = (meta(1, tokens, reduction // n, dtype=kind)
                     for n, kind in ((2, torch.uint8), (16, FP8)))  # fmt: skip
    made = [
        *compiled("sm_90a", nvfp4_linear_w4a16, x, *more),
        *compiled("sm_90a", nvfp4_linear_dequant, codes, scales, meta(dtype=FP32), *more),
    ]
    assert [kernel.resources.spilled for kernel in made] == [0] * 3
    tile = choose_tile(tokens, features)
    for gemm in (made[0], made[2]):
        # The weight is the operand in registers: a list of them stands before the descriptor.
        form = rf"wgmma\.mma_async\.sync\.aligned\.m64n{tile.m}k16\.f32\.bf16\.bf16 "
        assert re.search(form + r"\{[^}]*\}, \{", gemm.binary.ptx)
        assert "cp.async.bulk.tensor" in gemm.binary.ptx


@pytest.mark.parametrize("chip", ["sm_100a", "sm_103a", "sm_120a"])
def test_it_compiles_for_the_other_chips(chip: str) -> None:
    made = compiled(chip, nvfp4_linear_w4a16, meta(512, 3072), *arguments(512, 6144, 3072, 2))
    assert made[0].resources.spilled == 0
    assert made[0].binary.shared <= SHARED_MEMORY[chip]
