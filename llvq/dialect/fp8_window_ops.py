"""Attention in FP8 over K and V that were brought to FP8 before, as its tensor cores read them.

What belongs to a prompt is brought there once for the prompt, not once for every call.
Shapes: N, M, H, D as in model_ops, E = H*D, W keys: M, padded with zeros to a multiple of 128.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from llvq.dialect.fp8_attention_ops import (
    WEIGHT_ROUNDING_AND_STEP,
    attend_codes,
    pack,
    packed_like,
    scales_of,
)
from llvq.dialect.fp8_ops import FP8_STEP
from llvq.dialect.registry import op
from llvq.formats import fp8

STEP = 128  # keys that attention takes at a time


def key_order(keys: int) -> Tensor:
    """Which key lies at each place of V, int64 [keys], a multiple of 16: a thread of four holds
    weights of keys 8j + 2t + e, and wants them at places 4t + 2j + e."""
    place = torch.arange(keys)
    return place // 16 * 16 + place // 2 % 2 * 8 + place // 4 % 4 * 2 + place % 2


def _padded(keys: int) -> int:
    return ceil(keys / STEP) * STEP


def _window_fp8_fake(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, keys, heads, dim = k.shape
    if batch != 1:
        raise ValueError(f"a window is of one video, not of {batch}")
    return (
        k.new_empty((heads, _padded(keys), dim), dtype=fp8.DTYPE),
        v.new_empty((heads, v.shape[-1], _padded(keys)), dtype=fp8.DTYPE),
        k.new_empty((2,), dtype=torch.float32),
    )


@op(fake=_window_fp8_fake, tolerance=FP8_STEP)
def window_fp8(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k and v [1, M, H, D] as codes e4m3 [H, W, D] and [H, D, W], and the scales fp32 [2] of both.

    Keys of V lie in `key_order`.
    """
    k_scale, v_scale = scales_of(k, v)
    order = key_order(_padded(k.shape[1])).to(v.device)
    k_rows, v_rows = _rows(fp8.encode(k, k_scale)), _rows(fp8.encode(v, v_scale))[order]
    layouts = k_rows.permute(1, 0, 2), v_rows.permute(1, 2, 0)
    k_codes, v_codes = (x.contiguous().view(fp8.DTYPE) for x in layouts)
    return k_codes, v_codes, torch.stack([k_scale, v_scale])


def _rows(codes: Tensor) -> Tensor:
    """Codes [1, M, H, D] as bytes [W, H, D]."""
    bytes_, keys = codes[0].view(torch.uint8), codes.shape[1]
    rows = bytes_.new_zeros((_padded(keys), *codes.shape[2:]))
    rows[:keys] = bytes_
    return rows


def _window_attention_quantize_fp8_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scales: Tensor,
    keys: int,
    scale: float | None = None,
    q_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if k.shape[1] != _padded(keys) or v.shape[2] != _padded(keys):
        raise ValueError(f"{list(k.shape)} and {list(v.shape)} are no window of {keys} keys")
    return packed_like(q, v.shape[1], q_scale)


@op(fake=_window_attention_quantize_fp8_fake, tolerance=WEIGHT_ROUNDING_AND_STEP)
def window_attention_quantize_fp8(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scales: Tensor,
    keys: int,
    scale: float | None = None,
    q_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`attention_quantize_fp8` of q [1, N, H, D] over what `window_fp8` made of `keys` keys."""
    place = key_order(k.shape[1]).argsort().to(v.device)
    k_rows = k.view(torch.uint8).permute(1, 0, 2)[:keys]
    v_rows = v.view(torch.uint8).permute(2, 0, 1)[place][:keys]
    k_codes, v_codes = (x.contiguous().view(fp8.DTYPE)[None] for x in (k_rows, v_rows))
    k_scale, v_scale = scales
    return pack(attend_codes(q, k_codes, v_codes, k_scale, v_scale, scale, q_scale), v_scale)
