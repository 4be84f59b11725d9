"""The decoder of one video: x0 to pixels, chunk after chunk, with what its convolutions remember.

A stage comes in one of two forms. As captured, it returns the state that its next call takes, and
pixels. Streamed, as boxes have it, it writes to rings that stay (inputs of rate `state`), is told
how many latents came before (`decoded`), and returns frames.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

from llvq.runtime.cuda_graphs import Buffers, RecordedStage, Recorder
from llvq.runtime.denoiser import Denoised
from llvq.runtime.executable import DECODING, Executable
from llvq.runtime.streams import upload
from llvq.runtime.timeline import Timeline, span
from llvq.runtime.video import frames_to_uint8

Run = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class Decoder:
    """Turns finished chunks, on the device that decodes, into frames. Owns the temporal state."""

    def __init__(
        self,
        executable: Executable,
        *,
        record: Recorder | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        """`record`: replay what a streamed stage launches instead of launching it again."""
        self.device, self.timeline = executable.decodes_on, timeline
        self.loops = executable.facts.loops
        chunk, per_call = executable.facts.frames_per_chunk, executable.facts.latents_per_decode
        self.latents = upload(torch.arange(chunk), self.device).split(per_call)
        inputs = {spec.name: spec for name in DECODING for spec in executable.stage(name).inputs}
        held = {name for name, spec in inputs.items() if spec.rate == "state"}
        self.state = {
            name: torch.zeros(inputs[name].sizes, dtype=inputs[name].dtype, device=self.device)
            for name in held | {source for source, _ in self.loops}
        }
        self.decoded = torch.zeros((), dtype=torch.int64, device=self.device)
        self.started = False
        self._first, self._later = self._stages(executable, held, record)

    @property
    def calls(self) -> int:
        """How often a stage is called for a chunk."""
        return len(self.latents)

    def __call__(self, chunk: Denoised, index: int = 0) -> Tensor:
        """Frames uint8 [T, H, W, 3] of the next chunk: 4C of them, 4C - 3 of the first."""
        return torch.cat(list(self.frames(chunk, index)))

    def frames(self, chunk: Denoised, index: int = 0) -> Iterator[Tensor]:
        """The same, a few latents at a time."""
        for made in self.pixels(chunk, index):
            yield made if made.dtype == torch.uint8 else frames_to_uint8(made)

    def pixels(self, chunk: Denoised, index: int = 0) -> Iterator[Tensor]:
        """What the stages return: frames, or pixels about [-1, 1], [1, 3, T, H, W]."""
        for latents in self.latents:
            with span(self.timeline, "decode", "decode", index, self.device):
                made = self._decode(chunk, latents)
            yield made

    @staticmethod
    def _stages(
        executable: Executable, held: Collection[str], record: Recorder | None
    ) -> list[Run]:
        stages = [executable.stage(name) for name in DECODING]
        if record is None or not held:
            return [*stages]
        buffers = Buffers((*held, "decoded"))
        return [RecordedStage(stage, buffers, record) for stage in stages]

    def _decode(self, chunk: Denoised, latents: Tensor) -> Tensor:
        values = {
            "latent": chunk.latent,
            "velocity": chunk.velocity,
            "sigma": chunk.sigma,
            "decode_frames": latents,
            "decoded": self.decoded,
            **self.state,
        }
        name, stage = (DECODING[1], self._later) if self.started else (DECODING[0], self._first)
        outputs = stage(values)
        self.state |= {
            target: outputs[source] for target, source in self.loops if source in outputs
        }
        self.decoded += len(latents)
        self.started = True
        return outputs[f"{name}.frames"]
