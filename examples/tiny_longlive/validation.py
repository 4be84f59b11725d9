"""Numbers on clips that training has not seen, which say whether a phase is good enough."""

from __future__ import annotations

import torch
from torch import Tensor

from examples.tiny_longlive.flow import Denoiser, embed
from examples.tiny_longlive.latents import Samples

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


def _rounded(number: Tensor) -> float:
    return round(float(number), 4)
