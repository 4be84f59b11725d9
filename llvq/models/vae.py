"""The VAE of Wan2.1 or Wan2.2, streamed: any number of latents per call, temporal state in and out.

Parameter names are those of the published file. A video is cut into calls anywhere. The call that
holds latent 0 is made with `first=True` and an all-zero state, every other call with `first=False`
and the state that the call before it gave back. Latent 0 is 1 pixel frame, every later one is 4.
The module holds no state, so that `torch.export` captures either variant as a pure function.

Shapes: B batch, z latent channels, T latents, T' pixel frames, h and w latent, H and W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llvq.errors import ContractError
from llvq.models.config import VaeConfig
from llvq.models.vae_causal import CausalConv3d, StartState, TemporalState, slot_names
from llvq.models.vae_decoder import Decoder
from llvq.models.vae_encoder import Encoder
from llvq.models.vae_resample import depth_to_space, space_to_depth


class WanVae(nn.Module):
    """Encoder and decoder, on latents that are normalised per channel to (z - mean) / std."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = Decoder(config)
        # Not in the published file, hence not in the state dict.
        for name, values in (("mean", config.latent_mean), ("std", config.latent_std)):
            statistic = torch.tensor(values).view(-1, 1, 1, 1)
            self.register_buffer(f"latent_{name}", statistic, persistent=False)

    def decode(
        self, latent_BzThw: Tensor, state: list[Tensor], *, first: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Pixels (B, 3, T', H, W), about [-1, 1] but not clamped, and the next state.

        T' is 4*T, or 1 + 4*(T-1) if `first`. `state` has the shapes of `decode_state_shapes`.

        Raises: ContractError for a state of another length.
        """
        walk = _walk(self.decoder, "decode", state)
        pixels = self._decode(latent_BzThw, walk, first=first)
        return pixels, walk.next

    def encode(
        self, video_B3THW: Tensor, state: list[Tensor], *, first: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Normalised latents (B, z, T, h, w) of pixels in [-1, 1], and the next state.

        T' is 4*T, or 1 + 4*(T-1) if `first`. `state` has the shapes of `encode_state_shapes`.

        Raises: ContractError for a state of another length or an incomplete group of frames.
        """
        _check_groups(video_B3THW.shape[2], self.config.temporal_stride, first=first)
        walk = _walk(self.encoder, "encode", state)
        latent = self._encode(video_B3THW, walk, first=first)
        return latent, walk.next

    def _decode(self, latent_BzThw: Tensor, state: TemporalState, *, first: bool) -> Tensor:
        z = self.conv2(latent_BzThw * self.latent_std + self.latent_mean)
        return depth_to_space(self.decoder(z, state, first=first), self.config.patch_size)

    def _encode(self, video_B3THW: Tensor, state: TemporalState, *, first: bool) -> Tensor:
        packed = space_to_depth(video_B3THW, self.config.patch_size)
        moments = self.conv1(self.encoder(packed, state, first=first))
        mean_BzThw, _ = moments.chunk(2, dim=1)
        return (mean_BzThw - self.latent_mean) / self.latent_std


def decode_state_shapes(
    config: VaeConfig, latent_hw: tuple[int, int], batch: int = 1
) -> tuple[tuple[int, ...], ...]:
    """Shapes (B, C, frames, H, W) of the state of `WanVae.decode`. Nothing is allocated."""
    state = StartState()
    with torch.device("meta"):
        latent = torch.empty(batch, config.z_dim, 1, *latent_hw)
        WanVae(config)._decode(latent, state, first=True)
    return tuple(tuple(slot.shape) for slot in state.next)


def encode_state_shapes(
    config: VaeConfig, pixel_hw: tuple[int, int], batch: int = 1
) -> tuple[tuple[int, ...], ...]:
    """Shapes (B, C, frames, H, W) of the state of `WanVae.encode`. Nothing is allocated."""
    state = StartState()
    with torch.device("meta"):
        video = torch.empty(batch, 3, 1, *pixel_hw)
        WanVae(config)._encode(video, state, first=True)
    return tuple(tuple(slot.shape) for slot in state.next)


def _walk(half: nn.Module, verb: str, state: list[Tensor]) -> TemporalState:
    """The slots of `state` for one call of `half`."""
    expected = len(slot_names(half))
    if len(state) != expected:
        raise ContractError(
            f"{verb} got {len(state)} state tensors",
            where=f"WanVae.{verb}",
            because=f"{expected} causal convolutions continue from the call before",
            fix=f"start from zeros of the shapes that {verb}_state_shapes gives",
        )
    return TemporalState(state)


def _check_groups(frames: int, group: int, *, first: bool) -> None:
    """Pixel frames of an encode call fill whole latents."""
    if frames < 1 or frames % group != (1 if first else 0):
        raise ContractError(
            f"encode got {frames} frames with first={first}",
            where="WanVae.encode",
            because=f"frame 0 is a latent of its own, and every {group} frames after it are one",
            fix=f"hand over {'1 + ' if first else ''}{group}*k frames",
        )
