"""A video by the eager denoiser: the algorithm in plain words, the history gathered as tensors.

It is what the captured model and its pages are compared with, and what calibration looks at: all
sampling steps and the refresh, on the history that the chunks before have left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llvq.models.config import ModelConfig, StreamConfig
from llvq.models.dit import CausalWanDit
from llvq.runtime.denoiser import held
from llvq.runtime.pages import PageTable
from llvq.runtime.sampler import schedule, update


class EagerRollout:
    """One video. Owns its history: K and V of each chunk in the window, in the model's dtype."""

    def __init__(self, model: CausalWanDit, stream: StreamConfig) -> None:
        self.model, self.stream = model, stream
        self.plan = schedule(stream.steps, stream.shift, stream.sampler, stream.timesteps)
        self.table = PageTable(
            window_chunks=stream.window_chunks,
            sink_chunks=stream.sink_chunks,
            multi_shot_sink=stream.multi_shot_sink,
        )
        self.cached: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self.offset = 0.0

    @torch.no_grad()
    def run(
        self,
        index: int,
        noises: Sequence[Tensor],
        prompt: Tensor,
        *,
        scene_cut: bool = False,
        image: Tensor | None = None,
    ) -> Tensor:
        """x0 of one chunk [1, C, channels, h, w]; `noises` has one tensor of that shape per draw.

        The other arguments are those of `Denoiser.run`.
        """
        self.offset += scene_cut * self.stream.multi_shot_rope_offset
        self.table = self.table.begin(index)
        assert self.table.placement is not None
        latent, velocities = held(noises[0], image), []
        for step, timestep in enumerate(self.plan.timesteps):
            velocities.append(self.call(index, latent, timestep, prompt, image)[0])
            latent = held(update(self.plan, step, latent, noises, velocities), image)
        _, keys, values = self.call(index, latent, 0, prompt, image)
        self.cached[self.table.placement.slot] = (keys, values)
        self.table = self.table.commit(scene_cut=scene_cut)
        return latent

    def call(
        self, index: int, latent: Tensor, timestep: float, prompt: Tensor, image: Tensor | None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """One call of the model: velocity, and K and V of the chunk."""
        timesteps = torch.full(latent.shape[:2], float(timestep), device=latent.device)
        if image is not None:
            timesteps[:, 0] = 0.0
        keys, values = self._history(latent)
        positions = self._positions(index).to(latent.device)
        result: tuple[Tensor, list[Tensor], list[Tensor]] = self.model(
            latent, timesteps, positions, prompt, keys, values
        )
        return result

    def _positions(self, index: int) -> Tensor:
        frames = self.stream.frames_per_chunk
        if self.stream.relative_rope:
            return torch.arange((len(self._slots()) + 1) * frames).double()
        return torch.arange(frames).double() + index * frames + self.offset

    def _slots(self) -> tuple[int, ...]:
        assert self.table.placement is not None
        return self.table.placement.history

    def _history(self, latent: Tensor) -> list[Iterator[Tensor]]:
        """K and V, layer by layer as the model takes them: the whole is gigabytes."""
        dit = self.model.config
        empty = [latent.new_empty(1, 0, dit.num_heads, dit.head_dim)] * dit.num_layers
        pages = [(empty, empty), *(self.cached[slot] for slot in self._slots())]
        return [map(_joined, zip(*parts, strict=True)) for parts in zip(*pages, strict=True)]


def _joined(pages: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(pages), dim=1)


@dataclass(frozen=True)
class Video:
    """One video of a calibration set: prompt_embeds [1, X, text_dim], and the seed of its noise."""

    embeds: Tensor
    seed: int
    chunks: int


def roll(
    model: CausalWanDit, config: ModelConfig, video: Video, *, done: Callable[[], None]
) -> None:
    """Run a whole video, on the device and in the dtype of the model; `done` after each chunk."""
    play(EagerRollout(model, config.stream), config, video, done=done)


def play(
    rollout: EagerRollout, config: ModelConfig, video: Video, *, done: Callable[[], None]
) -> None:
    """Run a whole video by a rollout that has not begun."""
    weight = rollout.model.patch_embedding.weight
    random = torch.Generator().manual_seed(video.seed)
    shape = (1, config.stream.frames_per_chunk, config.dit.in_dim, *config.latent_hw)
    embeds = video.embeds.to(weight.device, weight.dtype)
    for index in range(video.chunks):
        drawn = [torch.randn(shape, generator=random) for _ in range(rollout.plan.draws)]
        rollout.run(index, [noise.to(weight.device, weight.dtype) for noise in drawn], embeds)
        done()
