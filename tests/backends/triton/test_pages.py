"""Pages: one slot of one layer is what the format writes there, and all else is as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llvq import dialect
from llvq.backends.triton.pages import write_kept, write_page
from llvq.backends.triton.specialize import Launcher
from llvq.errors import KernelError
from llvq.formats.kv import KV_FORMATS
from tests.backends.triton.compare import all_same, same_bytes
from tests.backends.triton.compiled import CHIPS, compiled, meta

BF16, FP32 = torch.bfloat16, torch.float32
LAYERS, SLOTS, TOKENS, HEADS, HEAD_DIM = 3, 4, 7, 3, 64
FORMATS = pytest.mark.parametrize("kv_format", ["none", "fp8", "nvfp4"])
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP32])


def poisoned(kv_format: str, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    specs = KV_FORMATS[kv_format].specs(LAYERS, SLOTS, TOKENS, HEADS, HEAD_DIM, dtype)
    pages = [torch.zeros(shape, dtype=kind) for _, kind, shape in specs]
    for page in pages:
        page.view(torch.uint8).fill_(0xAA)
    return [page.to(device) for page in pages]


def chunk(randn: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """K of its own, V a slice of a stacked projection: they lie differently in memory."""
    k = randn(1, TOKENS, HEADS, HEAD_DIM, dtype=dtype) * 7
    stacked = randn(1, TOKENS, 3 * HEADS * HEAD_DIM, dtype=dtype)
    return k, stacked[..., 2 * HEADS * HEAD_DIM :].unflatten(-1, (HEADS, HEAD_DIM))


@FORMATS
@DTYPES
@pytest.mark.parametrize(("slot", "layer"), [(0, 0), (3, 2), (1, 1)])
def test_write_page_is_exact(
    launch: Launcher, randn: Any, kv_format: str, dtype: torch.dtype, slot: int, layer: int
) -> None:
    k, v = chunk(randn, dtype)
    found, wanted = (poisoned(kv_format, dtype, k.device) for _ in range(2))
    where = (torch.tensor(slot, device=k.device), layer, kv_format)
    dialect.write_page.reference(wanted, k, v, *where)
    for _ in range(2):
        write_page(launch, found, k, v, *where)
        assert all_same(found, wanted)


@pytest.mark.parametrize("kv_format", ["fp8", "nvfp4"])
def test_zeros_and_what_is_not_finite(launch: Launcher, randn: Any, kv_format: str) -> None:
    k, v = torch.zeros_like(chunk(randn, BF16)[0]), chunk(randn, BF16)[1].clone()
    v[0, 3, 1, 9] = float("nan")
    found, wanted = (poisoned(kv_format, BF16, k.device) for _ in range(2))
    where = (torch.tensor(2, device=k.device), 1, kv_format)
    dialect.write_page.reference(wanted, k, v, *where)
    write_page(launch, found, k, v, *where)
    assert all(same_bytes(a[:, 0], b[:, 0]) for a, b in zip(found, wanted, strict=True))
    assert found[-1][1, 1, 2].isnan()


def test_formats_without_a_kernel_are_refused(launch: Launcher, randn: Any) -> None:
    k, v = chunk(randn, BF16)
    with pytest.raises(KernelError, match="int4"):
        write_page(launch, poisoned("int4", BF16, k.device), k, v, torch.tensor(0), 0, "int4")


@DTYPES
@pytest.mark.parametrize("slot", [-1, 0, 2])
def test_write_kept_stores_as_it_is_or_not_at_all(
    launch: Launcher, randn: Any, dtype: torch.dtype, slot: int
) -> None:
    k, v = chunk(randn, BF16)
    kept = randn(LAYERS, 2, 3, TOKENS, HEADS, HEAD_DIM, dtype=dtype)
    wanted, where = kept.clone(), torch.tensor(slot, device=k.device)
    dialect.write_kept.reference(wanted, k, v, where, 1)
    write_kept(launch, kept, k, v, where, 1)
    assert same_bytes(kept, wanted)


@pytest.mark.parametrize("chip", CHIPS)
@FORMATS
def test_write_page_compiles(chip: str, kv_format: str) -> None:
    """With a pool whose elements an int32 does not count."""
    specs = KV_FORMATS[kv_format].specs(30, 8, 7040, 24, 128, BF16)
    pages = [meta(*shape, dtype=kind) for _, kind, shape in specs]
    k, v = meta(1, 7040, 24, 128), meta(1, 7040, 9216)[..., 6144:].unflatten(-1, (24, 128))
    made = compiled(chip, write_page, pages, k, v, meta(dtype=torch.int64), 3, kv_format)
    for one in made:
        assert one.resources.spilled == 0 and one.resources.registers <= 64
        assert "ld.global.v4.b32" in one.binary.ptx
