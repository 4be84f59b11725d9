"""Scales of a window in FP8: one for all of K, one for all of V, and one for Q where it has one.

From the largest magnitudes of a chunk, and from what bounds those of the pages of its history; or
given, where a norm bounds them, and then nothing is read for it.
Shapes: N tokens of a chunk, P pages of history, H heads, D head dim, E = H * D.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.specialize import Launcher
from llvq.formats import nvfp4

PARTS = 2048  # programs, at most, that look for a largest magnitude; each leaves that of its part
E4M3_MAX = tl.constexpr(nvfp4.E4M3_MAX)
NVFP4_MAX = nvfp4.E2M1_MAX * nvfp4.E4M3_MAX
SIGNLESS = tl.constexpr(0x7FFFFFFF)


@dataclass(frozen=True)
class History:
    """Pages that a table int64 [P] names, of one layer, as `paged_attention` takes them."""

    pages: Sequence[Tensor]
    table: Tensor
    layer: int
    kv_format: str


# No history: what a kernel is told of one.
NOTHING = ((None, None, None, None), (0, 0, 0), "none")
Told = tuple[tuple[Tensor | None, ...], tuple[int, int, int], str]


def told(history: History | None) -> Told:
    """What a kernel is told of a history: three page tensors, as far as the format has them, and
    the table; the numbers of pages, slots and the layer; the format."""
    if history is None or not history.table.shape[0]:
        return NOTHING
    pages = (*history.pages, None, None)[:3]
    sizes = (history.table.shape[0], history.pages[0].shape[2], history.layer)
    return (*pages, history.table), sizes, history.kv_format


def in_rows(x: Tensor) -> Tensor:
    """x [1, N, H, D] as [N, E], without a copy where a token's heads lie side by side."""
    return x.reshape(x.shape[1], -1)


def window_scales(
    launch: Launcher,
    k: Tensor,
    v: Tensor,
    q: Tensor | None,
    history: Told,
    *,
    rotated: bool,
    k_scale: Tensor | None = None,
    q_scale: Tensor | None = None,
) -> Tensor:
    """fp32 [2] of K and V, or [3] with that of Q, of which those given are copied.

    `rotated` says that K and Q are yet to be.
    """
    (values, *bounds, table), sizes, kv_format = history
    count = 2 if q is None else 3
    # Those in between are searched for: V always is.
    first, end = int(k_scale is not None), 2 if q_scale is not None else count
    parts = min(PARTS, triton.next_power_of_2(k.shape[1]))
    maxima = torch.empty((count, parts), dtype=torch.float32, device=k.device)
    scales = torch.empty(count, dtype=torch.float32, device=k.device)
    rows = [in_rows(x) for x in (k, v, k if q is None or q_scale is not None else q)]
    channels = rows[0].shape[1]
    launch(
        maxima_kernel,
        (parts, end - first),
        *rows,
        *((values, table) if kv_format == "none" else (None, None)),
        maxima,
        *(x.stride(0) for x in rows),
        *(rows[0].shape[0], rows[2].shape[0], channels, *sizes),
        BLOCK=triton.next_power_of_2(channels),
        PARTS=parts,
        FIRST=first,
    )
    bound = {"none": None, "fp8": bounds[0], "nvfp4": bounds[1]}[kv_format]
    factor = E4M3_MAX.value if kv_format == "fp8" else NVFP4_MAX
    # A rotation may enlarge the larger of a pair by sqrt(2).
    rotation = 2.0**0.5 if rotated else 1.0
    table = None if bound is None else table
    launch(
        scales_kernel,
        (end - first,),
        *(maxima, bound, table, k_scale, q_scale, scales, factor, rotation, *sizes),
        PARTS=parts,
        FIRST=first,
    )
    return scales


@triton.jit
def largest(x, axis: tl.constexpr):
    """The largest magnitude along an axis. Compared as integers, so that NaN is above infinity."""
    bits = x.to(tl.float32).to(tl.int32, bitcast=True) & SIGNLESS
    return tl.max(bits, axis).to(tl.float32, bitcast=True)


@triton.jit
def scale_for(amax):
    """What maps a largest magnitude to 448; 1 for zero."""
    return tl.where(amax == 0.0, 1.0, tl.math.div_rn(amax, E4M3_MAX))


@triton.jit(do_not_specialize=["tokens", "q_tokens", "pages", "slots", "layer"])
def maxima_kernel(
    k,
    v,
    q,
    values,
    table,
    maxima,
    k_stride,
    v_stride,
    q_stride,
    tokens,
    q_tokens,
    channels,
    pages,
    slots,
    layer,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    FIRST: tl.constexpr,
):
    part, which = tl.program_id(0), tl.program_id(1) + FIRST
    own, stride, rows = k, k_stride, tokens
    if which == 1:
        own, stride = v, v_stride
    if which == 2:
        own, stride, rows = q, q_stride, q_tokens
    channel = tl.arange(0, BLOCK)
    inside = channel < channels
    found = tl.zeros((BLOCK,), tl.int32)
    row_of_own = own + part.to(tl.int64) * stride
    for _ in range(part, rows, PARTS):
        x = tl.load(row_of_own + channel, mask=inside, other=0.0)
        row_of_own += PARTS * stride
        found = tl.maximum(found, x.to(tl.float32).to(tl.int32, bitcast=True) & SIGNLESS)
    if values is not None:
        for row in range(part, tl.where(which == 2, 0, pages * tokens), PARTS):
            slot = tl.load(table + row // tokens)
            at = (((layer * 2 + which) * slots + slot) * tokens + row % tokens) * channels
            x = tl.load(values + at + channel, mask=inside, other=0.0)
            found = tl.maximum(found, x.to(tl.float32).to(tl.int32, bitcast=True) & SIGNLESS)
    tl.store(maxima + which * PARTS + part, tl.max(found, 0).to(tl.float32, bitcast=True))


@triton.jit(do_not_specialize=["pages", "slots", "layer"])
def scales_kernel(
    maxima,
    bounds,
    table,
    k_scale,
    q_scale,
    scales,
    factor,
    rotation,
    pages,
    slots,
    layer,
    PARTS: tl.constexpr,
    FIRST: tl.constexpr,
):
    """One program for each of K, V and Q that is not given. V is never rotated, and its program
    copies what is given."""
    which = tl.program_id(0) + FIRST
    if which == 1:
        if k_scale is not None:
            tl.store(scales, tl.load(k_scale))
        if q_scale is not None:
            tl.store(scales + 2, tl.load(q_scale))
    amax = largest(tl.load(maxima + which * PARTS + tl.arange(0, PARTS)), 0)
    if bounds is not None:
        first = (layer * 2 + which) * slots
        for page in range(tl.where(which == 2, 0, pages)):
            bound = tl.load(bounds + first + tl.load(table + page)) * factor
            amax = largest(tl.join(amax, bound), 0)
    tl.store(scales + which, scale_for(amax) * tl.where(which == 1, 1.0, rotation))
