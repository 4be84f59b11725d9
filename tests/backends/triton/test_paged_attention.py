"""Attention over pages: its numbers against the dialect, and what the compiler makes of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.backends.triton.build import SHARED_MEMORY
from llvq.backends.triton.paged_attention import FORMATS, paged_attention, paged_attention_sm120
from llvq.dialect import paged_attention as op
from llvq.dialect import write_page
from llvq.errors import TargetError
from llvq.formats.kv import KV_FORMATS
from tests.backends.triton.compare import relative_error, same_bytes
from tests.backends.triton.compiled import Compiled, compiled, meta

BF16, FP32 = torch.bfloat16, torch.float32
LAYERS, SLOTS = 2, 4
WRAPPERS = {
    "sm_90a": paged_attention,
    "sm_100a": paged_attention,
    "sm_103a": paged_attention,
    "sm_120a": paged_attention_sm120,
}
# Tokens, heads, head dim, table. Keys of a step are 64 and 32.
CASES = [
    (6, 2, 64, (2, 0)),
    (35, 3, 16, (1,)),
    (33, 2, 48, ()),
    (64, 1, 32, (3,)),
    (70, 1, 128, (0, 3, 1)),
]
SIZES = pytest.mark.parametrize(("tokens", "heads", "width", "table"), CASES)


def pages_of(
    kv_format: str, tokens: int, heads: int, width: int, device: torch.device
) -> list[Tensor]:
    """Pages of all ones bits: NaN in every float format, the largest code in NVFP4."""
    specs = KV_FORMATS[kv_format].specs(LAYERS, SLOTS, tokens, heads, width, BF16)
    pages = [torch.zeros(shape, dtype=kind, device=device) for _, kind, shape in specs]
    for page in pages:
        page.unsqueeze(-1).view(torch.uint8).fill_(0xFF)
    return pages


def written(
    randn: Callable[..., Tensor],
    device: torch.device,
    kv_format: str,
    tokens: int,
    heads: int,
    width: int,
    table: Sequence[int],
) -> list[Tensor]:
    """Slots hold chunks of different size, in the last layer alone."""
    pages = pages_of(kv_format, tokens, heads, width, device)
    for slot in table:
        k, v = randn(1, tokens, heads, width) * 0.5**slot, randn(1, tokens, heads, width) * 2**slot
        place = torch.tensor(slot, device=device)
        write_page.reference(pages, k, v, place, LAYERS - 1, kv_format)
    return pages


def arguments(
    randn: Callable[..., Tensor],
    device: torch.device,
    kv_format: str,
    size: tuple[int, int, int],
    table: Sequence[int],
    relative: bool,
    scale: float | None = None,
) -> tuple[Any, ...]:
    tokens, heads, width = size
    pages = written(randn, device, kv_format, *size, table)
    q, k = randn(1, tokens, heads, width), randn(1, tokens, heads, width)
    # As it comes from a joint projection: every third of a row.
    v = randn(1, tokens, 3 * heads * width)[..., 2 * heads * width :].view(1, tokens, heads, width)
    rotation = (None, None)
    if relative:
        places = torch.arange((SLOTS + 1) * tokens, dtype=FP32, device=device)
        angles = torch.outer(places, 0.5 ** torch.arange(width // 2, device=device))
        rotation = (angles.cos(), angles.sin())
    slots = torch.tensor(table, dtype=torch.int64, device=device)
    return (q, k, v, pages, slots, *rotation, scale, LAYERS - 1, kv_format)


@pytest.mark.parametrize("wrapper", [paged_attention, paged_attention_sm120])
@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("relative", [False, True])
@SIZES
def test_it_is_the_attention_of_the_dialect(
    launch: Any,
    randn: Any,
    device: torch.device,
    wrapper: Any,
    kv_format: str,
    relative: bool,
    tokens: int,
    heads: int,
    width: int,
    table: tuple[int, ...],
) -> None:
    """What other slots and layers hold is NaN, and what the last step of a page loads beyond."""
    args = arguments(randn, device, kv_format, (tokens, heads, width), table, relative)
    found = wrapper(launch, *args)
    assert relative_error(found, op.reference(*args)) <= op.tolerance.relative
    assert same_bytes(wrapper(launch, *args), found)


def test_another_scale_than_the_usual(launch: Any, randn: Any, device: torch.device) -> None:
    args = arguments(randn, device, "nvfp4", (20, 1, 32), (1, 2), False, scale=0.05)
    error = relative_error(paged_attention(launch, *args), op.reference(*args))
    assert error <= op.tolerance.relative


def test_what_has_no_kernel_is_refused(launch: Any, randn: Any, device: torch.device) -> None:
    args = arguments(randn, device, "int4", (6, 1, 64), (1,), False)
    with pytest.raises(TargetError, match="no attention kernel for pages in int4") as raised:
        paged_attention(launch, *args)
    assert "kernels read none, fp8, nvfp4" in str(raised.value)
    wide = [x.float() for x in args[:3]]
    with pytest.raises(TargetError, match=r"no attention kernel for torch\.float32"):
        paged_attention(launch, *wide, *args[3:-1], "none")


def made(
    chip: str, kv_format: str, relative: bool, tokens: int = 7040, width: int = 128, layer: int = 7
) -> list[Compiled]:
    """The kernels of a window of four chunks in 3072 channels."""
    heads, layers, slots = 3072 // width, 30, 6
    pages = [meta(*shape, dtype=kind) for _, kind, shape in
             KV_FORMATS[kv_format].specs(layers, slots, tokens, heads, width, BF16)]  # fmt: skip
    q = meta(1, tokens, heads, width)
    v = meta(1, tokens, 3 * heads * width)[..., 2 * heads * width :].view(q.shape)
    angles = meta(4 * tokens, width // 2, dtype=FP32)
    rotation = (angles, angles) if relative else (None, None)
    table = meta(3, dtype=torch.int64)
    return compiled(chip, WRAPPERS[chip], q, q, v, pages, table, *rotation, None, layer, kv_format)


WHOLE = [
    *((chip, "nvfp4", False, 7040, 128) for chip in WRAPPERS),
    *((chip, "nvfp4", True, 7040, 128) for chip in ("sm_90a", "sm_100a", "sm_120a")),
    *((chip, "fp8", False, 7040, 128) for chip in ("sm_90a", "sm_100a", "sm_120a")),
    *((chip, "none", False, 7040, 128) for chip in ("sm_90a", "sm_100a")),
]
WITH_TAILS = [("sm_90a", "nvfp4", False, 1561, 64), ("sm_120a", "nvfp4", True, 1561, 128)]


@pytest.mark.parametrize(
    ("chip", "kv_format", "relative", "tokens", "width"), [*WHOLE, *WITH_TAILS]
)
def test_it_multiplies_on_tensor_cores_and_spills_nothing(
    chip: str, kv_format: str, relative: bool, tokens: int, width: int
) -> None:
    (kernel,) = made(chip, kv_format, relative, tokens, width)
    assert kernel.resources.spilled == 0
    assert kernel.binary.shared <= SHARED_MEMORY[chip]
    instruction = {"sm_90a": r"wgmma\.mma_async.*bf16\.bf16", "sm_120a": r"mma\.sync.*bf16\.bf16"}
    assert re.search(instruction.get(chip, r"tcgen05\.mma.*kind::f16"), kernel.binary.ptx)


def test_one_binary_serves_every_layer() -> None:
    kernels = [made("sm_90a", "nvfp4", False, layer=layer) for layer in (0, 7, 16)]
    assert len({kernel.binary.name for (kernel,) in kernels}) == 1
