"""The denoiser of one video: pages, page table, and what is computed once per prompt and step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llvq.runtime.cuda_graphs import Buffers, RecordedStage, Recorder
from llvq.runtime.executable import Executable
from llvq.runtime.sampler import Schedule, update
from llvq.runtime.streams import upload
from llvq.runtime.timeline import Timeline, span

# Stages that run with every chunk, some more often.
EVERY_CALL = ("denoise", "refresh")


@dataclass(frozen=True)
class Denoised:
    """A finished chunk: x0 = latent - sigma * velocity, and those three for the decode stage.

    Latents [1, C, channels, h, w]; sigma fp32 [1, C].
    """

    x0: Tensor
    latent: Tensor
    velocity: Tensor
    sigma: Tensor


class Denoiser:
    """Denoises chunk after chunk. Owns the page pool and the page table."""

    def __init__(
        self,
        executable: Executable,
        schedule: Schedule,
        *,
        record: Recorder | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        """`record`: replay what a stage launches instead of launching it again."""
        facts = executable.facts
        self.executable, self.facts, self.schedule = executable, facts, schedule
        self.device, self.timeline = executable.device, timeline
        self.pages = {
            name: torch.zeros(shape, dtype=getattr(torch, dtype), device=executable.device)
            for name, dtype, shape in facts.pages.tensors
        }
        self.table = facts.page_table
        self.shot = self._index = 0
        self._recorded: dict[str, RecordedStage] = {}
        if record is not None:
            buffers = Buffers(self.pages)
            self._recorded = {
                name: RecordedStage(executable.stage(name), buffers, record) for name in EVERY_CALL
            }
        self._modulations: dict[tuple[float, ...], dict[str, Tensor]] = {}
        self._conditions: tuple[Tensor, dict[str, Tensor]] | None = None

    def run(
        self,
        index: int,
        noise: Tensor,
        prompt: Tensor,
        *,
        scene_cut: bool,
        image: Tensor | None,
        fresh: Sequence[Tensor] = (),
    ) -> Denoised:
        """Denoise chunk `index` and store its keys and values.

        noise [1, C, channels, h, w]; prompt [1, X, text_dim]; image, for the first chunk of an
        image-to-video: latent [1, 1, channels, h, w] that frame 0 is held at. fresh: noise of that
        shape for every step after the first, where the schedule re-noises.
        """
        if scene_cut and self.facts.multi_shot_rope_offset:
            self.shot += 1
        table, self._index = self.table.begin(index), index
        placement = table.placement
        assert placement is not None
        values = {
            **self.pages,
            **self._condition(prompt),
            "positions": self._positions(index),
            "page_table": self._integers(placement.history),
            "slot": self._integers(placement.slot),
            "kept_slot": self._integers(placement.kept_slot),
        }
        result = self._sample(values, (noise, *fresh), image)
        self._call("refresh", values, result.x0, self._timesteps(0, image))
        self.table = table.commit(scene_cut=scene_cut)
        return result

    def _sample(
        self, values: dict[str, Tensor], noises: Sequence[Tensor], image: Tensor | None
    ) -> Denoised:
        """All denoising steps. Frame 0 of an image-to-video stays the image, at timestep 0."""
        latent, velocities = held(noises[0], image), []
        for step, timestep in enumerate(self.schedule.timesteps):
            timesteps = self._timesteps(timestep, image)
            velocities.append(self._call("denoise", values, latent, timesteps)["velocity"])
            previous, latent = latent, update(self.schedule, step, latent, noises, velocities)
            latent = held(latent, image)
        sigma = torch.full(latent.shape[:2], self.schedule.sigmas[-2], device=latent.device)
        if image is not None:
            sigma[:, 0] = 0.0
        return Denoised(latent, previous, velocities[-1], sigma)

    def _call(
        self, stage: str, values: dict[str, Tensor], latent: Tensor, timesteps: tuple[float, ...]
    ) -> dict[str, Tensor]:
        inputs = {**values, **self._modulation(timesteps), "latent": latent}
        run = self._recorded.get(stage) or self.executable.stage(stage)
        with span(self.timeline, stage, "denoise", self._index, self.device):
            return run(inputs)

    def _condition(self, prompt: Tensor) -> dict[str, Tensor]:
        """What depends on the prompt alone; computed when the prompt changes."""
        if self._conditions is None or self._conditions[0] is not prompt:
            values = {"prompt_embeds": upload(prompt, self.device)}
            outputs = self.executable.stage("condition")(values)
            self._conditions = (prompt, _contiguous(outputs))
        return self._conditions[1]

    def _modulation(self, timesteps: tuple[float, ...]) -> dict[str, Tensor]:
        """What depends on the timesteps alone; kept, since a schedule repeats them."""
        if timesteps not in self._modulations:
            tensor = upload(torch.tensor([timesteps]), self.device)
            outputs = self.executable.stage("modulate")({"timestep": tensor})
            self._modulations[timesteps] = _contiguous(outputs)
        return self._modulations[timesteps]

    def _timesteps(self, timestep: float, image: Tensor | None) -> tuple[float, ...]:
        """One timestep per frame of the chunk."""
        first = 0.0 if image is not None else float(timestep)
        return (first, *[float(timestep)] * (self.facts.frames_per_chunk - 1))

    def _positions(self, index: int) -> Tensor:
        """Temporal positions: of the chunk's frames, or of the whole window in relative mode."""
        if self.facts.relative_rope:
            start, count = 0.0, self.facts.window_frames
        else:
            count = self.facts.frames_per_chunk
            start = index * count + self.shot * self.facts.multi_shot_rope_offset
        frames = torch.arange(count, dtype=torch.float64, device=self.device)
        return frames + start

    def _integers(self, value: int | tuple[int, ...]) -> Tensor:
        return upload(torch.tensor(value, dtype=torch.int64), self.device)


def _contiguous(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """As kernels take them: what is kept is not copied with every call."""
    return {name: value.contiguous() for name, value in outputs.items()}


def held(latent: Tensor, image: Tensor | None) -> Tensor:
    """`latent` with frame 0 replaced by the image's latent, where there is one."""
    return latent if image is None else torch.cat([image, latent[:, 1:]], dim=1)
