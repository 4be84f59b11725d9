"""Codes of E2M1 against the format, which ModelOpt's and torchao's codes hold."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llvq.backends.triton.e2m1 import decode_e2m1, encode_e2m1
from llvq.backends.triton.specialize import Launcher
from llvq.formats import nvfp4


@triton.jit
def encode(y, words, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    place = i[:, None] * 8 + tl.arange(0, 8)[None, :]
    tl.store(words + i, encode_e2m1(tl.load(y + place)))


@triton.jit
def decode(words, out, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    place = i[:, None] * 8 + tl.arange(0, 8)[None, :]
    tl.store(out + place, decode_e2m1(tl.load(words + i)))


def encoded(launch: Launcher, y: torch.Tensor) -> torch.Tensor:
    words = torch.empty(y.numel() // 8, dtype=torch.int32, device=y.device)
    launch(encode, (1,), y, words, exact=True, COUNT=words.numel())
    return words


def test_rounds_to_nearest_even_and_saturates(launch: Launcher, device: torch.device) -> None:
    """Every midpoint, its neighbours in fp32, and what lies beyond either end."""
    values = torch.tensor(nvfp4.E2M1_VALUES)
    middles = (values[1:] + values[:-1]) / 2
    near = [torch.nextafter(middles, torch.tensor(to)) for to in (-9.0, 9.0)]
    tiny, huge = torch.tensor([2**-149, 2**-126]), torch.tensor([5.5, 6.5, 1e30, float("inf")])
    y = torch.cat([values, middles, *near, tiny, huge])
    y = torch.cat([y, -y])
    y = torch.nn.functional.pad(y, (0, -len(y) % 256), value=0.75).to(device)
    one = torch.ones(1, device=device)
    wanted = nvfp4._encode(y.view(-1, 16), one.expand(y.numel() // 16), one.squeeze())
    assert torch.equal(encoded(launch, y).view(torch.uint8), wanted.flatten())


def test_every_code_decodes(launch: Launcher, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(3)
    words = torch.randint(-(2**31), 2**31 - 1, (64,), generator=generator).to(device, torch.int32)
    words[:2] = torch.tensor([0x76543210, 0xFEDCBA98 - 2**32])
    out = torch.empty(64, 8, device=device)
    launch(decode, (1,), words, out, COUNT=64)
    nibbles = torch.stack([(words >> shift) & 15 for shift in range(0, 32, 4)], 1)
    table = torch.tensor([*nvfp4.E2M1_VALUES, *(-v for v in nvfp4.E2M1_VALUES)], device=device)
    assert torch.equal(out.view(torch.int32), table[nibbles.long()].view(torch.int32))
