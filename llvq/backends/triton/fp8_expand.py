"""Pages of K or V, and the chunk behind them, to one tensor in FP8: `expand_kernel`.

The window is taken in tiles of KEYS keys of HEADS heads, in blocks of 16 channels: a thread has
whole blocks. The chunk is the last page here. It was read for its scale just before, so its tiles
go first: the end of it is still in the cache.

LAYOUT: "rows" [W, H, D]; "heads" [H, W, D]; "transposed" [H, D, W], keys in `key_order`.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from llvq.backends.triton.fp8_blocks import BLOCK, load_blocks, load_page, scaled, unit_of

# Places of V that a thread has side by side when it transposes: two bytes that move together.
BESIDE = tl.constexpr(2)
SCALARS = ["tokens", "keys", "heads", "first_angle", "which", "pages", "slots", "layer"]


@triton.jit
def key_order(place):
    """The key that lies at a place of V.

    Thread t of four holds keys 8j + 2t + e of an accumulator, and wants places 4t + 2j + e of an
    operand: what it has is what it wants if the keys of V lie there.
    """
    return (place // 16) * 16 + ((place // 2) % 2) * 8 + ((place // 4) % 4) * 2 + place % 2


@triton.jit
def blocks_of(LAYOUT: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr):
    """Of every block of a tile: its key and its head in the tile, its place in the head."""
    block = tl.arange(0, KEYS * HEADS * (D // BLOCK))
    row, block = block // (D // BLOCK), block % (D // BLOCK)
    key, head = row // HEADS, row % HEADS
    if LAYOUT == "transposed":
        key = key_order(key % (KEYS // BESIDE) * BESIDE + key // (KEYS // BESIDE))
    return key, head, block


@triton.jit
def tile_at(out, first, head, heads, width, LAYOUT: tl.constexpr, D: tl.constexpr):
    """Where the tile of a first key and head goes."""
    first, head = first.to(tl.int64), head.to(tl.int64)
    if LAYOUT == "rows":
        return out + (first * heads + head) * D
    elif LAYOUT == "heads":
        return out + (head * width + first) * D
    else:
        return out + head * D * width + first


@triton.jit
def store(
    to, x, key, head, block, inside, heads, width,
    LAYOUT: tl.constexpr, D: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Blocks x fp32 [B, 16] in e4m3, those inside the window; None: all of them."""
    codes = x.to(tl.float8e4nv)
    if LAYOUT == "transposed":
        at = to + (tl.arange(0, D)[:, None] * width + tl.arange(0, KEYS)[None, :])
        turned = codes.reshape(BESIDE, KEYS // BESIDE, D).permute(2, 1, 0)
        tl.store(at, turned.reshape(D, KEYS))
    else:
        row = key * heads + head if LAYOUT == "rows" else head * width + key
        at = to + ((row * D + block * BLOCK)[:, None] + tl.arange(0, BLOCK)[None, :])
        tl.store(at, codes, mask=None if inside is None else inside[:, None])


@triton.jit(do_not_specialize=SCALARS)
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
    STEPS: tl.constexpr,
):
    """STEPS tiles, which are all in one page: what is known of it is found once."""
    head = tl.program_id(0) * HEADS
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * (KEYS * STEPS)
    key, beside, block = blocks_of(LAYOUT, D, HEADS, KEYS)
    to = tile_at(out, first, head, heads, width, LAYOUT, D)
    to_next = KEYS * heads * D if LAYOUT == "rows" else KEYS * D if LAYOUT == "heads" else KEYS
    angle = (first_angle + first + key) * (D // 2) + block * (BLOCK // 2)
    inverse = 1.0 / tl.load(scales + which)
    page = tl.minimum(first // tokens, pages)
    if page < pages:
        if page0 is not None:
            slot = (layer * 2 + which) * slots + tl.load(table + page)
            unit = unit_of(page1, page2, slot, FORMAT)
            at, row = (slot * tokens + first - page * tokens) * heads + head, key * heads + beside
            for _ in range(STEPS):
                x, factor = load_page(page0, page1, at, row, block, None, FORMAT, D)
                x = scaled(x, factor * unit, inverse, cos, sin, angle, None, own.dtype.element_ty)
                store(to, x, key, beside, block, None, heads, width, LAYOUT, D, KEYS)
                at += KEYS * heads
                to += to_next
                angle += KEYS * (D // 2)
    else:
        own += (first - page * tokens).to(tl.int64) * own_stride + head * D
        offset = key * own_stride + beside * D + block * BLOCK
        left = keys - first
        for _ in range(STEPS):
            inside = key < left  # what pads the window is zeros
            x = load_blocks(own, offset, inside, 0.0).to(tl.float32)
            x = scaled(x, 1.0, inverse, cos, sin, angle, inside, own.dtype.element_ty)
            store(to, x, key, beside, block, None, heads, width, LAYOUT, D, KEYS)
            left -= KEYS
            own += KEYS * own_stride
            to += to_next
            angle += KEYS * (D // 2)


@triton.jit(do_not_specialize=SCALARS)
def expand_shared_kernel(
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
):
    """One tile, which several pages may share. They meet in registers, as fp32: of e4m3 that two
    branches of a loop store, ptxas 12.8 and 12.9 stored what the time before had."""
    head = tl.program_id(0) * HEADS
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * KEYS
    local, beside, block = blocks_of(LAYOUT, D, HEADS, KEYS)
    key = first + local
    angle = (first_angle + key) * (D // 2) + block * (BLOCK // 2)
    inverse = 1.0 / tl.load(scales + which)
    merged = tl.zeros((KEYS * HEADS * (D // BLOCK), BLOCK), tl.float32)
    end_page = tl.minimum((first + KEYS - 1) // tokens, pages) + 1
    for page in range(tl.minimum(first // tokens, pages), end_page):
        start = page * tokens
        inside = (key >= start) & (key < tl.where(page == pages, keys, start + tokens))
        if page < pages:
            if page0 is not None:
                slot = (layer * 2 + which) * slots + tl.load(table + page)
                unit = unit_of(page1, page2, slot, FORMAT)
                at, row = (slot * tokens + first - start) * heads + head, local * heads + beside
                x, factor = load_page(page0, page1, at, row, block, inside, FORMAT, D)
                x = scaled(x, factor * unit, inverse, cos, sin, angle, inside, own.dtype.element_ty)
                merged = tl.where(inside[:, None], x, merged)
        else:
            at = (first - start).to(tl.int64) * own_stride + head * D
            offset = local * own_stride + beside * D + block * BLOCK
            x = load_blocks(own + at, offset, inside, 0.0).to(tl.float32)
            x = scaled(x, 1.0, inverse, cos, sin, angle, inside, own.dtype.element_ty)
            merged = tl.where(inside[:, None], x, merged)
    to = tile_at(out, first, head, heads, width, LAYOUT, D)
    store(to, merged, local, beside, block, key < width, heads, width, LAYOUT, D, KEYS)
