"""Numbers on clips that training has not seen, which say whether a phase is good enough."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from examples.tiny_longlive import data
from examples.tiny_longlive.captions import Scene, caption
from examples.tiny_longlive.flow import Denoiser, embed
from examples.tiny_longlive.identity import Identity, identity
from examples.tiny_longlive.latents import Samples
from examples.tiny_longlive.rollout import decode_frames, generate, to_uint8
from examples.tiny_longlive.spans import Shot, mean_of
from llvq.models.config import ModelConfig
from llvq.models.dit import CausalWanDit
from llvq.models.text import TextEncoder
from llvq.models.vae import WanVae

HELD_OUT_SEED = 10_000_000

SIGMAS = (0.2, 0.5, 0.75, 0.9, 0.97, 0.9998)  # the last: where a sampler starts


@torch.no_grad()
def held_out(model: Denoiser, samples: Samples) -> dict[str, float]:
    """Mean squared error of the velocity at each noise level, and `seen`.

    `seen`: the part of the variance of clean latents (over clips, at each place) that the model
    tells from pure noise, prompt and history. 0 is an average video, whatever the prompt says; what
    a prompt leaves open (exact places, pace) keeps it below 1.
    """
    layout = samples.layout
    x0 = samples.latents[:, layout.given :]
    random = torch.Generator(x0.device).manual_seed(0)
    noise = torch.randn(x0.shape, generator=random, device=x0.device)
    embeds = embed(model.text, samples.ids, samples.mask, layout)
    found = {}
    for sigma in SIGMAS:
        noisy = ((1 - sigma) * x0.float() + sigma * noise).to(x0.dtype)
        timestep = x0.new_full(x0.shape[:2], float(int(sigma * 1000)), dtype=torch.float32)
        velocity = model.forcing(samples.latents, noisy, timestep, embeds, layout).float()
        found[f"{sigma:g}"] = _rounded((velocity - (noise - x0)).square().mean())
    guess = noisy.float() - SIGMAS[-1] * velocity
    spread = (x0.float() - x0.float().mean(0)).square().mean()
    found["seen"] = _rounded(1 - (guess - x0).square().mean() / spread)
    return found


@torch.no_grad()
def judged(
    config: ModelConfig,
    dit: CausalWanDit,
    text: TextEncoder,
    vae: WanVae,
    *,
    steps: int,
    videos: int = 16,
    chunks: int = 4,
) -> dict[str, float | None]:
    """What the detector finds in videos of random scenes, every fourth frame.

    `holds`: the share of objects and frames with the object in its colour, shape and size;
    `present`: in its colour; `start_px`: how far objects begin from their place (up to 20 px are
    left open by a prompt), over those that are there.
    """
    scenes = data.sample_scenes(videos, HELD_OUT_SEED)
    found = watched(config, dit, text, vae, scenes, steps=steps, chunks=chunks, seed=2)
    objects = [thing for video in found for thing in video.objects]
    known = {
        "holds": [value for thing in objects for value in thing.holds],
        "present": [value for thing in objects for value in thing.present],
        "start_px": [thing.start_error for thing in objects],
    }
    means = {name: mean_of(values) for name, values in known.items()}
    return {name: mean if mean is None else round(mean, 3) for name, mean in means.items()}


@torch.no_grad()
def watched(
    config: ModelConfig,
    dit: CausalWanDit,
    text: TextEncoder,
    vae: WanVae,
    scenes: Sequence[Scene],
    *,
    steps: int,
    chunks: int,
    seed: int,
) -> list[Identity]:
    """What the detector finds in a video of each scene, every fourth frame."""
    scripts = [[caption(scene)] for scene in scenes]
    latents = generate(config, dit, text, scripts, chunks, steps=steps, seed=seed)
    pixels = decode_frames(vae, latents, range(0, 4 * latents.shape[1] - 3, 4))
    frames = to_uint8(pixels).movedim(2, -1).cpu()
    return [
        identity(clip, [Shot(0, scene)], fps=data.FPS / 4)
        for clip, scene in zip(frames, scenes, strict=True)
    ]


def _rounded(number: Tensor) -> float:
    return round(float(number), 4)
