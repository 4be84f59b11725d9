"""From a session to a file: frames are encoded on a thread of their own, while later ones are made.

A slow encoder holds the session back, through two chunks that may wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from llvq.runtime.emitter import Part
from llvq.runtime.session import Session
from llvq.runtime.stage import Stage
from llvq.runtime.timeline import Timeline, span

HOST = torch.device("cpu")
WAITING = 1  # chunks


class Writer(Protocol):
    """What frames or latents are appended to."""

    def append(self, frames: Tensor, /) -> None: ...


@dataclass(frozen=True)
class Written:
    """A part of a chunk that is in the file since `when`, on the clock of `time.perf_counter`;
    `whole`: with it, the chunk is."""

    chunk: int
    when: float
    whole: bool


def write(
    session: Session, writer: Writer, timeline: Timeline | None = None
) -> Generator[Written, None, None]:
    """Append frames as they come, or latents of whole chunks where there are none; tells of each.

    Closing the generator ends the session. Raises as a session does and as `writer` does.
    """
    append, facts = partial(_append, writer, timeline), session.facts
    parts_of_chunk = facts.frames_per_chunk // facts.latents_per_decode
    with (
        closing(session.parts()) as parts,
        Stage("write", append, depth=WAITING * parts_of_chunk) as stage,
    ):
        for part in parts:
            stage.submit(part)
            yield from stage.poll()
        stage.close()
        yield from stage.results()


def _append(writer: Writer, timeline: Timeline | None, part: Part) -> Iterator[Written]:
    with span(timeline, "write", "write", part.index, HOST):
        if part.frames is not None:
            writer.append(part.frames)
        elif part.chunk is not None:
            writer.append(part.chunk.latents)
    yield Written(part.index, time.perf_counter(), part.chunk is not None)
