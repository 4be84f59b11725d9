"""NVFP4 in registers is what the format says, for every code under every scale."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from llvq.backends.triton.decode import DECODED, PLACED, decode_e2m1, decode_nvfp4
from llvq.formats import nvfp4


@triton.jit
def decode(codes, scales, out, ROWS: tl.constexpr, K: tl.constexpr):
    row = tl.arange(0, ROWS)[:, None]
    code = tl.load(codes + row * (K // 2) + tl.arange(0, K // 2)[None, :])
    scale = tl.load(scales + row * (K // 16) + tl.arange(0, K // 16)[None, :])
    values = decode_nvfp4(code, scale, ROWS, K)
    tl.store(out + row * K + tl.arange(0, K)[None, :], values)


def test_every_code_under_every_scale(launch: Any, device: torch.device) -> None:
    """The 256 scales have a row each; its 512 codes are those of all bytes."""
    codes = torch.arange(256, dtype=torch.uint8, device=device).repeat(256, 1)
    scales = torch.arange(256, dtype=torch.uint8, device=device)[:, None].expand(256, 32)
    scales = scales.contiguous().view(torch.float8_e4m3fn)
    out = torch.empty(256, 512, dtype=torch.bfloat16, device=device)
    launch(decode, (1,), codes, scales, out, ROWS=256, K=512, warps=8)
    one = torch.ones((), device=device)
    wanted = nvfp4.dequantize(codes, scales, one, torch.float32)
    found = out.float() * DECODED.value
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    assert not wanted[:127].isnan().any() and wanted[127].isnan().all()


@triton.jit
def place(codes, out, BLOCKS: tl.constexpr):
    block = tl.arange(0, BLOCKS)[:, None]
    code = tl.load(codes + block * 8 + tl.arange(0, 8)[None, :])
    tl.store(out + block * 16 + tl.arange(0, 16)[None, :], decode_e2m1(code, BLOCKS))


def test_every_code_without_a_scale(launch: Any, device: torch.device) -> None:
    codes = torch.arange(256, dtype=torch.uint8, device=device).view(32, 8)
    out = torch.empty(32, 16, device=device)
    launch(place, (1,), codes, out, BLOCKS=32)
    one = torch.ones((), device=device)
    scales = torch.ones(32, 1, device=device).to(torch.float8_e4m3fn)
    wanted = nvfp4.dequantize(codes, scales, one, torch.float32)
    found = out * PLACED.value
    assert torch.equal(found.view(torch.int32), wanted.view(torch.int32)), "signs of zeros too"
