"""What this device reaches in the run that is held against it: libraries at real shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llvq.bench.timing import Spread, measure

# Inputs that take turns, so that no cache holds the next one.
COPIES = 4
REPEATS = 20
E4M3_MAX = 448.0


@dataclass(frozen=True)
class Linear:
    """One shape: [m, k] times [n, k]."""

    m: int
    k: int
    n: int

    @property
    def flop(self) -> int:
        return 2 * self.m * self.k * self.n


@dataclass(frozen=True)
class Ceiling:
    """`rate` in TFLOP/s, or TB/s for a copy; None where the library has nothing for this device."""

    what: str
    shape: str
    time: Spread | None
    rate: float | None


def ceilings(
    device: torch.device, linears: Iterable[Linear], queries: int, keys: int, heads: int, dim: int
) -> list[Ceiling]:
    """GEMMs in bf16 and in FP8 (a scale per row, or one), attention in bf16, and a copy."""
    rows = []
    for linear in linears:
        shape = f"{linear.m}x{linear.k}x{linear.n}"
        rows.append(_ceiling("bf16 GEMM", shape, linear.flop, _bf16(linear, device), device))
        rows.append(_ceiling("fp8 GEMM", shape, linear.flop, _fp8(linear, device), device))
        calls = _fp8(linear, device, rowwise=False)
        rows.append(_ceiling("fp8 GEMM, one scale", shape, linear.flop, calls, device))
    shape = f"{queries}x{keys}, {heads} heads of {dim}"
    attention = _attention(device, queries, keys, heads, dim)
    rows.append(
        _ceiling("bf16 attention", shape, 4 * queries * keys * heads * dim, attention, device)
    )
    nbytes = 2**30 if device.type == "cuda" else 2**24
    source, target = (torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(2))
    source.random_()
    rows.append(
        _ceiling("copy", f"{nbytes >> 20} MiB", 2 * nbytes, [lambda: target.copy_(source)], device)
    )
    return rows


def best(rows: Iterable[Ceiling], what: str) -> float | None:
    """The highest rate of one kind."""
    rates = [row.rate for row in rows if row.what == what and row.rate is not None]
    return max(rates, default=None)


def _ceiling(
    what: str, shape: str, amount: int, calls: list[Callable[[], Tensor]], device: torch.device
) -> Ceiling:
    """`amount` in FLOP or bytes."""
    if not calls:
        return Ceiling(what, shape, None, None)
    with torch.inference_mode():
        time = measure(calls, device, repeats=REPEATS)
    return Ceiling(what, shape, time, amount / time.median / 1e12)


def _bf16(linear: Linear, device: torch.device) -> list[Callable[[], Tensor]]:
    return [_bf16_call(linear, device) for _ in range(COPIES)]


def _bf16_call(linear: Linear, device: torch.device) -> Callable[[], Tensor]:
    like = {"dtype": torch.bfloat16, "device": device}
    x, w = torch.randn(linear.m, linear.k, **like), torch.randn(linear.n, linear.k, **like)
    return lambda: F.linear(x, w)


def _fp8(
    linear: Linear, device: torch.device, *, rowwise: bool = True
) -> list[Callable[[], Tensor]]:
    """cuBLASLt by torch._scaled_mm, fast accumulation; only GPUs have it."""
    if device.type != "cuda":
        return []
    return [_fp8_call(linear, device, rowwise=rowwise) for _ in range(COPIES)]


def _fp8_call(linear: Linear, device: torch.device, *, rowwise: bool) -> Callable[[], Tensor]:
    x, w = (
        (torch.randn(rows, linear.k, device=device) * 64).clamp(-E4M3_MAX, E4M3_MAX)
        for rows in (linear.m, linear.n)
    )
    x, w = x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn)
    x_scale = torch.rand((linear.m, 1) if rowwise else (), device=device) + 0.5
    w_scale = torch.rand((1, linear.n) if rowwise else (), device=device) + 0.5
    more = {"out_dtype": torch.bfloat16, "use_fast_accum": True}
    return lambda: torch._scaled_mm(x, w.t(), scale_a=x_scale, scale_b=w_scale, **more)


def _attention(
    device: torch.device, queries: int, keys: int, heads: int, dim: int
) -> list[Callable[[], Tensor]]:
    """cuDNN's on a GPU, PyTorch's own elsewhere."""
    backend = SDPBackend.CUDNN_ATTENTION if device.type == "cuda" else SDPBackend.MATH
    q, k, v = (
        torch.randn(1, heads, count, dim, dtype=torch.bfloat16, device=device)
        for count in (queries, keys, keys)
    )

    def call() -> Tensor:
        with sdpa_kernel([backend]):
            return F.scaled_dot_product_attention(q, k, v)

    return [call]
