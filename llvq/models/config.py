"""Sizes of a causal long-video model: denoiser, streaming schedule, VAE and text encoder.

Shapes are written with these letters throughout llvq:
B batch, C latent frames per chunk, S tokens per latent frame, N = C*S tokens per chunk,
H heads, D head dim, L layers, T frames, P pages (chunks) in the attention window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from llvq.errors import RecipeError, SessionError
from llvq.runtime.sampler import schedule


@dataclass(frozen=True)
class DitConfig:
    """The causal Wan denoiser. Defaults are Wan2.2-TI2V-5B."""

    dim: int = 3072
    ffn_dim: int = 14336
    num_heads: int = 24
    num_layers: int = 30
    in_dim: int = 48
    out_dim: int = 48
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


@dataclass(frozen=True)
class StreamConfig:
    """How the denoiser rolls over a long video. All counts are latent frames.

    `first_frame_image`: whether it was trained to begin a video at a given image. `steps`, `shift`,
    `sampler` and `timesteps` are the arguments of `runtime.sampler.schedule`.
    """

    frames_per_chunk: int = 8
    window_frames: int = 32
    sink_frames: int = 8
    steps: int = 4
    shift: float = 5.0
    sampler: str = "unipc"
    timesteps: tuple[int, ...] = ()
    multi_shot_sink: bool = True
    multi_shot_rope_offset: float = 8.0
    scene_cut_prefix: str = "The scene transitions. "
    relative_rope: bool = False
    first_frame_image: bool = True
    fps: int = 24

    def __post_init__(self) -> None:
        for name in ("window_frames", "sink_frames"):
            if getattr(self, name) % self.frames_per_chunk:
                raise RecipeError(
                    f"{name} = {getattr(self, name)} is not a multiple of frames_per_chunk",
                    because="the KV cache holds whole chunks, one page per chunk",
                    fix=f"choose a multiple of {self.frames_per_chunk}",
                )
        try:
            schedule(self.steps, self.shift, self.sampler, self.timesteps)
        except SessionError as error:
            raise RecipeError(error.what, because=error.because, fix=error.fix) from error

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> StreamConfig:
        """The inverse of `asdict`, also after JSON: its lists become tuples."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in document.items()
        }
        return cls(**values)

    @property
    def window_chunks(self) -> int:
        return self.window_frames // self.frames_per_chunk

    @property
    def sink_chunks(self) -> int:
        return self.sink_frames // self.frames_per_chunk


# Per-channel statistics of the latents (no VAE file holds them): 16 of Wan2.1, 48 of Wan2.2.
WAN21_LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN21_LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
WAN22_LATENT_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
    -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
    -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
    -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
    0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
WAN22_LATENT_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
    0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
    0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
    0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
    0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip


@dataclass(frozen=True)
class VaeConfig:
    """The VAE of Wan2.1 or Wan2.2. Defaults are the published one of Wan2.2: 4x16x16 compression.

    `patch_size`: pixels are packed by it, in height and width, before the first convolution.
    `is_residual`: every change of resolution has a shortcut (averaging down, duplicating up) and
    keeps the channels; without, the way up halves them. Wan2.2 is (2, True), Wan2.1 (1, False).
    """

    dim: int = 160
    dec_dim: int = 256
    z_dim: int = 48
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latent_mean: tuple[float, ...] = WAN22_LATENT_MEAN
    latent_std: tuple[float, ...] = WAN22_LATENT_STD
    patch_size: int = 2
    is_residual: bool = True

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent, in height and in width."""
        return self.patch_size * 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal_stride(self) -> int:
        """Frames per latent, from the second latent on."""
        return 2 ** sum(self.temporal_downsample)

    @property
    def pixel_channels(self) -> int:
        """Channels of what the first convolution reads and the last one writes."""
        return 3 * self.patch_size**2


WAN22_VAE = VaeConfig()
WAN21_VAE = VaeConfig(
    dim=96,
    dec_dim=96,
    z_dim=16,
    latent_mean=WAN21_LATENT_MEAN,
    latent_std=WAN21_LATENT_STD,
    patch_size=1,
    is_residual=False,
)


def published_vae(channels: int) -> VaeConfig:
    return WAN21_VAE if channels == WAN21_VAE.z_dim else WAN22_VAE


@dataclass(frozen=True)
class TextConfig:
    """The UMT5 encoder. Defaults are UMT5-XXL."""

    vocab_size: int = 256384
    dim: int = 4096
    attn_dim: int = 4096
    ffn_dim: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6


@dataclass(frozen=True)
class ModelConfig:
    """One whole video model at one latent size. `vae` or `text` is None where the files lack it."""

    dit: DitConfig = field(default_factory=DitConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    vae: VaeConfig | None = field(default_factory=VaeConfig)
    text: TextConfig | None = field(default_factory=TextConfig)
    latent_hw: tuple[int, int] = (44, 80)

    @property
    def tokens_per_frame(self) -> int:
        _, ph, pw = self.dit.patch_size
        return (self.latent_hw[0] // ph) * (self.latent_hw[1] // pw)

    @property
    def chunk_tokens(self) -> int:
        return self.stream.frames_per_chunk * self.tokens_per_frame

    @property
    def latent_vae(self) -> VaeConfig:
        """The VAE whose latents these are; where `vae` is None, the published one for as many."""
        return self.vae or published_vae(self.dit.in_dim)

    @property
    def pixel_hw(self) -> tuple[int, int]:
        """Height and width of the video."""
        stride = self.latent_vae.spatial_stride
        return self.latent_hw[0] * stride, self.latent_hw[1] * stride

    def at(self, height: int, width: int) -> ModelConfig:
        """The same model for videos of `height` x `width` pixels."""
        stride = self.latent_vae.spatial_stride
        ph, pw = self.dit.patch_size[1:]
        if height % (stride * ph) or width % (stride * pw):
            raise RecipeError(
                f"{height}x{width} pixels do not divide into latent patches",
                because=f"the VAE strides by {stride} and the patch is {ph}x{pw} latents",
                fix=f"use multiples of {stride * ph} x {stride * pw}",
            )
        return replace(self, latent_hw=(height // stride, width // stride))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


LONGLIVE2_5B = ModelConfig()

# Self-Forcing (configs/self_forcing_dmd.yaml): one prompt per video, so no cut moves or pins.
SELF_FORCING_1_3B = ModelConfig(
    dit=DitConfig(dim=1536, ffn_dim=8960, num_heads=12, in_dim=16, out_dim=16),
    stream=StreamConfig(
        frames_per_chunk=3,
        window_frames=21,
        sink_frames=0,
        sampler="renoise",
        timesteps=(1000, 750, 500, 250),
        multi_shot_sink=False,
        multi_shot_rope_offset=0.0,
        scene_cut_prefix="",
        first_frame_image=False,
        fps=16,
    ),
    vae=WAN21_VAE,
    latent_hw=(60, 104),
)

# LongLive-1 (configs/longlive_inference.yaml): Self-Forcing in a shorter window, with a sink.
LONGLIVE1_1_3B = replace(
    SELF_FORCING_1_3B,
    stream=replace(SELF_FORCING_1_3B.stream, window_frames=12, sink_frames=3),
)

PUBLISHED = {
    "longlive2-5b": LONGLIVE2_5B,
    "self-forcing-1.3b": SELF_FORCING_1_3B,
    "longlive1-1.3b": LONGLIVE1_1_3B,
}


def published_for(channels: int) -> ModelConfig:
    """The published model whose latents have `channels`: what a checkpoint does not say itself."""
    return SELF_FORCING_1_3B if channels == WAN21_VAE.z_dim else LONGLIVE2_5B
