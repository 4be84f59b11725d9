"""Ops raised from ATen: what a video transformer is made of, one op per idea.

Shapes: B batch, N query tokens, M key tokens, H heads, D head dim, E channels = H*D, G groups of
tokens that share a modulation vector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.dialect.registry import ATTENTION_ROUNDING, BF16_ROUNDING, like_attended, like_first, op


@op(fake=like_attended, tolerance=ATTENTION_ROUNDING)
def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Softmax attention: q [B, N, H, D], k and v [B, M, H, D].

    `mask` broadcasts to [B, H, N, M]: added to the scores, or a boolean that keeps where True.
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).contiguous()


@op(fake=like_first, tolerance=BF16_ROUNDING)
def rms_norm(x: Tensor, weight: Tensor, eps: float, round_first: bool) -> Tensor:
    """RMS norm over the last dim with fp32 statistics.

    `round_first` rounds to the dtype of `x` before the weight is applied (the Wan spelling);
    otherwise the weight is applied in fp32 (`torch.rms_norm`).
    """
    x_fp32 = x.float()
    normed = x_fp32 * torch.rsqrt(x_fp32.pow(2).mean(-1, keepdim=True) + eps)
    if round_first:
        return normed.to(x.dtype) * weight
    return (normed * weight.float()).to(x.dtype)


@op(fake=like_first, tolerance=BF16_ROUNDING)
def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the channel pairs of x [B, N, H, D] by cos, sin fp32 [N, D/2]; rounds once."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return rotated.flatten(-2).to(x.dtype)


@op(fake=like_first, tolerance=BF16_ROUNDING)
def norm_modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """`layer_norm(x) * (1 + scale) + shift`: x [B, N, E], scale and shift [B, G, E].

    The dtype of `scale` says where it rounds: modulation in the dtype of x rounds after the norm
    and after each step (the LongLive spelling); fp32 modulation rounds once, at the end.
    """
    normed = F.layer_norm(x.float(), (x.shape[-1],), eps=eps)
    if scale.dtype == x.dtype:
        normed = normed.to(x.dtype)
    grouped = normed.unflatten(1, (scale.shape[1], -1))
    modulated = grouped * (1 + scale.unsqueeze(2)) + shift.unsqueeze(2)
    return modulated.flatten(1, 2).to(x.dtype)


def _rms_norm_rope_fake(
    x: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    eps: float,
    round_first: bool,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], heads, x.shape[-1] // heads))


@op(fake=_rms_norm_rope_fake, tolerance=BF16_ROUNDING)
def rms_norm_rope(
    x: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    eps: float,
    round_first: bool,
) -> Tensor:
    """qk-norm over all channels of x [B, N, E], then rotary positions per head [B, N, H, D]."""
    normed = rms_norm.reference(x, weight, eps, round_first)
    return rope.reference(normed.unflatten(-1, (heads, -1)), cos, sin)


@op(fake=like_first, tolerance=BF16_ROUNDING)
def gate_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """`x + gate * y`: x, y [B, N, E], gate [B, G, E]. An fp32 gate rounds once, at the end."""
    gated = (y.unflatten(1, (gate.shape[1], -1)) * gate.unsqueeze(2)).flatten(1, 2)
    return (x.to(gate.dtype) + gated).to(x.dtype)
