"""Attention with scores in NVFP4: torch's own attention on what Q and K decode to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.dialect import paged_attention, paged_attention_fp4, write_page
from llvq.formats import nvfp4
from llvq.formats.kv import KV_FORMATS

LAYERS, SLOTS, TOKENS, HEADS, D = 2, 4, 5, 3, 32
BF16, FP32 = torch.bfloat16, torch.float32
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP32])
TABLES = pytest.mark.parametrize("table", [(), (2,), (3, 0, 2)])


def chunks(randn: Any, dtype: torch.dtype) -> list[Tensor]:
    """Heads of different size, so that blocks are."""
    size = torch.tensor([0.25, 1.0, 3.0]).view(1, 1, HEADS, 1)
    return [(randn(1, TOKENS, HEADS, D) * size).to(dtype) for _ in range(3)]


def written(randn: Any, dtype: torch.dtype, slots: tuple[int, ...]) -> list[Tensor]:
    """Pages of NaN and the largest codes, in which slots of the last layer hold chunks."""
    specs = KV_FORMATS["nvfp4"].specs(LAYERS, SLOTS, TOKENS, HEADS, D, dtype)
    pages = [torch.zeros(shape, dtype=kind) for _, kind, shape in specs]
    for page in pages:
        page.unsqueeze(-1).view(torch.uint8).fill_(0xFF)
    for slot in slots:
        k, v, _ = (x * 0.7**slot for x in chunks(randn, dtype))
        write_page.overload(pages, k, v, torch.tensor(slot), LAYERS - 1, "nvfp4")
    return pages


def decoded(x: Tensor) -> Tensor:
    return nvfp4.dequantize(*nvfp4.quantize(x, block_rule="max"), FP32)


@DTYPES
@TABLES
@pytest.mark.parametrize("scale", [None, 0.5])
def test_it_is_the_attention_of_torch_on_decoded_q_and_k(
    check_op: Any, randn: Any, dtype: torch.dtype, table: tuple[int, ...], scale: float | None
) -> None:
    """What the table does not name is NaN."""
    pages, slots = written(randn, dtype, table), torch.tensor(table, dtype=torch.int64)
    q, k, v = chunks(randn, dtype)
    found = check_op(paged_attention_fp4, q, k, v, pages, slots, scale, LAYERS - 1)
    read = KV_FORMATS["nvfp4"].read
    keys = torch.cat([read(pages, LAYERS - 1, 0, slots, FP32)[None], decoded(k)], 1)
    values = torch.cat([read(pages, LAYERS - 1, 1, slots, dtype)[None], v], 1).float()
    qkv = (x.transpose(1, 2) for x in (decoded(q), keys, values))
    wanted = F.scaled_dot_product_attention(*qkv, scale=scale).transpose(1, 2)
    assert found.dtype == dtype
    # Half a step of bf16 for the weights, and another for what comes out; fp32 only sums anew.
    allowed = {BF16: 2**-8, FP32: 1e-5}[dtype]
    assert (found.float() - wanted).abs().max() <= allowed * wanted.abs().max()


@DTYPES
def test_q_and_k_are_in_four_bits(randn: Any, dtype: torch.dtype) -> None:
    """Another result than with Q and K as they are, by about what four bits cost."""
    pages, table = written(randn, dtype, (1, 2)), torch.tensor([1, 2])
    q, k, v = chunks(randn, dtype)
    found = paged_attention_fp4.overload(q, k, v, pages, table, None, LAYERS - 1)
    rest = (None, None, None, LAYERS - 1, "nvfp4")
    plain = paged_attention.overload(q, k, v, pages, table, *rest)
    error = (found - plain).float().norm() / plain.float().norm()
    assert 0.01 < error < 0.3


def test_one_global_scale_covers_all_of_q(randn: Any) -> None:
    """A token 2**24 times as large makes the blocks of the others zero: their weights are even."""
    pages, table = written(randn, FP32, ()), torch.tensor([], dtype=torch.int64)
    q, k, v = chunks(randn, FP32)
    q[:, 0] *= 2.0**24
    found = paged_attention_fp4.overload(q, k, v, pages, table, None, 0)
    torch.testing.assert_close(found[:, 1:], v.mean(1, keepdim=True).expand_as(found[:, 1:]))
