"""Changes of resolution in the Wan VAEs: learned resampling, its shortcuts, and pixel packing.

Time is resampled by 2 from the second frame on: the first frame of a video stays one frame at every
depth. `first` says that a call starts with that frame.
Shapes: B batch, C channels, T frames, H and W height and width at that depth.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.models.vae_causal import CausalConv3d, TemporalState
from llvq.models.vae_layers import ResidualBlock, batch_to_frames, frames_to_batch

TIME_KERNEL = (3, 1, 1)


class Upsample(nn.Module):
    """Twice the height and width and, if `time`, twice the frames (it then owns one slot)."""

    def __init__(self, dim: int, out_dim: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=(2.0, 2.0), mode="nearest-exact"),
            nn.Conv2d(dim, out_dim, 3, padding=1),
        )
        self.time_conv = CausalConv3d(dim, 2 * dim, TIME_KERNEL) if time else None

    def forward(self, x_BCTHW: Tensor, state: TemporalState, *, first: bool) -> Tensor:
        x = x_BCTHW
        if self.time_conv is not None:
            # The first frame is not doubled, and the second starts from zeros, not from the first.
            doubled = _interleave(self.time_conv(x[:, :, 1:] if first else x, state))
            x = torch.cat([x[:, :, :1], doubled], dim=2) if first else doubled
        return batch_to_frames(self.resample(frames_to_batch(x)), x.shape[0])


class Downsample(nn.Module):
    """Half the height and width and, if `time`, half the frames (it then owns one slot)."""

    def __init__(self, dim: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)),
            nn.Conv2d(dim, dim, 3, stride=2),
        )
        self.time_conv = CausalConv3d(dim, dim, TIME_KERNEL, time_stride=2) if time else None

    def forward(self, x_BCTHW: Tensor, state: TemporalState, *, first: bool) -> Tensor:
        x = batch_to_frames(self.resample(frames_to_batch(x_BCTHW)), x_BCTHW.shape[0])
        if self.time_conv is None:
            return x
        if not first:
            return self.time_conv(x, state)
        # The first frame passes as it is, and is what the frames after it continue from.
        start, rest = x[:, :, :1], x[:, :, 1:]
        return torch.cat([start, self.time_conv(rest, state, start)], dim=2)


def run_layers(
    layers: nn.ModuleList, x_BCTHW: Tensor, state: TemporalState, *, first: bool
) -> Tensor:
    """Layers one after another. Only a residual block need not know of a first frame."""
    x = x_BCTHW
    for layer in layers:
        blind = isinstance(layer, ResidualBlock)
        x = layer(x, state) if blind else layer(x, state, first=first)
    return x


def duplicate_up(x_BCTHW: Tensor, out_dim: int, *, time: bool, first: bool) -> Tensor:
    """Shortcut around an `Upsample`: each value repeated into its block of space and time."""
    B, C, T, H, W = x_BCTHW.shape
    t = 2 if time else 1
    copies = out_dim * t * 4 // C
    x = x_BCTHW[:, :, None].expand(-1, -1, copies, -1, -1, -1)
    x = x.reshape(B, out_dim, t, 2, 2, T, H, W).permute(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.reshape(B, out_dim, T * t, 2 * H, 2 * W)
    return x[:, :, t - 1 :] if first else x


def average_down(x_BCTHW: Tensor, out_dim: int, *, time: bool, space: bool = True) -> Tensor:
    """Shortcut around a `Downsample`: means over blocks of space, time and channels.

    An odd number of frames starts with the first one of a video; a zero frame completes its block.
    """
    t, s = 2 if time else 1, 2 if space else 1
    x = F.pad(x_BCTHW, (0, 0, 0, 0, x_BCTHW.shape[2] % t, 0))
    B, C, T, H, W = x.shape
    x = x.reshape(B, C, T // t, t, H // s, s, W // s, s).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(B, out_dim, C * t * s * s // out_dim, T // t, H // s, W // s).mean(dim=2)


def space_to_depth(video_BCTHW: Tensor, size: int) -> Tensor:
    """(B, C, T, s*H, s*W) to (B, s*s*C, T, H, W), channels in the order (c, column, row)."""
    if size == 1:
        return video_BCTHW
    B, C, T, H, W = video_BCTHW.shape
    x = video_BCTHW.reshape(B, C, T, H // size, size, W // size, size).permute(0, 1, 6, 4, 2, 3, 5)
    return x.reshape(B, size * size * C, T, H // size, W // size)


def depth_to_space(x_BCTHW: Tensor, size: int) -> Tensor:
    """The inverse of `space_to_depth`."""
    if size == 1:
        return x_BCTHW
    B, C, T, H, W = x_BCTHW.shape
    channels = C // (size * size)
    x = x_BCTHW.reshape(B, channels, size, size, T, H, W).permute(0, 1, 4, 5, 3, 6, 2)
    return x.reshape(B, channels, T, size * H, size * W)


def _interleave(x_BCTHW: Tensor) -> Tensor:
    """(B, 2*C, T, H, W) to (B, C, 2*T, H, W): two halves of the channels become two frames."""
    B, C, T, H, W = x_BCTHW.shape
    x = x_BCTHW.reshape(B, 2, C // 2, T, H, W).permute(0, 2, 3, 1, 4, 5)
    return x.reshape(B, C // 2, 2 * T, H, W)
