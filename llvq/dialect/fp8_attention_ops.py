"""Attention in FP8: Q, K, V and the softmax weights are E4M3, sums and softmax are fp32.

Q has one scale per token and head, or comes in FP8 with one for all of it. K has one scale for all
of it, and V another, so that neither product needs more than one factor. Weights are at most 1 and
are scaled by 256. What comes out is a mean of rows of V, so the scale of V reaches it: an op that
ends in `quantize_fp8` writes FP8 under that scale, and no token has to be read twice.
Shapes: B, N, M, H, D as in model_ops, E = H*D, P pages of history.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llvq.dialect.model_ops import rope
from llvq.dialect.registry import Tolerance, like_attended, op
from llvq.formats import fp8
from llvq.formats.kv import KV_FORMATS

WEIGHT_SCALE = 256.0
# A kernel that sees the keys block by block rounds weights below a running maximum, and rescales
# later: another rounding of the same weights, each within half a step of E4M3, a sixteenth of it.
WEIGHT_ROUNDING = Tolerance(2**-4)
# And a result that this moves may round to the neighbouring code: an eighth of it, at most.
WEIGHT_ROUNDING_AND_STEP = Tolerance(2**-4 + 2**-3)


@op(fake=like_attended, tolerance=WEIGHT_ROUNDING)
def attention_fp8(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Softmax attention in FP8: q [B, N, H, D], k and v [B, M, H, D]; the dtype of q."""
    return _attend(q, k, v, *scales_of(k, v), scale).to(q.dtype)


def packed_like(q: Tensor, dim: int, q_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the ops that end in `quantize_fp8` return, for heads of V of `dim` channels."""
    if (q.dtype == fp8.DTYPE) != (q_scale is not None):
        raise ValueError(f"queries are {q.dtype}, and only those in FP8 come with a scale")
    batch, tokens, heads = q.shape[:3]
    return (
        q.new_empty((batch, tokens, heads * dim), dtype=fp8.DTYPE),
        q.new_empty((batch, tokens, 1), dtype=torch.float32),
    )


def _attention_quantize_fp8_fake(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, q_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return packed_like(q, v.shape[-1], q_scale)


@op(fake=_attention_quantize_fp8_fake, tolerance=WEIGHT_ROUNDING_AND_STEP)
def attention_quantize_fp8(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, q_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`attention_fp8` with its heads side by side: values e4m3 [B, N, E], and [B, N, 1] times the
    scale of V. With q_scale [1], q is e4m3 and stands for `q * q_scale`."""
    k_scale, v_scale = scales_of(k, v)
    return pack(_attend(q, k, v, k_scale, v_scale, scale, q_scale), v_scale)


def scales_of(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The scale of all of K and that of all of V, fp32 []."""
    return fp8.scale_of(k.abs().amax()), fp8.scale_of(v.abs().amax())


def pack(out: Tensor, v_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Results fp32 [B, N, H, D] as the ops that end in `quantize_fp8` return them."""
    values = fp8.encode(out, v_scale).flatten(2)
    return values, v_scale.expand(*out.shape[:2], 1).contiguous()


@op(fake=like_attended, tolerance=WEIGHT_ROUNDING)
def paged_attention_fp8(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pages: Sequence[Tensor],
    table: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    scale: float | None,
    layer: int,
    kv_format: str,
) -> Tensor:
    """`paged_attention` in FP8: a chunk [1, N, H, D] over the pages of `table` and itself.

    History is what its pages decode to in fp32. The scale of K and that of V cover the window: the
    largest magnitude of the chunk's own, and the bound that each page gives without its values
    being read. With cos and sin (relative positions) raw K is rotated as `paged_attention` does
    it, in the dtype of k; a rotation may make a bound sqrt(2) times as large, also that of the own.
    """
    q, window_k, window_v, k_scale, v_scale = _windows(
        q, k, v, pages, table, cos, sin, layer, kv_format
    )
    return _attend(q, window_k, window_v, k_scale, v_scale, scale).to(q.dtype)


def _paged_attention_quantize_fp8_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pages: Sequence[Tensor],
    table: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    scale: float | None,
    layer: int,
    kv_format: str,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if q_scale is not None and cos is not None:
        raise ValueError("queries in FP8 cannot be rotated")
    return packed_like(q, v.shape[-1], q_scale)


@op(fake=_paged_attention_quantize_fp8_fake, tolerance=WEIGHT_ROUNDING_AND_STEP)
def paged_attention_quantize_fp8(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pages: Sequence[Tensor],
    table: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    scale: float | None,
    layer: int,
    kv_format: str,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`paged_attention_fp8` with its heads side by side: values e4m3 [1, N, E], and [1, N, 1] times
    the scale of V.

    With q_scale [1], q is e4m3 and stands for `q * q_scale`. With k_scale [1], that is the scale of
    all of K as it is attended, in place of one that its magnitudes give.
    """
    q, window_k, window_v, found, v_scale = _windows(
        q, k, v, pages, table, cos, sin, layer, kv_format
    )
    k_scale = found if k_scale is None else k_scale
    return pack(_attend(q, window_k, window_v, k_scale, v_scale, scale, q_scale), v_scale)


def _windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pages: Sequence[Tensor],
    table: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    layer: int,
    kv_format: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, the window's K and V in fp32, and the scales of both."""
    read, bound = KV_FORMATS[kv_format].read, KV_FORMATS[kv_format].bound
    window_k, window_v = (
        torch.cat([read(pages, layer, which, table, torch.float32)[None], own.float()], dim=1)
        for which, own in enumerate((k, v))
    )
    k_scale, v_scale = (
        _window_scale(own, bound(pages, layer, which, table)) for which, own in enumerate((k, v))
    )
    if cos is not None and sin is not None:
        window, own = window_k.shape[1], q.shape[1]
        q = rope.reference(q, cos[window - own : window], sin[window - own : window])
        window_k = rope.reference(window_k.to(k.dtype), cos[:window], sin[:window])
        k_scale = k_scale * 2**0.5
    return q, window_k, window_v, k_scale, v_scale


def _window_scale(own: Tensor, bounds: Tensor) -> Tensor:
    """The scale of a window of K or V, fp32 [], from its own chunk and the bounds of pages [P]."""
    return fp8.scale_of(torch.cat([own.abs().amax().float().view(1), bounds]).amax())


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    scale: float | None,
    q_scale: Tensor | None = None,
) -> Tensor:
    """Attention over k and v as they are quantized, fp32 [B, N, H, D]."""
    codes = fp8.encode(k, k_scale), fp8.encode(v, v_scale)
    return attend_codes(q, *codes, k_scale, v_scale, scale, q_scale)


def attend_codes(
    q: Tensor,
    k_values: Tensor,
    v_values: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    scale: float | None,
    q_scale: Tensor | None,
) -> Tensor:
    """The same over codes e4m3. Head by head, to keep the scores of one in memory: [B, N, M] in
    fp32."""
    if q_scale is None:
        q_values, q_scale = fp8.quantize(q, (-1,))
    else:
        q_values, q_scale = q, q_scale.expand(*q.shape[:-1], 1)
    factor = q_scale * k_scale * (q.shape[-1] ** -0.5 if scale is None else scale)
    heads = []
    for h in range(q.shape[2]):
        q_h, k_h, v_h = (x[:, :, h].float() for x in (q_values, k_values, v_values))
        scores = q_h @ k_h.transpose(1, 2) * factor[:, :, h]
        weights = (scores - scores.amax(-1, keepdim=True)).exp() * WEIGHT_SCALE
        total = weights.sum(-1, keepdim=True)
        heads.append(weights.to(fp8.DTYPE).float() @ v_h * v_scale / total)
    return torch.stack(heads, dim=2)
