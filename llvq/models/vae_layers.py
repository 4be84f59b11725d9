"""The layers that both halves of the Wan VAEs are made of.

Submodule names and positions are those of the published checkpoint (`residual.2.weight`).
Shapes: B batch, C channels, T frames, H and W height and width at that depth.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.models.vae_causal import CausalConv3d, TemporalState

KERNEL = (3, 3, 3)


class RmsNorm(nn.Module):
    """Unit L2 norm over the channels (axis 1), times sqrt(C), times a gain per channel."""

    def __init__(self, dim: int, *, spatial_axes: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *(1,) * spatial_axes))
        self.scale = dim**0.5

    def forward(self, x_BC: Tensor) -> Tensor:
        return F.normalize(x_BC, dim=1) * self.scale * self.gamma


class ResidualBlock(nn.Module):
    """Twice (norm, SiLU, causal convolution), added to a shortcut. Owns two slots."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            RmsNorm(in_dim),
            nn.SiLU(),
            CausalConv3d(in_dim, out_dim, KERNEL),
            RmsNorm(out_dim),
            nn.SiLU(),
            nn.Identity(),  # the dropout of training; it keeps the numbering of the checkpoint
            CausalConv3d(out_dim, out_dim, KERNEL),
        )
        same = in_dim == out_dim
        self.shortcut = nn.Identity() if same else CausalConv3d(in_dim, out_dim, (1, 1, 1))

    def forward(self, x_BCTHW: Tensor, state: TemporalState) -> Tensor:
        norm_in, act_in, conv_in, norm_out, act_out, _, conv_out = self.residual
        hidden = conv_in(act_in(norm_in(x_BCTHW)), state)
        hidden = conv_out(act_out(norm_out(hidden)), state)
        return hidden + self.shortcut(x_BCTHW)


class FrameAttention(nn.Module):
    """Single-head self-attention over the pixels of each frame, added to its input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RmsNorm(dim, spatial_axes=2)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        B, C, T, H, W = x_BCTHW.shape
        qkv = self.to_qkv(self.norm(frames_to_batch(x_BCTHW)))
        # One head of C channels, H*W tokens: (B*T, 1, H*W, C) each.
        q, k, v = qkv.reshape(B * T, 1, 3 * C, H * W).transpose(2, 3).contiguous().chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(q, k, v)
        out = self.proj(attended.transpose(2, 3).reshape(B * T, C, H, W))
        return batch_to_frames(out, B) + x_BCTHW


class Middle(nn.ModuleList):
    """Residual block, attention, residual block: the coarsest resolution of either half."""

    def __init__(self, dim: int) -> None:
        super().__init__([ResidualBlock(dim, dim), FrameAttention(dim), ResidualBlock(dim, dim)])

    def forward(self, x_BCTHW: Tensor, state: TemporalState) -> Tensor:
        enter, attend, leave = self
        return leave(attend(enter(x_BCTHW, state)), state)


class Head(nn.ModuleList):
    """Norm, SiLU and the last causal convolution of either half. Owns one slot."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__([RmsNorm(in_dim), nn.SiLU(), CausalConv3d(in_dim, out_dim, KERNEL)])

    def forward(self, x_BCTHW: Tensor, state: TemporalState) -> Tensor:
        norm, activation, conv = self
        return conv(activation(norm(x_BCTHW)), state)


def frames_to_batch(x_BCTHW: Tensor) -> Tensor:
    """(B, C, T, H, W) to (B*T, C, H, W)."""
    return x_BCTHW.transpose(1, 2).flatten(0, 1)


def batch_to_frames(x_NCHW: Tensor, batch: int) -> Tensor:
    """(batch*T, C, H, W) to (batch, C, T, H, W)."""
    return x_NCHW.unflatten(0, (batch, -1)).transpose(1, 2)
