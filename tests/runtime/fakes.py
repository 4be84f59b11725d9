"""Stand-ins: a recorder for the CPU, and a decoder in the form that boxes have it in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llvq.runtime.contract import InputSpec
from llvq.runtime.denoiser import Denoised
from llvq.runtime.executable import CompiledStage, Executable
from llvq.runtime.facts import RunFacts

Results = tuple[Tensor, ...]


class Recorder:
    """Runs the call where a GPU would replay it, and counts what it records and replays."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def warm(self, run: Callable[[], Results]) -> Results:
        return run()

    def __call__(self, run: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
        self.recorded += 1
        kept = run()

        def replay() -> None:
            self.replayed += 1
            for place, result in zip(kept, run(), strict=True):
                place.copy_(result)

        return replay, kept


def shown(latents: Sequence[Tensor], before: Tensor, facts: RunFacts, start: int) -> Tensor:
    """Frames of latents [channels, h, w], each with half of the one before it: the first of a video
    has one frame, others have one per step of time."""
    made = []
    for place, latent in enumerate(latents, start):
        grey = latent.float().mean(dim=0)
        count = facts.temporal_stride if place else 1
        pixels = torch.sigmoid(grey + before / 2).kron(torch.ones((facts.spatial_stride,) * 2))
        steps = torch.arange(count, dtype=torch.float32)[:, None, None, None]
        made.append((pixels[None, :, :, None] * 200 + steps).expand(-1, -1, -1, 3))
        before = grey
    return torch.cat(made).round().to(torch.uint8)


@dataclass(frozen=True)
class StreamedGraph:
    """What `shown` does, a call at a time, with a ring for what came before."""

    facts: RunFacts

    def __call__(
        self,
        latent: Tensor,
        velocity: Tensor,
        sigma: Tensor,
        decode_frames: Tensor,
        decoded: Tensor,
        ring: Tensor,
    ) -> Results:
        x0 = (latent.float() - sigma[:, :, None, None, None] * velocity.float())[0, decode_frames]
        start, slots = int(decoded), len(ring)
        before = ring[(start - 1) % slots].clone()
        for place, one in enumerate(x0, start):
            ring[place % slots] = one.mean(dim=0)
        return (shown(list(x0), before, self.facts, start),)


def streamed(executable: Executable) -> Executable:
    """The same model with a decoder that writes to a ring, of a context of one latent."""
    facts = replace(executable.facts, loops=())
    emitted = {s.name: s for s in executable.stage("decode").inputs}
    ring = (facts.latents_per_decode + 1, *facts.latent_hw)
    inputs = (
        *(emitted[name] for name in ("latent", "velocity", "sigma", "decode_frames")),
        InputSpec("decoded", torch.int64, (), "emit"),
        InputSpec("decode_state.0", torch.float32, ring, "state"),
    )
    made = {
        name: CompiledStage(name, StreamedGraph(facts), inputs, (f"{name}.frames",))  # type: ignore[arg-type]
        for name in ("decode_first", "decode")
    }
    return replace(executable, stages={**executable.stages, **made}, facts=facts)


def random_chunk(executable: Executable, seed: int) -> Denoised:
    facts, random = executable.facts, torch.Generator().manual_seed(seed)
    shape = (1, facts.frames_per_chunk, facts.latent_channels, *facts.latent_hw)
    latent, velocity = (
        torch.randn(shape, generator=random).to(facts.torch_dtype) for _ in range(2)
    )
    sigma = torch.rand(shape[:2], generator=random)
    x0 = (latent - sigma[:, :, None, None, None] * velocity).to(latent.dtype)
    return Denoised(x0, latent, velocity, sigma)
