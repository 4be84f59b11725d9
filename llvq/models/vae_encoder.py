"""The encoder half of the Wan2.2 VAE: pixels to latents, 8x in space (2x more outside), 4x in time.

Shapes: B batch, C channels, T frames, H and W height and width at that depth.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from llvq.models.config import VaeConfig
from llvq.models.vae_causal import CausalConv3d, TemporalState
from llvq.models.vae_layers import KERNEL, Head, Middle, ResidualBlock
from llvq.models.vae_resample import Downsample, average_down


class DownStage(nn.Module):
    """Residual blocks at one resolution, then the way down to the next (not in the last stage)."""

    def __init__(self, in_dim: int, out_dim: int, blocks: int, *, down: bool, time: bool) -> None:
        super().__init__()
        self.out_dim, self.down, self.time = out_dim, down, time
        dims = [in_dim] + [out_dim] * blocks
        layers: list[nn.Module] = [ResidualBlock(a, b) for a, b in pairwise(dims)]
        if down:
            layers.append(Downsample(out_dim, time=time))
        self.downsamples = nn.ModuleList(layers)

    def forward(self, x_BCTHW: Tensor, state: TemporalState, *, first: bool) -> Tensor:
        blocks = self.downsamples[:-1] if self.down else self.downsamples
        x = x_BCTHW
        for block in blocks:
            x = block(x, state)
        if self.down:
            x = self.downsamples[-1](x, state, first=first)
        return x + average_down(x_BCTHW, self.out_dim, time=self.time, space=self.down)


class Encoder(nn.Module):
    """Space-to-depth pixels (B, 12, T', 8*h, 8*w) to latent moments (B, 2*z, T, h, w)."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        dims = [config.dim * m for m in (1, *config.dim_mult)]
        halves = (*config.temporal_downsample, False)
        last = len(config.dim_mult) - 1
        self.conv1 = CausalConv3d(12, dims[0], KERNEL)
        self.downsamples = nn.ModuleList(
            DownStage(
                dims[i],
                dims[i + 1],
                config.num_res_blocks,
                down=i < last,
                time=halves[i],
            )
            for i in range(len(config.dim_mult))
        )
        self.middle = Middle(dims[-1])
        self.head = Head(dims[-1], 2 * config.z_dim)

    def forward(self, x_BCTHW: Tensor, state: TemporalState, *, first: bool) -> Tensor:
        x = self.conv1(x_BCTHW, state)
        for stage in self.downsamples:
            x = stage(x, state, first=first)
        return self.head(self.middle(x, state), state)
