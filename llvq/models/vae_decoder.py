"""The decoder half of the Wan2.2 VAE: latents to pixels, 8x in space (2x more outside), 4x in time.

Shapes: B batch, C channels, T frames, H and W height and width at that depth.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from llvq.models.config import VaeConfig
from llvq.models.vae_causal import CausalConv3d, TemporalState
from llvq.models.vae_layers import KERNEL, Head, Middle, ResidualBlock
from llvq.models.vae_resample import Upsample, duplicate_up


class UpStage(nn.Module):
    """Residual blocks at one resolution, then the way up to the next (not in the last stage)."""

    def __init__(self, in_dim: int, out_dim: int, blocks: int, *, up: bool, time: bool) -> None:
        super().__init__()
        self.out_dim, self.up, self.time = out_dim, up, time
        dims = [in_dim] + [out_dim] * blocks
        layers: list[nn.Module] = [ResidualBlock(a, b) for a, b in pairwise(dims)]
        if up:
            layers.append(Upsample(out_dim, time=time))
        self.upsamples = nn.ModuleList(layers)

    def forward(self, x_BCTHW: Tensor, state: TemporalState, *, first: bool) -> Tensor:
        blocks = self.upsamples[:-1] if self.up else self.upsamples
        x = x_BCTHW
        for block in blocks:
            x = block(x, state)
        if not self.up:
            return x
        x = self.upsamples[-1](x, state, first=first)
        return x + duplicate_up(x_BCTHW, self.out_dim, time=self.time, first=first)


class Decoder(nn.Module):
    """Latents (B, z, T, h, w) to space-to-depth pixels (B, 12, T', 8*h, 8*w)."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        mult = config.dim_mult[::-1]
        dims = [config.dec_dim * m for m in (mult[0], *mult)]
        doubles = (*config.temporal_downsample[::-1], False)
        last = len(mult) - 1
        self.conv1 = CausalConv3d(config.z_dim, dims[0], KERNEL)
        self.middle = Middle(dims[0])
        self.upsamples = nn.ModuleList(
            UpStage(
                dims[i],
                dims[i + 1],
                config.num_res_blocks + 1,
                up=i < last,
                time=doubles[i],
            )
            for i in range(len(mult))
        )
        self.head = Head(dims[-1], 12)

    def forward(self, z_BCTHW: Tensor, state: TemporalState, *, first: bool) -> Tensor:
        x = self.middle(self.conv1(z_BCTHW, state), state)
        for stage in self.upsamples:
            x = stage(x, state, first=first)
        return self.head(x, state)
