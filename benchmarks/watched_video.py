"""What a video does while it runs: when each chunk comes, and what memory is held by then."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, Protocol

import torch
from torch import Tensor

from llvq.bench.timing import quantile
from llvq.quality.metrics import slope
from llvq.runtime.session import Session
from llvq.runtime.timeline import Timeline, span

HOST = torch.device("cpu")


class Made(Protocol):
    """A chunk as it comes out."""

    @property
    def frames(self) -> Tensor | None: ...


@dataclass
class Memory:
    """Bytes of one device. `allocated` and `reserved` are the most since the chunk before, of
    tensors and of PyTorch's pools; `used` is what the driver gives away (its own part, libraries
    and other processes included) when the chunk came. On a CPU, `used` is the process (RSS)."""

    device: str
    allocated: list[int] = field(default_factory=list)
    reserved: list[int] = field(default_factory=list)
    used: list[int] = field(default_factory=list)

    def note(self, device: torch.device) -> None:
        if device.type == "cuda":
            self.allocated.append(torch.cuda.max_memory_allocated(device))
            self.reserved.append(torch.cuda.max_memory_reserved(device))
            free, total = torch.cuda.mem_get_info(device)
            self.used.append(total - free)
            torch.cuda.reset_peak_memory_stats(device)
        else:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            self.used.append(pages * resource.getpagesize())


@dataclass
class Watched:
    """One video, as plain lists that grow: a run that is cut off has what came before.

    `ends` are seconds since `began`, `warm` the chunks until the window of attention is full.
    `first`: until the first frames, where they come before their chunk is whole.
    """

    name: str
    steps: int
    warm: int
    chunks: int
    memory: list[Memory]
    ends: list[float] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    first: float | None = None

    def chunks_of(
        self, session: Session, began: float, timeline: Timeline | None = None
    ) -> Iterator[Made]:
        """The chunks of a session, whose first frames are noted as they come, and all of them on
        the timeline."""
        with closing(session.parts()) as parts:
            for part in parts:
                with span(timeline, "taken", "taken", part.index, HOST):
                    if self.first is None:
                        self.first = time.perf_counter() - began
                if part.chunk is not None:
                    yield part.chunk

    def watch(self, made: Iterable[Made], began: float, devices: Sequence[torch.device]) -> None:
        """Take chunks as they come. `began`: when whoever makes them was asked for them."""
        for device in devices:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
        for chunk in made:
            assert chunk.frames is not None
            self.frames.append(len(chunk.frames))
            self.ends.append(time.perf_counter() - began)
            for memory, device in zip(self.memory, devices, strict=True):
                memory.note(device)


def new_watched(
    name: str, steps: int, warm: int, chunks: int, devices: Sequence[torch.device]
) -> Watched:
    return Watched(name, steps, warm, chunks, [Memory(str(device)) for device in devices])


def figures(video: Watched) -> dict[str, Any]:
    """What the lists come to; entries that need more chunks than there are, are None."""
    warm, ends = video.warm, video.ends
    gaps = [later - earlier for earlier, later in zip(ends[warm - 1 :], ends[warm:], strict=False)]
    found: dict[str, Any] = {
        "first_frame": (ends[0] if ends else None) if video.first is None else video.first,
        "fps": sum(video.frames) / ends[-1] if ends else None,
        "fps_steady": sum(video.frames[warm:]) / sum(gaps) if gaps else None,
        "p50": quantile(gaps, 0.5) if gaps else None,
        "p99": quantile(gaps, 0.99) if gaps else None,
        "frames": sum(video.frames),
        "chunks": len(ends),
    }
    found["time"] = flatness(gaps)
    found["memory"] = [
        {
            "device": memory.device,
            **{
                kind: max(values) if values else None
                for kind, values in (
                    ("allocated", memory.allocated),
                    ("reserved", memory.reserved),
                    ("used", memory.used),
                )
            },
            "flat": flatness([float(n) for n in memory.allocated[warm:] or memory.used[warm:]]),
        }
        for memory in video.memory
    ]
    return found


def flatness(values: Sequence[float]) -> dict[str, float] | None:
    """Medians of the first and of the last quarter, and the slope of a line per chunk, over its
    mean. None of fewer than four values."""
    if len(values) < 4:
        return None
    quarter, mean = len(values) // 4, fmean(values)
    first, last = median(values[:quarter]), median(values[-quarter:])
    return {"first": first, "last": last, "slope": slope(values) / mean if mean else 0.0}
