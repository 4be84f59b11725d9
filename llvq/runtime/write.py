"""From a session to a file: chunks are encoded on a thread of their own, while later ones are made.

A slow encoder holds the session back, through two chunks that may wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from llvq.runtime.emitter import Chunk
from llvq.runtime.session import Session
from llvq.runtime.stage import Stage
from llvq.runtime.timeline import Timeline, span

HOST = torch.device("cpu")
WAITING = 1


class Writer(Protocol):
    """What frames or latents are appended to."""

    def append(self, frames: Tensor, /) -> None: ...


@dataclass(frozen=True)
class Written:
    """A chunk that is in the file, since `when` on the clock of `time.perf_counter`."""

    chunk: int
    when: float


def write(
    session: Session, writer: Writer, timeline: Timeline | None = None
) -> Generator[Written, None, None]:
    """Append frames, or latents where there are none, of every chunk; tells of each.

    Closing the generator ends the session. Raises as a session does and as `writer` does.
    """
    append = partial(_append, writer, timeline)
    with (
        closing(iter(session)) as chunks,
        Stage("write", append, depth=WAITING) as stage,
    ):
        for chunk in chunks:
            stage.submit(chunk)
            yield from stage.poll()
        stage.close()
        yield from stage.results()


def _append(writer: Writer, timeline: Timeline | None, chunk: Chunk) -> Written:
    with span(timeline, "write", "write", chunk.index, HOST):
        writer.append(chunk.latents if chunk.frames is None else chunk.frames)
    return Written(chunk.index, time.perf_counter())
