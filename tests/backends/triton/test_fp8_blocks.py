"""Blocks of a page against its format, with and without a rotation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.fp8_blocks import load_page, scaled, unit_of
from llvq.backends.triton.specialize import Launcher
from llvq.dialect import rope
from llvq.formats import fp8
from llvq.formats.kv import KV_FORMATS

ROWS, DIM, SCALE = 8, 32, 0.02


@triton.jit
def code_page(
    page0, page1, page2, cos, sin, out, inverse, count, FORMAT: tl.constexpr, ROWS: tl.constexpr,
    D: tl.constexpr
):  # fmt: skip
    block = tl.arange(0, ROWS * D // 16)
    row, block = block // (D // 16), block % (D // 16)
    mask = row < count
    x, factor = load_page(page0, page1, 0, row, block, mask, FORMAT, D)
    unit = factor * unit_of(page1, page2, 0, FORMAT)
    angle = row * (D // 2) + block * 8
    x = scaled(x, unit, inverse, cos, sin, angle, mask, tl.bfloat16).to(tl.float8e4nv)
    tl.store(out + (row * D + block * 16)[:, None] + tl.arange(0, 16)[None, :], x)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("kv_format", ["none", "fp8", "nvfp4"])
def test_blocks_of_a_page_are_scaled(
    launch: Launcher,
    device: torch.device,
    randn: Callable[..., Tensor],
    kv_format: str,
    rotated: bool,
) -> None:
    kv, count = KV_FORMATS[kv_format], ROWS - 3
    specs = kv.specs(1, 1, ROWS, 1, DIM, torch.bfloat16)
    pages = [torch.zeros(shape, dtype=dtype, device=device) for _, dtype, shape in specs]
    slot = torch.tensor([0], device=device)
    kv.write(pages, 0, 0, slot[0], randn(ROWS, 1, DIM))
    x = kv.read(pages, 0, 0, slot, torch.float32)
    turns = randn(ROWS, DIM // 2, dtype=torch.float32)
    angles = (turns.cos(), turns.sin())
    if rotated:
        x = rope.reference(x[None].bfloat16(), *angles)[0].float()
    wanted = fp8.encode(x[:count, 0], torch.tensor(SCALE, device=device)).float()
    out = torch.empty(ROWS, DIM, dtype=fp8.DTYPE, device=device)
    tensors = (*pages, None, None)[:3]
    launch(code_page, (1,), *tensors, *(angles if rotated else (None, None)), out, 1 / SCALE,
           count, FORMAT=kv_format, ROWS=ROWS, D=DIM)  # fmt: skip
    found = out[:count].float()
    # A code, or its neighbour: a factor and a quotient round differently, as do sums of a rotation.
    assert ((found - wanted).abs() <= wanted.abs() / 7 + 2**-8).all()
    assert not out[count:].float().any()
