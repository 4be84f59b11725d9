"""Sizes of a causal long-video model: denoiser, streaming schedule, VAE and text encoder.

Shapes are written with these letters throughout llvq:
B batch, C latent frames per chunk, S tokens per latent frame, N = C*S tokens per chunk,
H heads, D head dim, L layers, T frames, P pages (chunks) in the attention window.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from llvq.errors import RecipeError


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
    """How the denoiser rolls over a long video. All counts are latent frames."""

    frames_per_chunk: int = 8
    window_frames: int = 32
    sink_frames: int = 8
    steps: int = 4
    shift: float = 5.0
    multi_shot_sink: bool = True
    multi_shot_rope_offset: float = 8.0
    scene_cut_prefix: str = "The scene transitions. "
    relative_rope: bool = False
    fps: int = 24

    def __post_init__(self) -> None:
        for name in ("window_frames", "sink_frames"):
            if getattr(self, name) % self.frames_per_chunk:
                raise RecipeError(
                    f"{name} = {getattr(self, name)} is not a multiple of frames_per_chunk",
                    because="the KV cache holds whole chunks, one page per chunk",
                    fix=f"choose a multiple of {self.frames_per_chunk}",
                )

    @property
    def window_chunks(self) -> int:
        return self.window_frames // self.frames_per_chunk

    @property
    def sink_chunks(self) -> int:
        return self.sink_frames // self.frames_per_chunk


# Per-channel statistics of Wan2.2's 48 latent channels (the VAE file does not hold them).
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
    """The Wan2.2 VAE: 4x16x16 compression. Defaults are the published one."""

    dim: int = 160
    dec_dim: int = 256
    z_dim: int = 48
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latent_mean: tuple[float, ...] = WAN22_LATENT_MEAN
    latent_std: tuple[float, ...] = WAN22_LATENT_STD

    spatial_stride: int = 16
    temporal_stride: int = 4


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

    def at(self, height: int, width: int) -> ModelConfig:
        """The same model for videos of `height` x `width` pixels."""
        stride = (self.vae or VaeConfig()).spatial_stride
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
