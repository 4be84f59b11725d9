"""Attention with scores in NVFP4: its numbers in the interpreter, its instructions in the PTX."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from llvq.backends.triton.build import SHARED_MEMORY
from llvq.backends.triton.paged_attention_fp4 import paged_attention_fp4, paged_attention_fp4_sm120
from llvq.dialect import paged_attention_fp4 as op
from llvq.errors import TargetError
from llvq.formats.kv import KV_FORMATS
from tests.backends.triton.compare import relative_error, same_bytes
from tests.backends.triton.compiled import Compiled, compiled, meta
from tests.backends.triton.test_block_scaled_gemm import FP4_INSTRUCTION, ON_BLACKWELL
from tests.backends.triton.test_paged_attention import CASES, arguments

BF16 = torch.bfloat16
WRAPPERS = {
    "sm_100a": paged_attention_fp4,
    "sm_103a": paged_attention_fp4,
    "sm_120a": paged_attention_fp4_sm120,
}
BOTH = pytest.mark.parametrize("wrapper", [paged_attention_fp4, paged_attention_fp4_sm120])


def of_op(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of `paged_attention`, without positions and format."""
    q, k, v, pages, table, _, _, scale, layer, _ = args
    return q, k, v, pages, table, scale, layer


@ON_BLACKWELL
@BOTH
@pytest.mark.parametrize(("tokens", "heads", "width", "table"), CASES)
def test_it_is_the_attention_of_the_dialect(
    launch: Any,
    randn: Any,
    device: torch.device,
    wrapper: Any,
    tokens: int,
    heads: int,
    width: int,
    table: tuple[int, ...],
) -> None:
    """What other slots and layers hold is NaN, and what the last step of a page loads beyond."""
    args = of_op(arguments(randn, device, "nvfp4", (tokens, heads, width), table, False))
    found = wrapper(launch, *args)
    assert relative_error(found, op.reference(*args)) <= op.tolerance.relative
    assert same_bytes(wrapper(launch, *args), found)


@ON_BLACKWELL
@BOTH
def test_another_scale_and_strided_q_and_k(
    launch: Any, randn: Any, device: torch.device, wrapper: Any
) -> None:
    """As a joint projection gives them, and twenty times as large."""
    _, _, v, *rest = of_op(arguments(randn, device, "nvfp4", (20, 2, 32), (1, 2), False, 0.05))
    q, k = (20 * x.view(1, 20, 2, 32) for x in randn(1, 20, 128).split(64, -1))
    found = wrapper(launch, q, k, v, *rest)
    assert relative_error(found, op.reference(q, k, v, *rest)) <= op.tolerance.relative


def test_another_dtype_is_refused(launch: Any, randn: Any, device: torch.device) -> None:
    q, k, v, *rest = of_op(arguments(randn, device, "nvfp4", (6, 1, 64), (1,), False))
    with pytest.raises(TargetError, match=r"no attention kernel for torch\.float32"):
        paged_attention_fp4(launch, q.float(), k.float(), v.float(), *rest)


def made(chip: str, tokens: int, width: int, layer: int = 7) -> Compiled:
    """The kernel of a window of four chunks in 3072 channels, after those that quantize."""
    heads, layers, slots = 3072 // width, 30, 6
    specs = KV_FORMATS["nvfp4"].specs(layers, slots, tokens, heads, width, BF16)
    pages = [meta(*shape, dtype=kind) for _, kind, shape in specs]
    q = meta(1, tokens, heads, width)
    table = meta(3, dtype=torch.int64)
    *_, last = compiled(chip, WRAPPERS[chip], q, q, q, pages, table, None, layer)
    return last


@pytest.mark.parametrize("chip", WRAPPERS)
@pytest.mark.parametrize(("tokens", "width"), [(7040, 128), (1561, 64)])
def test_scores_are_multiplied_in_four_bits_and_nothing_spills(
    chip: str, tokens: int, width: int
) -> None:
    kernel = made(chip, tokens, width)
    assert kernel.binary.name.startswith("attend_codes")
    assert kernel.resources.spilled == 0
    assert kernel.binary.shared <= SHARED_MEMORY[chip]
    assert re.search(FP4_INSTRUCTION, kernel.binary.ptx)
    plain = r"mma\.sync.*bf16\.bf16" if chip == "sm_120a" else r"tcgen05\.mma.*kind::f16"
    assert re.search(plain, kernel.binary.ptx)


def test_one_binary_serves_every_layer() -> None:
    assert len({made("sm_120a", 7040, 128, layer).binary.name for layer in (0, 7, 16)}) == 1
