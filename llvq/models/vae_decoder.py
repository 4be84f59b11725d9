"""The decoder half of the Wan VAEs: latents to packed pixels, 8x in space, 4x in time.

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
from llvq.models.vae_resample import Upsample, duplicate_up, run_layers


class UpStage(nn.Module):
    """Residual blocks at one resolution, then the way up to the next, at `up` channels."""

    def __init__(
        self, in_dim: int, out_dim: int, blocks: int, *, up: int | None, time: bool
    ) -> None:
        super().__init__()
        self.out_dim, self.up, self.time = out_dim, up, time
        dims = [in_dim] + [out_dim] * blocks
        layers: list[nn.Module] = [ResidualBlock(a, b) for a, b in pairwise(dims)]
        if up is not None:
            layers.append(Upsample(out_dim, up, time=time))
        self.upsamples = nn.ModuleList(layers)

    def forward(self, x_BCTHW: Tensor, state: TemporalState, *, first: bool) -> Tensor:
        x = run_layers(self.upsamples, x_BCTHW, state, first=first)
        if self.up is None:
            return x
        return x + duplicate_up(x_BCTHW, self.out_dim, time=self.time, first=first)


class Decoder(nn.Module):
    """Latents (B, z, T, h, w) to packed pixels (B, pixel channels, T', 8*h, 8*w)."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        dims = [config.dec_dim * m for m in config.dim_mult[::-1]]
        doubles = (*config.temporal_downsample[::-1], False)
        leaving = [dim if config.is_residual else dim // 2 for dim in dims[:-1]]
        layers, entering = list[nn.Module](), dims[0]
        for dim, up, time in zip(dims, (*leaving, None), doubles, strict=True):
            stage = UpStage(entering, dim, config.num_res_blocks + 1, up=up, time=time)
            layers += [stage] if config.is_residual else stage.upsamples
            entering = up or dim
        self.conv1 = CausalConv3d(config.z_dim, dims[0], KERNEL)
        self.middle = Middle(dims[0])
        self.upsamples = nn.ModuleList(layers)
        self.head = Head(dims[-1], config.pixel_channels)

    def forward(self, z_BCTHW: Tensor, state: TemporalState, *, first: bool) -> Tensor:
        x = self.middle(self.conv1(z_BCTHW, state), state)
        return self.head(run_layers(self.upsamples, x, state, first=first), state)
