"""Ops of a streamed decoder: causal convolutions that read their memory in place, in rings.

A ring [R, H+2, W+2, C] holds the last R frames that went into one convolution, each inside a border
of zeros: frame p of the video lies in slot p % R. What makes the frames writes them there, and the
convolution reads them, and the frames before them, where they lie. Zeros are what was before the
first frame.

Which frames a call has is in `decoded` (int64 []), the latents decoded before it: its first frame
is `first_frame(decoded, rate, skip) + offset`, where `rate` frames go into the ring for a latent,
but one for the very first, and the first `skip` frames of the video do not. Convolutions that share
a ring are some slots apart, which their `offset` counts too.

Shapes: T frames of a call, H and W height and width, C channels in, N channels out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.dialect.fp8_ops import GIVEN_SCALE_STEP
from llvq.dialect.registry import EXACT, SUM_ROUNDING, op

BORDER = 1
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


def first_frame(decoded: Tensor, rate: int, skip: int) -> Tensor:
    """The frame of the video, int64 [], that a call begins with."""
    before = (decoded - 1) * rate + 1 - skip
    return torch.where(decoded > 0, before, torch.zeros_like(before))


def ring_slots(
    ring: Tensor, decoded: Tensor, rate: int, skip: int, offset: int, frames: int, context: int = 0
) -> Tensor:
    """The slots, int64 [context + frames], of the frames of a call and of `context` before them."""
    first = first_frame(decoded, rate, skip) + offset
    places = torch.arange(-context, frames, device=decoded.device)
    return (first + places) % ring.shape[0]


def _write_frames(ring: Tensor, x: Tensor, slots: Tensor) -> None:
    """Bytes, since no backend indexes FP8."""
    inside = ring[:, BORDER:-BORDER, BORDER:-BORDER]
    if ring.dtype == FP8:
        inside, x = inside.view(torch.uint8), x.view(torch.uint8)
    inside.index_copy_(0, slots, x)


def _read_frames(ring: Tensor, slots: Tensor) -> Tensor:
    if ring.dtype == FP8:
        return ring.view(torch.uint8).index_select(0, slots).view(FP8)
    return ring.index_select(0, slots)


def _ring_write_fake(
    ring: Tensor, x: Tensor, decoded: Tensor, rate: int, skip: int, offset: int
) -> None:
    _check_ring(ring, x.shape)
    if ring.dtype != x.dtype:
        raise ValueError(f"frames are {x.dtype}, the ring holds {ring.dtype}")


@op(fake=_ring_write_fake, tolerance=EXACT, mutates=("ring",))
def ring_write(ring: Tensor, x: Tensor, decoded: Tensor, rate: int, skip: int, offset: int) -> None:
    """Write frames x [T, H, W, C] into their slots of a ring of the same dtype."""
    _write_frames(ring, x, ring_slots(ring, decoded, rate, skip, offset, x.shape[0]))


def _ring_write_normed_fake(
    ring: Tensor,
    x: Tensor,
    gamma: Tensor,
    factor: float,
    ring_scale: Tensor | None,
    decoded: Tensor,
    rate: int,
    skip: int,
    offset: int,
) -> None:
    _check_ring(ring, x.shape)
    _check_dtype(ring, ring_scale)


@op(fake=_ring_write_normed_fake, tolerance=GIVEN_SCALE_STEP, mutates=("ring",))
def ring_write_normed(
    ring: Tensor,
    x: Tensor,
    gamma: Tensor,
    factor: float,
    ring_scale: Tensor | None,
    decoded: Tensor,
    rate: int,
    skip: int,
    offset: int,
) -> None:
    """Write SiLU(x / |x| * factor * gamma [C]) for frames x [T, H, W, C]; every step rounds to the
    dtype of x.

    Divided by `ring_scale` fp32 [1], where a ring holds e4m3.
    """
    normed = torch.cat([_normed(frame, gamma, factor) for frame in x.split(1)])
    if ring_scale is not None:
        normed = (normed.float() / ring_scale).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    _write_frames(ring, normed, ring_slots(ring, decoded, rate, skip, offset, x.shape[0]))


def _normed(frame: Tensor, gamma: Tensor, factor: float) -> Tensor:
    """One frame alone: PyTorch rounds SiLU by where in a tensor an element is."""
    return F.silu(F.normalize(frame, dim=-1) * factor * gamma)


def _ring_conv_fake(
    ring: Tensor,
    weight: Tensor,
    bias: Tensor,
    ring_scale: Tensor | None,
    weight_scales: Tensor | None,
    residual: Tensor | None,
    decoded: Tensor,
    rate: int,
    skip: int,
    offset: int,
    frames: int,
    doubles: bool,
) -> Tensor:
    features, depth, *_, channels = weight.shape
    if channels != ring.shape[-1]:
        raise ValueError(f"the ring has {ring.shape[-1]} channels, the weight reads {channels}")
    if ring.shape[0] < frames + depth - 1:
        raise ValueError(
            f"{frames} frames and {depth - 1} before them do not fit into {ring.shape}"
        )
    if (ring.dtype, weight.dtype) not in ((FP8, FP8), (bias.dtype, bias.dtype)):
        raise ValueError(f"a ring of {ring.dtype} and a weight of {weight.dtype}")
    _check_dtype(ring, ring_scale)
    height, width = ring.shape[1] - 2 * BORDER, ring.shape[2] - 2 * BORDER
    copies = 2 if doubles else 1
    return bias.new_empty((copies * frames, height, width, features // copies))


@op(fake=_ring_conv_fake, tolerance=SUM_ROUNDING)
def ring_conv(
    ring: Tensor,
    weight: Tensor,
    bias: Tensor,
    ring_scale: Tensor | None,
    weight_scales: Tensor | None,
    residual: Tensor | None,
    decoded: Tensor,
    rate: int,
    skip: int,
    offset: int,
    frames: int,
    doubles: bool,
) -> Tensor:
    """The causal convolution of `frames` frames of a ring: [T, H, W, N], in the dtype of `bias`.

    weight [N, kt, kh, kw, C] with kt = 3, and 3x3 or 1x1 in space. In FP8 products are scaled by
    ring_scale [1] and weight_scales [N]. It is rounded before `residual` [T, H, W, N] is added.
    With `doubles`, either half of the features is a frame: [2*T, H, W, N/2].
    """
    depth, height = weight.shape[1:3]
    slots = ring_slots(ring, decoded, rate, skip, offset, frames, context=depth - 1)
    x = _read_frames(ring, slots)
    if height == 1:
        x = x[:, BORDER:-BORDER, BORDER:-BORDER]
    out = conv_channels_last(x, weight, bias, ring_scale, weight_scales)
    if doubles:
        out = out.unflatten(-1, (2, -1)).movedim(-2, 1).flatten(0, 1).contiguous()
    return out if residual is None else out + residual


def conv_channels_last(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_scale: Tensor | None,
    weight_scales: Tensor | None,
) -> Tensor:
    """Valid convolution of frames [T, H, W, C] with weight [N, kt, kh, kw, C], channels last.

    Each frame is computed alone: how many there are must not change one bit of any.
    """
    depth = weight.shape[1]
    windows = (x[i : i + depth] for i in range(x.shape[0] - depth + 1))
    return torch.cat([_conv_frame(window, weight, bias, x_scale, weight_scales)
                      for window in windows])  # fmt: skip


def _conv_frame(
    window: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_scale: Tensor | None,
    weight_scales: Tensor | None,
) -> Tensor:
    """One frame [1, H', W', N] of the frames [kt, H, W, C] that it is computed from.

    All of them go into it, so time is more channels of a convolution in space, which PyTorch has
    faster. On a CPU in fp32, and rounded once: it has convolutions in bf16 for CPUs with AVX-512,
    and loops for all others, which took thirty times as long.
    """
    x, w = window.movedim(-1, 1).flatten(0, 1)[None], weight.movedim(-1, 2).flatten(1, 2)
    if x_scale is None or weight_scales is None:
        if x.device.type == "cpu":
            x, w, bias = x.float(), w.float(), bias.float()
        return F.conv2d(x, w, bias).movedim(1, -1).to(window.dtype).contiguous()
    out = F.conv2d(x.float(), w.float()).movedim(1, -1) * (weight_scales * x_scale) + bias.float()
    return out.to(bias.dtype).contiguous()


def _check_ring(ring: Tensor, frames: torch.Size) -> None:
    slots, height, width, channels = ring.shape
    if (height - 2 * BORDER, width - 2 * BORDER, channels) != tuple(frames[1:]):
        raise ValueError(f"frames {list(frames)} do not lie in a ring {list(ring.shape)}")
    if frames[0] > slots:
        raise ValueError(f"{frames[0]} frames at once in a ring of {slots}")


def _check_dtype(ring: Tensor, ring_scale: Tensor | None) -> None:
    if (ring.dtype == FP8) != (ring_scale is not None):
        raise ValueError(
            f"a ring of {ring.dtype} {'without' if ring_scale is None else 'with'} scale"
        )
