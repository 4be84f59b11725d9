"""The decoder of one video: x0 to pixels, chunk after chunk, with the state of its convolutions."""

from __future__ import annotations

import torch
from torch import Tensor

from llvq.runtime.denoiser import Denoised
from llvq.runtime.executable import Executable
from llvq.runtime.video import frames_to_uint8


class Decoder:
    """Turns finished chunks into frames. Owns the temporal state of the VAE."""

    def __init__(self, executable: Executable) -> None:
        self.first = executable.stage("decode_first")
        self.later = executable.stage("decode")
        self.loops = executable.facts.loops
        names = {source for source, _ in self.loops}
        self.state = {
            spec.name: torch.zeros(spec.sizes, dtype=spec.dtype, device=executable.device)
            for spec in self.later.inputs
            if spec.name in names
        }
        self.started = False

    def __call__(self, chunk: Denoised) -> Tensor:
        """Frames uint8 [T, H, W, 3] of the next chunk: 4C of them, 4C - 3 of the first."""
        stage = self.later if self.started else self.first
        values = {
            "latent": chunk.latent,
            "velocity": chunk.velocity,
            "sigma": chunk.sigma,
            **self.state,
        }
        outputs = stage(values)
        self.state = {
            target: outputs[source] for target, source in self.loops if source in outputs
        }
        self.started = True
        return frames_to_uint8(outputs[f"{stage.name}.frames"])
