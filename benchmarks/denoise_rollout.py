"""A video by each form of a denoiser, free-running: how far it has been carried away, by chunk.

All have the same noise and prompt, and each reads the history that it made itself, so that errors
of K and V come back in later chunks. Chunks past the window read pages that were written over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.denoise_models import fastest_attention, relative_l2
from llvq.calibrate.rollout import EagerRollout
from llvq.models.config import ModelConfig
from llvq.models.dit import CausalWanDit
from llvq.runtime.denoiser import Denoiser
from llvq.runtime.executable import Executable
from llvq.runtime.sampler import Schedule, schedule


@dataclass(frozen=True)
class Drawn:
    """What a video is made of: noise [1, C, channels, h, w] by chunk and draw, and the prompt."""

    noises: tuple[tuple[Tensor, ...], ...]
    prompt: Tensor


def draw(config: ModelConfig, chunks: int, device: torch.device, seed: int) -> Drawn:
    stream, dit = config.stream, config.dit
    random = torch.Generator(device).manual_seed(seed)
    like = {"generator": random, "device": device, "dtype": torch.bfloat16}
    shape = (1, stream.frames_per_chunk, dit.in_dim, *config.latent_hw)
    draws = range(_schedule(config).draws)
    noises = tuple(tuple(torch.randn(shape, **like) for _ in draws) for _ in range(chunks))
    return Drawn(noises, torch.randn(1, dit.text_len, dit.text_dim, **like))


def roll_plain(model: CausalWanDit, config: ModelConfig, drawn: Drawn) -> list[Tensor]:
    """x0 of every chunk by PyTorch."""
    rollout = EagerRollout(model, config.stream)
    with fastest_attention():
        return [rollout.run(index, noise, drawn.prompt) for index, noise in enumerate(drawn.noises)]


def roll_llvq(model: Executable, config: ModelConfig, drawn: Drawn) -> list[Tensor]:
    """The same by compiled stages, with pages of their own."""
    denoiser = Denoiser(model, _schedule(config))
    made = []
    for index, (noise, *fresh) in enumerate(drawn.noises):
        done = denoiser.run(
            index, noise, drawn.prompt, scene_cut=False, image=None, fresh=tuple(fresh)
        )
        made.append(done.x0)
    return made


def errors_by_chunk(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[float]:
    return [relative_l2(ours, plain) for ours, plain in zip(found, wanted, strict=True)]


def _schedule(config: ModelConfig) -> Schedule:
    stream = config.stream
    return schedule(stream.steps, stream.shift, stream.sampler, stream.timesteps)
