"""Attention in FP8 against the dialect's reference, and against PyTorch's within what FP8 costs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.backends.triton import fp8_attention
from llvq.backends.triton.fp8_window import window_fp8
from llvq.backends.triton.specialize import Launcher
from llvq.dialect import DIALECT
from llvq.formats import fp8
from tests.backends.triton.compiled import compiled, meta
from tests.backends.triton.test_fp8_expand import at_5b
from tests.backends.triton.test_fp8_window import DIM, HEADS, RandN, filled_pages


def error(found: Tensor, wanted: Tensor) -> float:
    return ((found.float() - wanted.float()).abs().max() / wanted.float().abs().max()).item()


@pytest.mark.parametrize("queries, keys", [(5, 7), (70, 150)])
def test_it_is_attention(launch: Launcher, randn: RandN, queries: int, keys: int) -> None:
    q, k, v = randn(1, queries, HEADS, DIM), randn(1, keys, HEADS, DIM), randn(1, keys, HEADS, DIM)
    found = fp8_attention.attention_fp8(launch, q, k, v)
    op = DIALECT["attention_fp8"]
    assert error(found, op.reference(q, k, v)) <= op.tolerance.relative
    plain = F.scaled_dot_product_attention(*(x.transpose(1, 2).float() for x in (q, k, v)))
    assert error(found, plain.transpose(1, 2)) <= 0.1
    assert torch.equal(found, fp8_attention.attention_fp8(launch, q, k, v))


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("kv_format", ["none", "fp8", "nvfp4"])
@pytest.mark.parametrize("slots", [[], [2], [1, 2]])
def test_pages_are_attended(
    launch: Launcher,
    device: torch.device,
    randn: RandN,
    kv_format: str,
    slots: list[int],
    rotated: bool,
) -> None:
    tokens = 37
    q, k, v = (randn(1, tokens, HEADS, DIM) for _ in range(3))
    pages = filled_pages(randn, kv_format, tokens, device)
    turns = randn(4 * tokens, DIM // 2, dtype=torch.float32)
    cos, sin = (turns.cos(), turns.sin()) if rotated else (None, None)
    table = torch.tensor(slots, dtype=torch.int64, device=device)
    args = (q, k, v, pages, table, cos, sin, None, 1, kv_format)
    found = fp8_attention.paged_attention_fp8(launch, *args)
    op = DIALECT["paged_attention_fp8"]
    assert error(found, op.reference(*args)) <= op.tolerance.relative


@pytest.mark.parametrize("slots", [[], [1, 2]])
def test_it_writes_fp8_under_the_scale_of_v(
    launch: Launcher, device: torch.device, randn: RandN, slots: list[int]
) -> None:
    tokens = 37
    q, k, v = (randn(1, tokens, HEADS, DIM) for _ in range(3))
    pages = filled_pages(randn, "nvfp4", tokens, device)
    table = torch.tensor(slots, dtype=torch.int64, device=device)
    args = (q, k, v, pages, table, None, None, None, 1, "nvfp4")
    for name, given in (
        ("paged_attention_quantize_fp8", args),
        ("attention_quantize_fp8", args[:3]),
    ):
        values, scale = getattr(fp8_attention, name)(launch, *given)
        op = DIALECT[name]
        wanted_values, wanted_scale = op.reference(*given)
        assert torch.allclose(scale, wanted_scale, rtol=1e-6)
        found, wanted = values.float() * scale, wanted_values.float() * wanted_scale
        assert error(found, wanted) <= op.tolerance.relative


@pytest.mark.parametrize("slots", [[], [1, 2]])
def test_scales_may_be_given(
    launch: Launcher, device: torch.device, randn: RandN, slots: list[int]
) -> None:
    tokens = 67
    q, k, v = (randn(1, tokens, HEADS, DIM) for _ in range(3))
    q_scale, k_scale = (torch.tensor([scale], device=device) for scale in (0.04, 0.3))
    pages = filled_pages(randn, "nvfp4", tokens, device)
    table = torch.tensor(slots, dtype=torch.int64, device=device)
    args = (fp8.encode(q, q_scale), k, v, pages, table, None, None, None, 1, "nvfp4")
    for name, given in (
        ("paged_attention_quantize_fp8", (*args, q_scale, k_scale)),
        ("attention_quantize_fp8", (*args[:3], 0.2, q_scale)),
    ):
        found, wanted = (
            values.float() * scale
            for values, scale in (
                getattr(fp8_attention, name)(launch, *given),
                DIALECT[name].reference(*given),
            )
        )
        assert error(found, wanted) <= DIALECT[name].tolerance.relative


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("keys", [7, 150])
def test_over_a_window_it_is_bit_for_bit_what_it_is_over_k_and_v(
    launch: Launcher, device: torch.device, randn: RandN, keys: int, coded: bool
) -> None:
    q, k, v = (randn(1, count, HEADS, DIM) for count in (70, keys, keys))
    q_scale = torch.tensor([0.04], device=device) if coded else None
    q = q if q_scale is None else fp8.encode(q, q_scale)
    given = (keys, 0.2, q_scale)
    window = window_fp8(launch, k, v)
    found = fp8_attention.window_attention_quantize_fp8(launch, q, *window, *given)
    wanted = fp8_attention.attention_quantize_fp8(launch, q, k, v, 0.2, q_scale)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))
    op = DIALECT["window_attention_quantize_fp8"]
    values, scale = op.reference(q, *window, *given)
    assert error(found[0].float() * found[1], values.float() * scale) <= op.tolerance.relative


def test_a_scale_of_its_own(launch: Launcher, randn: RandN) -> None:
    q, k, v = (randn(1, 6, HEADS, DIM) for _ in range(3))
    found = fp8_attention.attention_fp8(launch, q, k, v, 0.5)
    op = DIALECT["attention_fp8"]
    assert error(found, op.reference(q, k, v, 0.5)) <= op.tolerance.relative


@pytest.mark.parametrize("kv_format", ["none", "fp8", "nvfp4"])
def test_on_hopper_it_is_two_fp8_products_without_spills(kv_format: str) -> None:
    q, _, history = at_5b(kv_format)
    args = (q, q, q, history.pages, history.table, None, None, None, 3, kv_format)
    made = compiled("sm_90a", fp8_attention.paged_attention_fp8, *args)
    assert all(kernel.resources.spilled == 0 for kernel in made)
    attend = next(m for m in made if m.binary.entry == "attend_kernel")
    assert attend.binary.ptx.count("wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3") == 8
    # Two blocks share a multiprocessor.
    assert attend.resources.registers <= 255 and 2 * (attend.binary.shared + 1024) <= 232448


def test_queries_in_fp8_are_read_where_they_lie() -> None:
    q, k, one = meta(1, 7040, 24, 128, dtype=fp8.DTYPE), meta(1, 512, 24, 128), torch.float32
    made = compiled(
        "sm_90a", fp8_attention.attention_quantize_fp8, q, k, k, None, meta(1, dtype=one)
    )
    names = [kernel.binary.entry for kernel in made]
    assert "quantize_queries_kernel" not in names and names[-1] == "attend_kernel"
    assert all(kernel.resources.spilled == 0 for kernel in made)
    assert 2 * (made[-1].binary.shared + 1024) <= 232448


def test_over_a_window_nothing_is_launched_but_attention() -> None:
    """And that is the same binary."""
    q, k, one = meta(1, 7040, 24, 128, dtype=fp8.DTYPE), meta(1, 512, 24, 128), torch.float32
    codes = meta(24, 512, 128, dtype=fp8.DTYPE), meta(24, 128, 512, dtype=fp8.DTYPE)
    given = (None, meta(1, dtype=one))
    window = fp8_attention.window_attention_quantize_fp8
    (attend,) = compiled("sm_90a", window, q, *codes, meta(2, dtype=one), 512, *given)
    made = compiled("sm_90a", fp8_attention.attention_quantize_fp8, q, k, k, *given)
    assert attend.binary.ptx == made[-1].binary.ptx


def test_weights_stay_in_registers() -> None:
    """The keys' order spares every exchange between threads but those of maxima and sums."""
    q = meta(1, 7040, 24, 128)
    made = compiled("sm_90a", fp8_attention.attention_fp8, q, q, q)
    ptx = next(m.binary.ptx for m in made if m.binary.entry == "attend_kernel")
    loop = ptx[ptx.index("wgmma.fence") : ptx.rindex("wgmma.mma_async")]
    assert loop.count("shfl.sync") == 8
    assert "st.shared.v" not in loop and "stmatrix" not in loop
