"""The repaired interpreter against torch, which is what the hardware does too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.specialize import Launcher
from llvq.errors import KernelError
from llvq.formats import nvfp4
from tests.backends.triton.compiled import compiled, meta
from tests.backends.triton.interpreter import Interpreted

BF16, FP16, FP32, E4M3 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn


@triton.jit
def _twice(x):
    return x + x


@triton.jit
def arithmetic(x_ptr, y_ptr, out_ptr, n, alpha, SIZE: tl.constexpr, NEGATE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    x = tl.load(x_ptr + i, mask=i < n)
    y = tl.load(y_ptr + i, mask=i < n)
    z = _twice(x * y) - x
    if NEGATE:
        z = -z
    z = z * alpha
    tl.store(out_ptr + i, z.to(out_ptr.dtype.element_ty), mask=i < n)


@triton.jit
def convert(x_ptr, out_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out_ptr + i, tl.load(x_ptr + i).to(out_ptr.dtype.element_ty))


@triton.jit
def reduce(x_ptr, sums_ptr, most_ptr, ROWS: tl.constexpr, SIZE: tl.constexpr):
    places = tl.arange(0, ROWS)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    x = tl.load(x_ptr + places)
    tl.store(sums_ptr + tl.arange(0, ROWS), x.sum(1))
    tl.atomic_max(most_ptr, tl.max(x.abs().to(tl.int32, bitcast=True)))


@triton.jit
def multiply(a_ptr, b_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * K + k[None, :])
    b = tl.load(b_ptr + n[:, None] * K + k[None, :])
    tl.store(out_ptr + m[:, None] * N + n[None, :], tl.dot(a, b.T))


@triton.jit
def multiply_nvfp4(
    a_ptr, sa_ptr, b_ptr, sb_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr
):
    m, n = tl.arange(0, M), tl.arange(0, N)
    k, s = tl.arange(0, K // 2), tl.arange(0, K // 16)
    a = tl.load(a_ptr + m[:, None] * (K // 2) + k[None, :])
    b = tl.load(b_ptr + n[:, None] * (K // 2) + k[None, :])
    sa = tl.load(sa_ptr + m[:, None] * (K // 16) + s[None, :])
    sb = tl.load(sb_ptr + n[:, None] * (K // 16) + s[None, :])
    found = tl.dot_scaled(a, sa, "e2m1", b.T, sb, "e2m1")
    tl.store(out_ptr + m[:, None] * N + n[None, :], found)


@triton.jit
def copy_by_descriptor(x_ptr, out_ptr, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr):
    row, col = tl.program_id(0) * ROWS, tl.program_id(1) * COLS
    x = tl.make_tensor_descriptor(x_ptr, [rows, cols], [cols, 1], [ROWS, COLS])
    out = tl.make_tensor_descriptor(out_ptr, [rows, cols], [cols, 1], [ROWS, COLS])
    out.store([row, col], x.load([row, col]))


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("negate", [True, False])
def test_arithmetic_rounds_as_torch_does(
    launch: Launcher, randn: Any, dtype: torch.dtype, negate: bool
) -> None:
    n = 77
    x, y = randn(n, dtype=dtype), randn(n, dtype=dtype)
    out = torch.empty_like(x)
    launch(arithmetic, (3,), x, y, out, n, 0.3, exact=True, SIZE=32, NEGATE=negate)
    z = x * y
    z = z + z - x
    z = -z if negate else z
    torch.testing.assert_close(out, (z.float() * 0.3).to(dtype), rtol=0.01, atol=0.01)


def interpreted(x: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty(x.numel(), dtype=dtype)
    Interpreted()(convert, (1,), x, out, SIZE=x.numel())
    return out


def test_narrow_formats_widen_exactly() -> None:
    codes = torch.arange(256).to(torch.uint8).view(E4M3)
    assert torch.equal(interpreted(codes, FP32).nan_to_num(7e7), codes.float().nan_to_num(7e7))
    bits = torch.arange(2**16).to(torch.uint16).view(BF16)
    assert torch.equal(interpreted(bits, FP32).nan_to_num(7e7), bits.float().nan_to_num(7e7))
    assert interpreted(bits, FP32).isnan().equal(bits.isnan())


@pytest.mark.parametrize("dtype", [BF16, FP16, E4M3])
def test_fp32_narrows_to_the_nearest(dtype: torch.dtype) -> None:
    """Over all magnitudes, with ties (values of few bits) and what is beyond the range."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4096, generator=generator) * 2.0 ** torch.linspace(-20, 12, 4096)
    x[::2] = (x[::2].view(torch.int32) & ~0xFFFF).view(FP32)
    x[:4] = torch.tensor([float("inf"), float("nan"), 0.0, -0.0])
    wanted = (x.clamp(-448, 448) if dtype == E4M3 else x).to(dtype)
    found = interpreted(x, dtype).float()
    assert torch.equal(found.nan_to_num(7e7), wanted.float().nan_to_num(7e7))


def test_reductions_and_atomics(launch: Launcher, randn: Any) -> None:
    x = randn(8, 64, dtype=FP32)
    sums, most = torch.empty(8, device=x.device), torch.zeros((), dtype=torch.int32).to(x.device)
    launch(reduce, (1,), x, sums, most, ROWS=8, SIZE=64)
    torch.testing.assert_close(sums, x.sum(1))
    assert most.view(FP32) == x.abs().max()


@pytest.mark.parametrize("dtype", [BF16, E4M3])
def test_dot(launch: Launcher, randn: Any, dtype: torch.dtype) -> None:
    a, b = randn(32, 64, dtype=dtype), randn(16, 64, dtype=dtype)
    out = torch.empty(32, 16, device=a.device)
    launch(multiply, (1,), a, b, out, M=32, N=16, K=64)
    torch.testing.assert_close(out, a.float() @ b.float().T, rtol=1e-4, atol=1e-4)


def test_dot_scaled_reads_nvfp4() -> None:
    generator = torch.Generator().manual_seed(5)
    a, b = (nvfp4.quantize(torch.randn(rows, 64, generator=generator)) for rows in (32, 16))
    out = torch.empty(32, 16)
    operands = (a.codes, a.scales, b.codes, b.scales)
    Interpreted()(multiply_nvfp4, (1,), *operands, out, M=32, N=16, K=64)
    one = torch.ones(())
    values = [nvfp4.dequantize(t.codes, t.scales, one, FP32) for t in (a, b)]
    torch.testing.assert_close(out, values[0] @ values[1].T)


def test_descriptors_stay_within_their_tensor(launch: Launcher, randn: Any) -> None:
    x = randn(37, 80)
    out = torch.empty_like(x)
    launch(copy_by_descriptor, (3, 2), x, out, 37, 80, ROWS=16, COLS=64)
    assert torch.equal(out, x)


def test_what_a_launcher_refuses_is_refused_here_too() -> None:
    x = torch.ones(33)
    with pytest.raises(KernelError, match="not a multiple of 16 bytes"):
        Interpreted()(convert, (1,), x[1:], torch.empty(32), SIZE=32)


def test_interpreting_leaves_the_compiler_as_it_was(randn: Any) -> None:
    before = (tl.load, tl.max, tl.tensor.__add__, tl.arange)
    interpreted(torch.ones(4), BF16)
    assert (tl.load, tl.max, tl.tensor.__add__, tl.arange) == before

    def wrapper(launch: Launcher, x: Tensor, out: Tensor) -> None:
        launch(convert, (1,), x, out, SIZE=128)

    (made,) = compiled("sm_90a", wrapper, meta(128), meta(128, dtype=FP32))
    assert made.resources.spilled == 0
    with pytest.raises(RuntimeError):
        convert(1, 2, 3)
