"""Ops of a streamed decoder beside its causal convolutions: the way up, pixels, and weights.

Frames are [T, H, W, C], channels last. Shapes: T frames of a call, H and W height and width, C
channels in, N channels out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.dialect.registry import BF16_ROUNDING, EXACT, SUM_ROUNDING, Tolerance, op
from llvq.dialect.ring_ops import BORDER, FP8, FP8_MAX, conv_channels_last, ring_slots

# A value between two steps may fall on either side.
ONE_STEP = Tolerance(1 / 255)


def _channels_last_weight_fake(weight: Tensor) -> Tensor:
    features, channels, *window = weight.shape
    return weight.new_empty((features, *window, channels))


@op(fake=_channels_last_weight_fake, tolerance=EXACT)
def channels_last_weight(weight: Tensor) -> Tensor:
    """The weight [N, C, kt, kh, kw] of a convolution as [N, kt, kh, kw, C].

    It reads a weight alone, as do `subpixel_weight` and the FP8 ops: a loader runs it once.
    """
    return weight.movedim(1, -1).contiguous()


def _fp8_conv_weight_fake(weight: Tensor) -> tuple[Tensor, Tensor]:
    codes = _channels_last_weight_fake(weight).to(FP8)
    return codes, weight.new_empty((weight.shape[0],), dtype=torch.float32)


@op(fake=_fp8_conv_weight_fake, tolerance=EXACT)
def fp8_conv_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes e4m3 [N, kt, kh, kw, C] and scales fp32 [N] of a weight [N, C, kt, kh, kw]."""
    amax = weight.float().abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True)
    scales = torch.where(amax > 0, amax / FP8_MAX, torch.ones_like(amax))
    codes = (weight.float() / scales).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    return codes.movedim(1, -1).contiguous(), scales.flatten()


def _subpixel_weight_fake(weight: Tensor) -> Tensor:
    features, channels = weight.shape[:2]
    return weight.new_empty((2, 2, features, 2, 2, channels))


@op(fake=_subpixel_weight_fake, tolerance=EXACT)
def subpixel_weight(weight: Tensor) -> Tensor:
    """Four 2x2 weights [2, 2, N, 2, 2, C] that do on a frame what a 3x3 weight [N, C, 3, 3] does on
    the frame repeated to twice its size: one for each of the four pixels that one becomes.

    Of three taps two fall on the same pixel, and their sum is rounded once.
    """
    w = weight.float().permute(0, 2, 3, 1)
    rows = _pairs(w, 1)
    both = torch.stack([_pairs(row, 2) for row in rows])
    return both.to(weight.dtype).contiguous()


def _pairs(w: Tensor, dim: int) -> Tensor:
    """Taps (a, b, c) as (a, b + c), for the first of two pixels, and (a + b, c), for the second."""
    a, b, c = w.unbind(dim)
    return torch.stack([torch.stack([a, b + c], dim), torch.stack([a + b, c], dim)])


def _upsample_conv_fake(
    ring: Tensor,
    weight: Tensor,
    bias: Tensor,
    shortcut: Tensor | None,
    doubled: bool,
    first: bool,
    decoded: Tensor,
    rate: int,
    offset: int,
    frames: int,
) -> Tensor:
    height, width = (2 * (size - 2 * BORDER) for size in ring.shape[1:3])
    if weight.shape[-1] != ring.shape[-1]:
        raise ValueError(f"{ring.shape[-1]} channels, the weight reads {weight.shape[-1]}")
    return ring.new_empty((frames, height, width, weight.shape[2]))


@op(fake=_upsample_conv_fake, tolerance=SUM_ROUNDING)
def upsample_conv(
    ring: Tensor,
    weight: Tensor,
    bias: Tensor,
    shortcut: Tensor | None,
    doubled: bool,
    first: bool,
    decoded: Tensor,
    rate: int,
    offset: int,
    frames: int,
) -> Tensor:
    """A 3x3 convolution of frames at twice their size: [T, 2*H, 2*W, N].

    `ring` [R, H+2, W+2, C] holds the frames of the call, as `ring_write` puts them. weight is what
    `subpixel_weight` gives. It is rounded, then the first T frames of `duplicate_up(shortcut, ...)`
    are added.
    """
    x = ring.index_select(0, ring_slots(ring, decoded, rate, 0, offset, frames))
    out = x.new_empty(_upsample_conv_fake(ring, weight, bias, None, doubled, first, decoded, rate,
                                          offset, frames).shape)  # fmt: skip
    height, width = ring.shape[1] - 1, ring.shape[2] - 1
    for row in range(2):
        for column in range(2):
            part = x[:, row : row + height, column : column + width]
            taps = weight[row, column][:, None]
            out[:, row::2, column::2] = conv_channels_last(part, taps, bias, None, None)
    if shortcut is None:
        return out
    return out + duplicate_up(shortcut, weight.shape[2], doubled=doubled, first=first)[:frames]


def duplicate_up(x: Tensor, features: int, *, doubled: bool, first: bool) -> Tensor:
    """Frames [T', H, W, C] repeated to twice their size, and twice as many if `doubled`, with N
    channels; `first` drops a doubled frame at the start."""
    frames, height, width, channels = x.shape
    times = 2 if doubled else 1
    copies = features * times * 4 // channels
    x = x[..., None].expand(-1, -1, -1, -1, copies)
    x = x.reshape(frames, height, width, features, times, 2, 2).permute(0, 4, 1, 5, 2, 6, 3)
    x = x.reshape(frames * times, 2 * height, 2 * width, features)
    return x[times - 1 :] if first else x


def _pixels_fake(x: Tensor, patch: int) -> Tensor:
    frames, height, width, channels = x.shape
    if channels != 3 * patch**2:
        raise ValueError(f"{channels} channels are not 3 colours of {patch}x{patch} pixels")
    return x.new_empty((frames, patch * height, patch * width, 3), dtype=torch.uint8)


@op(fake=_pixels_fake, tolerance=ONE_STEP)
def pixels(x: Tensor, patch: int) -> Tensor:
    """uint8 RGB [T, patch*H, patch*W, 3] of frames [T, H, W, 3*patch*patch] about [-1, 1].

    The channels of a frame are in the order (colour, column, row).
    """
    frames, height, width, _ = x.shape
    unit = x.float().clamp(-1, 1) * 0.5 + 0.5
    steps = (unit * 255).round().to(torch.uint8)
    blocks = steps.reshape(frames, height, width, 3, patch, patch).permute(0, 1, 5, 2, 4, 3)
    return blocks.reshape(frames, patch * height, patch * width, 3).contiguous()


def _conv3d_fp8_fake(
    x: Tensor, x_scale: Tensor, w_codes: Tensor, w_scales: Tensor, bias: Tensor
) -> Tensor:
    batch, _, frames, height, width = x.shape
    return x.new_empty((batch, w_codes.shape[0], frames - 2, height, width))


@op(fake=_conv3d_fp8_fake, tolerance=BF16_ROUNDING)
def conv3d_fp8(
    x: Tensor, x_scale: Tensor, w_codes: Tensor, w_scales: Tensor, bias: Tensor
) -> Tensor:
    """A 3x3x3 convolution in FP8, padded in space alone: [1, C, T+2, H, W] to [1, N, T, H, W].

    x is divided by x_scale [1] and rounded to e4m3; the weight is what `fp8_conv_weight` gives.
    """
    codes = (x[0].movedim(0, -1).float() / x_scale).clamp(-FP8_MAX, FP8_MAX).to(FP8).float()
    padded = F.pad(codes, (0, 0, BORDER, BORDER, BORDER, BORDER))
    out = conv_channels_last(padded, w_codes, bias, x_scale, w_scales)
    return out.movedim(-1, 0)[None].contiguous()
