"""The encoder half of the Wan VAEs: packed pixels to latents, 8x in space, 4x in time.

Wan2.2 has a module per resolution, which adds a shortcut; in Wan2.1 the layers of all resolutions
are one list, and the way up halves the channels.
Shapes: B batch, C channels, T frames, H and W height and width at that depth.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from llvq.models.config import VaeConfig
from llvq.models.vae_causal import CausalConv3d, TemporalState
from llvq.models.vae_layers import KERNEL, Head, Middle, ResidualBlock
from llvq.models.vae_resample import Downsample, average_down, run_layers


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
        x = run_layers(self.downsamples, x_BCTHW, state, first=first)
        return x + average_down(x_BCTHW, self.out_dim, time=self.time, space=self.down)


class Encoder(nn.Module):
    """Packed pixels (B, pixel channels, T', 8*h, 8*w) to latent moments (B, 2*z, T, h, w)."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        dims = [config.dim * m for m in (1, *config.dim_mult)]
        halves = (*config.temporal_downsample, False)
        layers, last = list[nn.Module](), len(halves) - 1
        for i, (in_dim, out_dim) in enumerate(pairwise(dims)):
            blocks = config.num_res_blocks
            stage = DownStage(in_dim, out_dim, blocks, down=i < last, time=halves[i])
            layers += [stage] if config.is_residual else stage.downsamples
        self.conv1 = CausalConv3d(config.pixel_channels, dims[0], KERNEL)
        self.downsamples = nn.ModuleList(layers)
        self.middle = Middle(dims[-1])
        self.head = Head(dims[-1], 2 * config.z_dim)

    def forward(self, x_BCTHW: Tensor, state: TemporalState, *, first: bool) -> Tensor:
        x = run_layers(self.downsamples, self.conv1(x_BCTHW, state), state, first=first)
        return self.head(self.middle(x, state), state)
