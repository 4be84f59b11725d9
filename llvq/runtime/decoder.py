"""The decoder of one video: x0 to pixels, chunk after chunk, with the state of its convolutions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llvq.runtime.denoiser import Denoised
from llvq.runtime.executable import Executable
from llvq.runtime.streams import upload
from llvq.runtime.video import frames_to_uint8


class Decoder:
    """Turns finished chunks into frames. Owns the temporal state of the VAE."""

    def __init__(self, executable: Executable) -> None:
        self.first = executable.stage("decode_first")
        self.later = executable.stage("decode")
        self.loops = executable.facts.loops
        chunk, per_call = executable.facts.frames_per_chunk, executable.facts.latents_per_decode
        self.frames = upload(torch.arange(chunk), executable.device).split(per_call)
        names = {source for source, _ in self.loops}
        self.state = {
            spec.name: torch.zeros(spec.sizes, dtype=spec.dtype, device=executable.device)
            for spec in self.later.inputs
            if spec.name in names
        }
        self.started = False

    def __call__(self, chunk: Denoised) -> Tensor:
        """Frames uint8 [T, H, W, 3] of the next chunk: 4C of them, 4C - 3 of the first."""
        return torch.cat([frames_to_uint8(pixels) for pixels in self.pixels(chunk)])

    def pixels(self, chunk: Denoised) -> Iterator[Tensor]:
        """The same as pixels about [-1, 1], [1, 3, T, H, W], a few latents at a time."""
        for latents in self.frames:
            yield self._decode(chunk, latents)

    def _decode(self, chunk: Denoised, latents: Tensor) -> Tensor:
        stage = self.later if self.started else self.first
        values = {
            "latent": chunk.latent,
            "velocity": chunk.velocity,
            "sigma": chunk.sigma,
            "decode_frames": latents,
            **self.state,
        }
        outputs = stage(values)
        self.state = {target: outputs[source] for target, source in self.loops if source in outputs}
        self.started = True
        return outputs[f"{stage.name}.frames"]
