"""From a denoised chunk to one in the memory of the host, decoded on the way.

It works on a stream of its own, on the device of the denoiser or on another one. Frames are copied
to the host while the next ones are decoded, and may be looked at once they are there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import prod

import torch
from torch import Tensor

from llvq.runtime.cuda_graphs import Recorder
from llvq.runtime.decoder import Decoder
from llvq.runtime.denoiser import Denoised
from llvq.runtime.executable import Executable
from llvq.runtime.host_buffers import HostBuffers, shaped
from llvq.runtime.streams import Lane, hand_over, mark
from llvq.runtime.timeline import Timeline

# Chunks that are on the host at once, if the consumer is slow, beside as many as may wait for the
# decoder: two that wait to be collected, one that the caller has, and of a writer one that is
# encoded and two that wait for it.
ON_THE_HOST = 6


@dataclass(frozen=True)
class Chunk:
    """One finished chunk, in the memory of the host: latents [1, C, channels, h, w], frames uint8
    [T, H, W, 3] or None.

    Tensors are the consumer's for as long as they, or any views of them, live (`HostBuffers`).
    """

    index: int
    latents: Tensor
    frames: Tensor | None


@dataclass(frozen=True)
class Part:
    """Frames of a chunk that one call of the decoder made, uint8 [T, H, W, 3], or None where
    nothing is decoded. With the last of them comes the chunk, in the same memory."""

    index: int
    frames: Tensor | None
    chunk: Chunk | None


@dataclass(frozen=True)
class Handed:
    """A denoised chunk on the device that decodes, once `ready` has happened."""

    index: int
    chunk: Denoised
    ready: torch.cuda.Event | None


class Emitter:
    """Brings the chunks of one video to the host: `take` in the thread that denoises, and a call
    with what it gave in the one that decodes."""

    def __init__(
        self,
        executable: Executable,
        *,
        decodes: bool,
        depth: int,
        record: Recorder | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        """`decodes`: with frames. `depth`: how many chunks may wait for the decoder."""
        facts, self.device = executable.facts, executable.decodes_on
        self.pixel_hw = facts.pixel_hw
        self._lane = Lane(executable.streams, self.device, timeline)
        with self._lane.after(mark(self.device)):
            decoder = Decoder(executable, record=record, timeline=timeline) if decodes else None
        self._decoder = decoder
        limit, pinned = depth + ON_THE_HOST, self.device.type == "cuda"
        count = facts.frames_per_chunk
        latents = prod((count, facts.latent_channels, *facts.latent_hw))
        frames = prod((count * facts.temporal_stride, *facts.pixel_hw, 3))
        latents *= facts.torch_dtype.itemsize
        self._latent_memory = HostBuffers(latents, limit=limit, pinned=pinned)
        self._frame_memory = HostBuffers(frames, limit=limit, pinned=pinned)

    def take(self, index: int, chunk: Denoised) -> Handed:
        """Put a chunk on the device that decodes, behind what the current stream computes."""
        parts = {f.name: hand_over(getattr(chunk, f.name), self.device) for f in fields(chunk)}
        return Handed(index, Denoised(**parts), mark(self.device))

    def __call__(self, handed: Handed) -> Iterator[Part]:
        """Gives each part once it is on the host; the device goes on meanwhile."""
        index, x0 = handed.index, handed.chunk.x0
        with self._lane.after(handed.ready):
            latents = shaped(self._latent_memory.take(), x0.shape, x0.dtype)
            arrived = self._lane.download(x0, latents, index)
            if self._decoder is not None:
                yield from self._parts(self._decoder, handed, latents)
                return
            if arrived is not None:
                arrived.synchronize()
            yield Part(index, None, Chunk(index, latents, None))

    def _parts(self, decoder: Decoder, handed: Handed, latents: Tensor) -> Iterator[Part]:
        """All calls are queued as fast as they can be; what is there by then goes out between."""
        memory, used, index = self._frame_memory.take(), 0, handed.index
        coming: deque[tuple[torch.cuda.Event | None, Part]] = deque()
        for left, frames in zip(
            reversed(range(decoder.calls)), decoder.frames(handed.chunk, index), strict=True
        ):
            place = memory[used : used + frames.nbytes].view(frames.shape)
            used += frames.nbytes
            whole = memory[:used].view(-1, *self.pixel_hw, 3)
            chunk = None if left else Chunk(index, latents, whole)
            arrived = self._lane.download(frames, place, index)
            coming.append((arrived, Part(index, place, chunk)))
            while coming and (coming[0][0] is None or coming[0][0].query()):
                yield coming.popleft()[1]
        for event, part in coming:
            if event is not None:
                event.synchronize()
            yield part
