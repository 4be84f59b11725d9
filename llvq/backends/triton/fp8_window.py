"""The window of a chunk as FP8 operands of attention: history from its pages, then the chunk.

It exists for one layer at a time. `window_in_fp8` has K as [H, W, D] and V as its transpose,
[H, D, W], because FP8 tensor cores want both operands with the reduction dim contiguous. Keys of V
lie in the order in which a thread of a warp group holds weights (see `key_order`), so the weights
never leave its registers. `rows_in_fp8` has Q, K and V as they come, row by row.

Shapes: N tokens of a chunk, P pages of history, W keys of the window, for `window_in_fp8` padded
with zeros to a multiple of KEYS; H heads, D head dim, E = H * D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from llvq.backends.triton.fp8_expand import expand_kernel, expand_shared_kernel
from llvq.backends.triton.fp8_scales import NOTHING, History, Told, in_rows, told, window_scales
from llvq.backends.triton.specialize import Launcher
from llvq.errors import TargetError
from llvq.formats import fp8

KEYS = 128  # a window is padded to a multiple of it, the keys of one step of attention
# Rows of D channels in a tile: a power of two of heads, of as many tokens as remain. At D = 128 a
# thread has one block, or two where V is transposed, in lines of 64 bytes.
ROWS, TRANSPOSED_ROWS = 32, 64
MAX_HEADS = 8  # of one program: their scales in a page fill a sector
SPAN = 32  # keys of one program, tile after tile, as far as they divide pages and the chunk
WARPS = 8
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
    tile = (TRANSPOSED_ROWS if layout == "transposed" else ROWS) // together
    steps = min(max(SPAN, tile), tokens & -tokens) // tile  # 0: pages share tiles
    more: dict[str, Any] = {"STEPS": steps} if steps else {}
    launch(
        expand_kernel if steps else expand_shared_kernel,
        (heads // together, triton.cdiv(width, tile * max(steps, 1))),
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
        **more,
        warps=WARPS,
    )
    return out
