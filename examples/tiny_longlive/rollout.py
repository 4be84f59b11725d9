"""Videos by the model itself, chunk by chunk, with llvq's sampler and page table, in batches.

What a session does, for training: eager modules and many videos at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from examples.tiny_longlive.layouts import Layout, layout, position_tensor
from examples.tiny_longlive.tokens import encode
from llvq.models.config import ModelConfig
from llvq.models.dit import CausalWanDit
from llvq.models.text import TextEncoder
from llvq.models.vae import WanVae, decode_state_shapes
from llvq.runtime.sampler import Schedule, advance, schedule
from llvq.runtime.shots import cues

LATENTS_PER_DECODE = 8
Cache = dict[int, tuple[list[Tensor], list[Tensor]]]


@dataclass(frozen=True)
class Denoised:
    """inputs: the latent before each step; seen: the x0 that each step saw in it, fp32; x0: the
    chunk. All [B, C, channels, h, w]."""

    inputs: list[Tensor]
    seen: list[Tensor]
    x0: Tensor


@dataclass
class Rollout:
    """The history of a batch of videos. `windows` of a layout say what a chunk attends to.

    positions: `position_tensor` of the layout.
    """

    dit: CausalWanDit
    layout: Layout
    positions: Tensor
    cache: Cache = field(default_factory=dict)

    def denoise(self, index: int, plan: Schedule, noise: Tensor, embeds: Tensor) -> Denoised:
        """Entry `index` of the layout from noise [B, C, channels, h, w]."""
        latent, inputs, seen, velocities = noise, [], [], []
        for step, (timestep, sigma) in enumerate(zip(plan.timesteps, plan.sigmas, strict=False)):
            inputs.append(latent)
            velocities.append(self._call(index, latent, timestep, embeds)[0])
            seen.append(latent.float() - sigma * velocities[-1].float())
            latent = advance(plan, step, noise, velocities)
        return Denoised(inputs, seen, latent)

    def refresh(self, index: int, latent: Tensor, embeds: Tensor) -> None:
        """Keep keys and values of the clean chunk; forget what no later chunk attends to."""
        self.cache[index] = self._call(index, latent, 0, embeds)[1:]
        later = {entry for window in self.layout.windows[index + 1 :] for entry in window}
        self.cache = {entry: kv for entry, kv in self.cache.items() if entry in later}

    def _call(
        self, index: int, latent: Tensor, timestep: float, embeds: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        B, C = latent.shape[:2]
        times = torch.full((B, C), float(timestep), device=latent.device)
        positions = torch.arange(C, dtype=torch.float64, device=latent.device)
        history = [self.cache[entry] for entry in self.layout.windows[index]]
        keys, values = ([_joined(parts, B, latent, self.dit) for parts in self._layers(history, s)]
                        for s in (0, 1))  # fmt: skip
        return self.dit(latent, times, positions + self.positions[index], embeds, keys, values)

    def _layers(self, history: list, side: int) -> list[list[Tensor]]:
        return [[kv[side][i] for kv in history] for i in range(self.dit.config.num_layers)]


def _joined(parts: list[Tensor], B: int, like: Tensor, dit: CausalWanDit) -> Tensor:
    if parts:
        return torch.cat(parts, dim=1)
    return like.new_zeros(B, 0, dit.config.num_heads, dit.config.head_dim)


@torch.no_grad()
def generate(
    config: ModelConfig,
    dit: CausalWanDit,
    text: TextEncoder,
    scripts: Sequence[Sequence[str]],
    chunks: int,
    *,
    steps: int,
    seed: int,
) -> Tensor:
    """Latents [B, F, channels, h, w] of one video per script. All scripts have as many shots (1-2).

    The seed's noise is drawn on the CPU, the same on every machine.
    """
    device, dtype = dit.head.head.weight.device, dit.head.head.weight.dtype
    stream, plan = config.stream, schedule(steps, config.stream.shift)
    scenes = [cues(script, chunks, stream.scene_cut_prefix) for script in scripts]
    cuts = [k for k, cue in enumerate(scenes[0]) if cue.scene_cut]
    whole = layout(stream, 0, chunks, cuts[0] if cuts else None)
    roll = Rollout(dit, whole, position_tensor(whole, device))
    latents, embeds = [], {}
    random = torch.Generator().manual_seed(seed)
    shape = (len(scripts), stream.frames_per_chunk, config.dit.in_dim, *config.latent_hw)
    for chunk in range(chunks):
        prompts = tuple(script[chunk].prompt for script in scenes)
        if prompts not in embeds:
            ids, mask = (t.to(device) for t in encode(prompts, config.dit.text_len))
            embeds[prompts] = text(ids, mask)
        noise = torch.randn(shape, generator=random).to(device, dtype)
        x0 = roll.denoise(chunk, plan, noise, embeds[prompts]).x0
        roll.refresh(chunk, x0, embeds[prompts])
        latents.append(x0)
    return torch.cat(latents, dim=1)


@torch.no_grad()
def decode_frames(vae: WanVae, latents: Tensor, wanted: Sequence[int]) -> Tensor:
    """Pixels [B, len(wanted), 3, H, W] of the frames `wanted`, ascending."""
    shapes = decode_state_shapes(vae.config, tuple(latents.shape[-2:]), len(latents))
    state = [latents.new_zeros(shape) for shape in shapes]
    frames, start = [], 0
    for part in latents.transpose(1, 2).split(LATENTS_PER_DECODE, dim=2):
        pixels, state = vae.decode(part, state, first=start == 0)
        frames += [pixels[:, :, f - start] for f in wanted if start <= f < start + pixels.shape[2]]
        start += pixels.shape[2]
    return torch.stack(frames, dim=1)


def to_uint8(pixels: Tensor) -> Tensor:
    """Grey levels of pixels in [-1, 1]."""
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
