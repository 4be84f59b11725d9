"""The window of a chunk as FP8 operands of attention: history from its pages, then the chunk.

It exists for one layer at a time. `window_in_fp8` has K as [H, W, D] and V as its transpose,
[H, D, W], because FP8 tensor cores want both operands with the reduction dim contiguous. Keys of V
lie in the order in which a thread of a warp group holds weights (see `key_order`), so the weights
never leave its registers. `rows_in_fp8` has Q, K and V as they come, row by row.

Shapes: N tokens of a chunk, P pages of history, W keys of the window, for `window_in_fp8` padded
with zeros to a multiple of KEYS; H heads, D head dim, E = H * D.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.fp8_blocks import BLOCK, load_blocks, load_page, scaled
from llvq.backends.triton.fp8_scales import NOTHING, History, Told, in_rows, told, window_scales
from llvq.backends.triton.specialize import Launcher
from llvq.errors import TargetError
from llvq.formats import fp8

KEYS = 128  # a window is padded to a multiple of it, the keys of one step of attention
ROWS = 64  # of D channels, in one program: a power of two of heads, of as many tokens as remain
MAX_HEADS = 8  # of one program: their scales in a page fill a sector
WARPS = 8
# Places of V that a thread has side by side when it transposes: two bytes that move together.
BESIDE = tl.constexpr(2)
FORMATS = ("none", "fp8", "nvfp4")


@dataclass(frozen=True)
class Window:
    """k e4m3 [H, W, D], v e4m3 [H, D, W] in the order of `key_order`, scales fp32 [2] of K and V;
    `keys` of W are not padding."""

    k: Tensor
    v: Tensor
    scales: Tensor
    keys: int


@dataclass(frozen=True)
class Rows:
    """q e4m3 [N, H, D], k and v e4m3 [W, H, D], scales fp32 [3] of K, V and Q."""

    q: Tensor
    k: Tensor
    v: Tensor
    scales: Tensor


Rope = tuple[Tensor, Tensor] | None


def window_fp8(launch: Launcher, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A window of k and v [1, M, H, D] alone: its k, v and scales."""
    window = window_in_fp8(launch, k, v)
    return window.k, window.v, window.scales


def window_in_fp8(
    launch: Launcher,
    k: Tensor,
    v: Tensor,
    history: History | None = None,
    rope: Rope = None,
    k_scale: Tensor | None = None,
) -> Window:
    """The window that ends with a chunk's k and v [1, N, H, D]. K is rotated by its place where
    `rope`, cos and sin fp32 [>= W, D/2], is given; its scale may be. Raises TargetError: a format
    or a head dim."""
    _, tokens, heads, dim = k.shape
    _check(dim, history)
    known = told(history)
    keys = (known[1][0] + 1) * tokens
    padded = triton.cdiv(keys, KEYS) * KEYS
    scales = window_scales(launch, k, v, None, known, rotated=rope is not None, k_scale=k_scale)
    window_v = _expand(launch, v, (heads, dim, padded), known, scales, 1, "transposed")
    window_k = _expand(launch, k, (heads, padded, dim), known, scales, 0, "heads", rope)
    return Window(window_k, window_v, scales, keys)


def rows_in_fp8(
    launch: Launcher,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    history: History | None = None,
    rope: Rope = None,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
) -> Rows:
    """The same with q [1, N, H, D], which is rotated as the last keys are, or comes in FP8 with its
    scale; nothing is padded."""
    _, tokens, heads, dim = k.shape
    _check(dim, history)
    known = told(history)
    keys = (known[1][0] + 1) * tokens
    given = {"k_scale": k_scale, "q_scale": q_scale}
    scales = window_scales(launch, k, v, q, known, rotated=rope is not None, **given)
    shape, q_rows = (keys, heads, dim), q[0]
    if q_scale is None:
        first = keys - q.shape[1]
        q_rows = _expand(launch, q, q.shape[1:], NOTHING, scales, 2, "rows", rope, first)
    v_rows = _expand(launch, v, shape, known, scales, 1, "rows")
    k_rows = _expand(launch, k, shape, known, scales, 0, "rows", rope)
    return Rows(q_rows.contiguous(), k_rows, v_rows, scales)


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


def _expand(
    launch: Launcher,
    own: Tensor,
    shape: Sequence[int],
    history: Told,
    scales: Tensor,
    which: int,
    layout: str,
    rope: Rope = None,
    first_angle: int = 0,
) -> Tensor:
    """e4m3 of that shape: the pages of K or V, `which` is 0 or 1, and then `own`."""
    _, tokens, heads, dim = own.shape
    tensors, sizes, kv_format = history
    keys = (sizes[0] + 1) * tokens
    rows = in_rows(own)
    out = torch.empty(shape, dtype=fp8.DTYPE, device=own.device)
    width = {"rows": keys, "heads": shape[1], "transposed": shape[2]}[layout]
    together = 1 if layout == "transposed" else min(MAX_HEADS, heads & -heads)
    tile = ROWS // together
    launch(
        expand_kernel,
        (heads // together, triton.cdiv(width, tile)),
        rows,
        *tensors,
        *(rope or (None, None)),
        scales,
        out,
        rows.stride(0),
        *(tokens, keys, width, heads, first_angle, which, *sizes),
        FORMAT=kv_format,
        LAYOUT=layout,
        D=dim,
        HEADS=together,
        KEYS=tile,
        WHOLE=tokens % tile == 0,
        warps=WARPS,
    )
    return out


@triton.jit
def key_order(place):
    """The key that lies at a place of V.

    Thread t of four holds keys 8j + 2t + e of an accumulator, and wants places 4t + 2j + e of an
    operand: what it has is what it wants if the keys of V lie there.
    """
    return (place // 16) * 16 + ((place // 2) % 2) * 8 + ((place // 4) % 4) * 2 + place % 2


@triton.jit(
    do_not_specialize=["tokens", "keys", "heads", "first_angle", "which", "pages", "slots", "layer"]
)
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
    tokens,
    keys,
    width,
    heads,
    first_angle,
    which,
    pages,
    slots,
    layer,
    FORMAT: tl.constexpr,
    LAYOUT: tl.constexpr,
    D: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """KEYS keys of HEADS heads, in blocks of 16 channels: a thread has whole blocks.

    They are in one page each time, or in the chunk, which is the last page here; where WHOLE, there
    is one time only. Otherwise pages meet in registers, as fp32: of e4m3 that two branches of a
    loop store, ptxas 12.8 and 12.9 stored what the time before had. The chunk was read for its
    scale just before, so it goes first: the end of it is still in the cache.
    """
    head = tl.program_id(0) * HEADS
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * KEYS
    block = tl.arange(0, KEYS * HEADS * (D // BLOCK))
    row, block = block // (D // BLOCK), block % (D // BLOCK)
    local, beside = row // HEADS, row % HEADS
    if LAYOUT == "rows":
        to = out + (first.to(tl.int64) * heads + head) * D
        to_block = (local * heads + beside) * D + block * BLOCK
    elif LAYOUT == "heads":
        to = out + (head.to(tl.int64) * width + first) * D
        to_block = (beside * width + local) * D + block * BLOCK
    else:
        to = out + (head * D).to(tl.int64) * width + first
        to_block = width  # from one channel to the next
        local = key_order(local % (KEYS // BESIDE) * BESIDE + local // (KEYS // BESIDE))
    key = first + local
    inverse = 1.0 / tl.load(scales + which)
    angle = (first_angle + key) * (D // 2) + block * (BLOCK // 2)
    last = first + KEYS - 1
    if not WHOLE:
        merged = tl.zeros((KEYS * HEADS * (D // BLOCK), BLOCK), tl.float32)
    for page in range(tl.minimum(first // tokens, pages), tl.minimum(last // tokens, pages) + 1):
        start = page * tokens
        end = tl.where(page == pages, keys, start + tokens)
        inside = (key >= start) & (key < end)
        if page < pages:
            if page0 is not None:
                slot = (layer * 2 + which) * slots + tl.load(table + page)
                at = (slot * tokens + first - start) * heads + head
                at_row = local * heads + beside
                x, unit = load_page(page0, page1, page2, at, at_row, block, slot, inside, FORMAT, D)
                x = scaled(x, unit, inverse, cos, sin, angle, inside, own.dtype.element_ty)
                if WHOLE:
                    store(to, to_block, x, key < width, LAYOUT, D, KEYS)
                else:
                    merged = tl.where(inside[:, None], x, merged)
        else:
            at = (first - start).to(tl.int64) * own_stride + head * D
            offset = local * own_stride + beside * D + block * BLOCK
            x = load_blocks(own + at, offset, inside, 0.0).to(tl.float32)
            x = scaled(x, 1.0, inverse, cos, sin, angle, inside, own.dtype.element_ty)
            if WHOLE:
                store(to, to_block, x, key < width, LAYOUT, D, KEYS)
            else:
                merged = tl.where(inside[:, None], x, merged)
    if not WHOLE:
        store(to, to_block, merged, key < width, LAYOUT, D, KEYS)


@triton.jit
def store(to, to_block, x, inside, LAYOUT: tl.constexpr, D: tl.constexpr, KEYS: tl.constexpr):
    """Blocks x fp32 [B, 16] in e4m3."""
    if LAYOUT == "transposed":
        at = to + (tl.arange(0, D)[:, None] * to_block + tl.arange(0, KEYS)[None, :])
        turned = x.to(tl.float8e4nv).reshape(BESIDE, KEYS // BESIDE, D).permute(2, 1, 0)
        tl.store(at, turned.reshape(D, KEYS))
    else:
        at = to_block[:, None] + tl.arange(0, BLOCK)[None, :]
        tl.store(to + at, x.to(tl.float8e4nv), mask=inside[:, None])
