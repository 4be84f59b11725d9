"""The window of a chunk as FP8 operands of attention: history from its pages, then the chunk.

K is [H, W, D] and V its transpose, [H, D, W], because FP8 tensor cores want both operands with the
reduction dim contiguous. It exists for one layer at a time. Keys of V lie in the order in which
a thread of a warp group holds weights (see `KEY_ORDER`), so the weights never leave its registers.

Shapes: N tokens of a chunk, P pages of history, W keys of the window, padded with zeros to a
multiple of KEYS; H heads, D head dim, E = H * D.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.decode import DECODED as DECODED_BY
from llvq.backends.triton.decode import decode_nvfp4
from llvq.backends.triton.specialize import Launcher
from llvq.errors import TargetError
from llvq.formats import fp8, nvfp4

KEYS = 128  # a window is padded to a multiple of it, the keys of one step of attention
PARTS = 2048  # programs, at most, that look for the largest magnitude; each leaves that of its part
FORMATS = ("none", "fp8", "nvfp4")
E4M3_MAX = tl.constexpr(nvfp4.E4M3_MAX)
NVFP4_MAX = tl.constexpr(nvfp4.E2M1_MAX * nvfp4.E4M3_MAX)
SIGNLESS = tl.constexpr(0x7FFFFFFF)
DECODED = tl.constexpr(DECODED_BY)


@dataclass(frozen=True)
class Window:
    """k e4m3 [H, W, D], v e4m3 [H, D, W] in KEY_ORDER, scales fp32 [2] of K and V; `keys` of W are
    not padding."""

    k: Tensor
    v: Tensor
    scales: Tensor
    keys: int


@dataclass(frozen=True)
class History:
    """Pages that a table int64 [P] names, of one layer, as `paged_attention` takes them."""

    pages: Sequence[Tensor]
    table: Tensor
    layer: int
    kv_format: str


def window_in_fp8(
    launch: Launcher,
    k: Tensor,
    v: Tensor,
    history: History | None = None,
    rope: tuple[Tensor, Tensor] | None = None,
) -> Window:
    """The window that ends with a chunk's k and v [1, N, H, D]. K is rotated by its place where
    `rope`, cos and sin fp32 [>= W, D/2], is given. Raises TargetError: a format or a head dim."""
    _, tokens, heads, dim = k.shape
    _check(dim, history)
    pages = history.table.shape[0] if history is not None else 0
    keys = (pages + 1) * tokens
    padded = triton.cdiv(keys, KEYS) * KEYS
    scales = _scales(launch, k, v, history, rotated=rope is not None)
    window_k, window_v = (
        torch.empty(shape, dtype=fp8.DTYPE, device=k.device)
        for shape in ((heads, padded, dim), (heads, dim, padded))
    )
    sizes = (pages, tokens, keys, padded, heads, _slots(history), _layer(history))
    for which, own, out in ((0, k, window_k), (1, v, window_v)):
        launch(
            expand_kernel,
            (padded // KEYS, heads),
            in_rows(own),
            *_tensors(history),
            *(rope if rope is not None and which == 0 else (None, None)),
            scales,
            out,
            in_rows(own).stride(0),
            *sizes,
            WHICH=which,
            FORMAT=history.kv_format if history is not None else "none",
            D=dim,
            KEYS=KEYS,
        )
    return Window(window_k, window_v, scales, keys)


def in_rows(x: Tensor) -> Tensor:
    """x [1, N, H, D] as [N, E], without a copy where a token's heads lie side by side."""
    return x.reshape(x.shape[1], -1)


def _check(dim: int, history: History | None) -> None:
    if dim < 32 or dim & (dim - 1):
        raise TargetError(
            f"attention in FP8 cannot have heads of {dim} channels",
            because="its tiles are powers of two from 32 on",
            fix="export with --numerics w4a4-emulated or w4a16",
        )
    if history is not None and history.kv_format not in FORMATS:
        raise TargetError(
            f"attention in FP8 cannot read {history.kv_format} pages",
            because=f"it reads {', '.join(FORMATS)}",
            fix="quantize with another kv.format",
        )


def _tensors(history: History | None) -> tuple[Tensor | None, ...]:
    """Three page tensors, as far as the format has them, and the table."""
    if history is None or not history.table.shape[0]:
        return (None, None, None, None)
    pages = (*history.pages, None, None)[:3]
    return (*pages, history.table)


def _slots(history: History | None) -> int:
    return history.pages[0].shape[2] if history is not None else 0


def _layer(history: History | None) -> int:
    return history.layer if history is not None else 0


def _scales(
    launch: Launcher, k: Tensor, v: Tensor, history: History | None, *, rotated: bool
) -> Tensor:
    """fp32 [2], of K and V: from the chunk's largest magnitudes, and what bounds those of pages."""
    parts = min(PARTS, triton.next_power_of_2(k.shape[1]))
    maxima = torch.empty((2, parts), dtype=torch.float32, device=k.device)
    scales = torch.empty(2, dtype=torch.float32, device=k.device)
    kv_format = history.kv_format if history is not None else "none"
    pages = history.table.shape[0] if history is not None else 0
    place = (pages, _slots(history), _layer(history))
    values, *bounds, table = _tensors(history)
    plain = (values, table) if kv_format == "none" else (None, None)
    for which, own in enumerate((in_rows(k), in_rows(v))):
        launch(
            maxima_kernel,
            (parts,),
            own,
            *plain,
            maxima,
            own.stride(0),
            *own.shape,
            *place,
            WHICH=which,
            BLOCK=triton.next_power_of_2(own.shape[1]),
            PARTS=parts,
        )
    bound = {"none": None, "fp8": bounds[0], "nvfp4": bounds[1]}[kv_format]
    factor = E4M3_MAX.value if kv_format == "fp8" else NVFP4_MAX.value
    rotation = (2.0**0.5, 1.0) if rotated else (1.0, 1.0)
    table = table if bound is not None else None
    sizes = (factor, *rotation, *place)
    launch(scales_kernel, (2,), maxima, bound, table, scales, *sizes, PARTS=parts)
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


@triton.jit
def maxima_kernel(
    own,
    values,
    table,
    maxima,
    own_stride,
    tokens,
    channels,
    pages,
    slots,
    layer,
    WHICH: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    part = tl.program_id(0)
    channel = tl.arange(0, BLOCK)
    inside = channel < channels
    found = tl.zeros((BLOCK,), tl.float32).to(tl.int32, bitcast=True)
    row_of_own = own + part.to(tl.int64) * own_stride + channel
    for _ in range(part, tokens, PARTS):
        x = tl.load(row_of_own, mask=inside, other=0.0)
        row_of_own += PARTS * own_stride
        found = tl.maximum(found, x.to(tl.float32).to(tl.int32, bitcast=True) & SIGNLESS)
    if values is not None:
        for row in range(part, pages * tokens, PARTS):
            slot = tl.load(table + row // tokens)
            at = (((layer * 2 + WHICH) * slots + slot) * tokens + row % tokens) * channels
            x = tl.load(values + at + channel, mask=inside, other=0.0)
            found = tl.maximum(found, x.to(tl.float32).to(tl.int32, bitcast=True) & SIGNLESS)
    tl.store(maxima + WHICH * PARTS + part, tl.max(found, 0).to(tl.float32, bitcast=True))


@triton.jit
def scales_kernel(
    maxima,
    bounds,
    table,
    scales,
    factor,
    k_rotation,
    v_rotation,
    pages,
    slots,
    layer,
    PARTS: tl.constexpr,
):
    """One program for K and one for V. A rotation may enlarge the larger of a pair by sqrt(2)."""
    which = tl.program_id(0)
    amax = largest(tl.load(maxima + which * PARTS + tl.arange(0, PARTS)), 0)
    if bounds is not None:
        first = (layer * 2 + which) * slots
        for page in range(pages):
            bound = tl.load(bounds + first + tl.load(table + page)) * factor
            amax = largest(tl.join(amax, bound), 0)
    rotation = tl.where(which == 0, k_rotation, v_rotation)
    tl.store(scales + which, scale_for(amax) * rotation)


@triton.jit
def key_order(place):
    """KEY_ORDER: the key that lies at a place of V.

    Thread t of four holds keys 8j + 2t + e of an accumulator, and wants places 4t + 2j + e of an
    operand: what it has is what it wants if the keys of V lie there.
    """
    return (place // 16) * 16 + ((place // 2) % 2) * 8 + ((place // 4) % 4) * 2 + place % 2


@triton.jit
def expand_kernel(
    own,
    page0,
    page1,
    page2,
    table,
    cos,
    sin,
    scales,
    out,
    own_stride,
    pages,
    tokens,
    keys,
    padded,
    heads,
    slots,
    layer,
    WHICH: tl.constexpr,
    FORMAT: tl.constexpr,
    D: tl.constexpr,
    KEYS: tl.constexpr,
):
    head = tl.program_id(1)
    place = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    key = key_order(place) if WHICH == 1 else place
    history = pages * tokens
    dims = tl.arange(0, D)
    row = (key - history).to(tl.int64) * own_stride + head * D
    is_own = (key >= history) & (key < keys)
    x = tl.load(own + row[:, None] + dims[None, :], mask=is_own[:, None], other=0.0)
    x = x.to(tl.float32)
    if page0 is not None:
        first = (layer * 2 + WHICH) * slots
        in_page = key < history
        slot = tl.load(table + key // tokens, mask=in_page, other=0)
        at = ((first + slot) * tokens + key % tokens) * heads + head
        past = load_page(page0, page1, page2, at, first + slot, in_page, FORMAT, D, KEYS)
        x = tl.where(in_page[:, None], past, x)
    if cos is not None:
        half = tl.arange(0, D // 2)
        angle = key[:, None] * (D // 2) + half[None, :]
        x = rotate(x, cos, sin, angle, (key < keys)[:, None], KEYS, D, own.dtype.element_ty)
    values = (x * (1.0 / tl.load(scales + WHICH))).to(tl.float8e4nv)
    if WHICH == 0:
        tl.store(out + (head.to(tl.int64) * padded + place)[:, None] * D + dims[None, :], values)
    else:
        column = (head * D + dims).to(tl.int64) * padded
        tl.store(out + column[:, None] + place[None, :], tl.trans(values))


@triton.jit
def load_page(
    page0, page1, page2, at, slot, mask, FORMAT: tl.constexpr, D: tl.constexpr, KEYS: tl.constexpr
):
    """fp32 [KEYS, D] of rows `at` of a page pool, whose tensors are those of the format."""
    if FORMAT != "nvfp4":
        dims = tl.arange(0, D)
        x = tl.load(page0 + at[:, None] * D + dims[None, :], mask=mask[:, None], other=0.0)
        x = x.to(tl.float32)
        if FORMAT == "fp8":
            x = x * tl.load(page1 + slot, mask=mask, other=0.0)[:, None]
        return x
    else:
        byte, block = tl.arange(0, D // 2), tl.arange(0, D // 16)
        codes = tl.load(page0 + at[:, None] * (D // 2) + byte[None, :], mask=mask[:, None], other=0)
        scale = tl.load(
            page1 + at[:, None] * (D // 16) + block[None, :], mask=mask[:, None], other=0.0
        )
        g = tl.load(page2 + slot, mask=mask, other=0.0)
        # As bf16 they are exact: the tensor's own scale comes after.
        x = decode_nvfp4(codes, scale, KEYS, D).to(tl.float32)
        return x * (g * DECODED)[:, None]


@triton.jit
def rotate(x, cos, sin, angle, mask, ROWS: tl.constexpr, D: tl.constexpr, DTYPE: tl.constexpr):
    """x fp32 [ROWS, D], rounded to DTYPE, rotated by pairs, rounded again."""
    c = tl.load(cos + angle, mask=mask, other=1.0)
    s = tl.load(sin + angle, mask=mask, other=0.0)
    even, odd = tl.split(x.to(DTYPE).to(tl.float32).reshape(ROWS, D // 2, 2))
    turned = tl.join(even * c - odd * s, even * s + odd * c).reshape(ROWS, D)
    return turned.to(DTYPE).to(tl.float32)
