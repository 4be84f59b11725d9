"""A session: one video, chunk by chunk, frames out as soon as they are decoded.

One thread denoises and one decodes, so that chunk i is decoded while chunk i + 1 is denoised, and
the caller's waits for frames alone. The same seed gives the same bytes, at any depth of the decode
stage.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from llvq.errors import SessionError
from llvq.runtime.cuda_graphs import recorder
from llvq.runtime.denoiser import Denoised, Denoiser
from llvq.runtime.emitter import Chunk, Emitter, Handed, Part
from llvq.runtime.executable import Executable, RunFacts
from llvq.runtime.sampler import Schedule, schedule
from llvq.runtime.stage import Stage
from llvq.runtime.streams import current_stream, upload
from llvq.runtime.timeline import Timeline

__all__ = ["Chunk", "Part", "Prompt", "Session", "check_seed", "schedule_of"]


@dataclass(frozen=True)
class Prompt:
    """What a chunk is conditioned on: embeds [1, X, text_dim], and whether it begins a shot."""

    embeds: Tensor
    scene_cut: bool = False


class Session:
    """Generates one video. `script` has one prompt per chunk; `noise` [1, F, channels, h, w].

    Without `noise` it comes from `seed`, and so does what a re-noising sampler adds in any case.

    image_latent [1, 1, channels, h, w] makes it an image-to-video. decode_depth is how many chunks
    may wait for the decoder; with 0 everything is done in the caller's thread, one after the other.
    cuda_graphs means nothing on a CPU. `timeline` is told what is done when.

    Iterate once: however the iteration ends, the memory of the video is given back, and of the
    device that of everything but the executable. cancel() and set_prompt() may come from another
    thread.
    """

    def __init__(
        self,
        executable: Executable,
        script: Sequence[Prompt],
        *,
        seed: int = 0,
        steps: int | None = None,
        noise: Tensor | None = None,
        image_latent: Tensor | None = None,
        latents_only: bool = False,
        decode_depth: int = 1,
        cuda_graphs: bool = True,
        timeline: Timeline | None = None,
    ) -> None:
        facts = executable.facts
        if not script:
            raise SessionError("the script is empty", fix="give one prompt per chunk")
        _check_noise(noise, executable, len(script))
        check_seed(seed)
        self.facts, self.device = facts, executable.device
        self.script, self.noise = list(script), noise
        self.image = None if image_latent is None else upload(image_latent, self.device)
        self.decode_depth = decode_depth
        records, streams = cuda_graphs and executable.streamed is None, executable.streams
        self._denoiser = Denoiser(
            executable,
            schedule_of(facts, steps),
            record=recorder(streams, self.device, "denoise") if records else None,
            timeline=timeline,
        )
        self._emitter = Emitter(
            executable,
            decodes=not latents_only,
            depth=decode_depth,
            record=recorder(streams, executable.decodes_on, "decode") if records else None,
            timeline=timeline,
        )
        self._random = torch.Generator().manual_seed(seed)
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._next = 0
        self._begun = False

    def __iter__(self) -> Generator[Chunk, None, None]:
        """Yield chunks in order, each once its frames are there. Raises SessionError."""
        with closing(self.parts()) as parts:
            for part in parts:
                if part.chunk is not None:
                    yield part.chunk

    def parts(self) -> Generator[Part, None, None]:
        """The same, a few frames at a time: each part once the decoder has made it."""
        if self._begun:
            raise SessionError(
                "this session has made its video",
                because="a session is iterated once",
                fix="open another one",
            )
        self._begun = True
        with ExitStack() as ends:
            ends.callback(self._release)
            decode = Stage("decode", self._emitter, depth=self.decode_depth)
            ends.enter_context(decode)
            chunk = partial(self._chunk, current_stream(self.device))
            depth = self._ahead if self.decode_depth else 0
            denoise = Stage("denoise", chunk, depth=depth, into=decode)
            ends.enter_context(denoise)
            yield from self._collect(denoise, decode)

    def cancel(self) -> None:
        """Stop at the next chunk border; the iteration ends without an error."""
        self._cancelled.set()

    def set_prompt(self, prompt: Prompt) -> int:
        """Prompt all chunks that are not begun yet; gives the index of the first of them.

        Only that one begins a shot, if the prompt does.
        """
        with self._lock:
            start, rest = self._next, Prompt(prompt.embeds)
            count = len(self.script) - start
            self.script[start:] = ([prompt] + [rest] * (count - 1))[:count]
            return start

    @property
    def _ahead(self) -> int:
        """How many chunks are in work: one with the caller, one in each stage, those that wait."""
        return self.decode_depth + 3 if self.decode_depth else 1

    def _collect(self, denoise: Stage[int, Handed], decode: Stage[Handed, Part]) -> Iterator[Part]:
        """Parts as they come. A chunk is begun for each that the caller is done with."""
        ahead, count = self._ahead, len(self.script)
        if self._cancelled.is_set():
            return
        for index in range(min(ahead, count)):
            denoise.submit(index)
        for part in decode.results():
            if not self._cancelled.is_set():
                yield part
            if self._cancelled.is_set():
                denoise.cancel()
                return
            if part.chunk is not None and part.index + ahead < count:
                denoise.submit(part.index + ahead)
            elif part.chunk is not None and part.index + 1 == count:
                denoise.close()

    def _chunk(self, stream: torch.cuda.Stream | None, index: int) -> Iterator[Handed]:
        """Denoise a chunk on the stream of whoever iterates, where weights and pages were made."""
        with torch.cuda.stream(stream):
            handed = self._emitter.take(index, self._denoise(index))
        yield handed

    def _denoise(self, index: int) -> Denoised:
        with self._lock:
            prompt, self._next = self.script[index], index + 1
        noise, *fresh = self._noises(index)
        return self._denoiser.run(
            index,
            noise,
            prompt.embeds,
            scene_cut=index > 0 and prompt.scene_cut,
            image=self.image if index == 0 else None,
            fresh=fresh,
        )

    def _noises(self, index: int) -> list[Tensor]:
        """All noise of a chunk, drawn before it begins: what it starts from, then one per step."""
        count = self.facts.frames_per_chunk
        shape = (1, count, self.facts.latent_channels, *self.facts.latent_hw)
        given = []
        if self.noise is not None:
            given.append(self.noise[:, index * count : (index + 1) * count])
        missing = self._denoiser.schedule.draws - len(given)
        drawn = [torch.randn(shape, generator=self._random) for _ in range(missing)]
        dtype = self.facts.torch_dtype
        return [upload(noise.to(dtype), self.device) for noise in (*given, *drawn)]

    def _release(self) -> None:
        """Let go of pages, rings, recordings and buffers, whoever keeps the session."""
        del self._denoiser, self._emitter


def schedule_of(facts: RunFacts, steps: int | None = None) -> Schedule:
    """The schedule of a model, in as many `steps` as asked for. Raises SessionError."""
    return schedule(steps or facts.steps, facts.shift, facts.sampler, facts.timesteps)


def check_seed(seed: int) -> None:
    """A seed is 64 bits, signed or not. Raises SessionError."""
    if not -(2**63) <= seed < 2**64:
        raise SessionError(
            f"seed {seed} is too large",
            because="seeds have 64 bits",
            fix="use --seed 0 to 2**64 - 1",
        )


def _check_noise(noise: Tensor | None, executable: Executable, chunks: int) -> None:
    """Noise that is given must cover the whole video in the model's latent size."""
    facts = executable.facts
    wanted = (1, chunks * facts.frames_per_chunk, facts.latent_channels, *facts.latent_hw)
    if noise is not None and tuple(noise.shape) != wanted:
        raise SessionError(
            f"the noise has shape {tuple(noise.shape)}",
            because=f"{chunks} chunks of this model need {wanted}",
            fix="pass noise [1, frames, channels, height, width] of the whole video",
        )
