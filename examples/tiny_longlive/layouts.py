"""Which chunks of a long video a training sample holds, and what each of them attends to.

A sample is a stretch of a video of any age: the chunks that are trained, and the older ones that
the cache would still hold (the sink, the pin of the last cut, the newest). So windows, positions
and gaps are those of inference, without the minutes in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from llvq.models.config import StreamConfig
from llvq.runtime.pages import PageTable

FIRST_SHOT, CUT_CHUNK, SECOND_SHOT = range(3)  # the three prompts of a sample


@dataclass(frozen=True)
class Layout:
    """`chunks`: numbers in the video. All else is per entry of it; windows name earlier entries.

    The last `trained` entries are those with a complete window. `cut`: the chunk that begins the
    second shot.
    """

    chunks: tuple[int, ...]
    windows: tuple[tuple[int, ...], ...]
    positions: tuple[float, ...]
    prompts: tuple[int, ...]
    trained: int
    cut: int | None

    @property
    def given(self) -> int:
        return len(self.chunks) - self.trained


def layout(stream: StreamConfig, first: int, count: int, cut: int | None = None) -> Layout:
    """`count` trained chunks from chunk `first`, with the older chunks that they attend to."""
    resident = _residency(stream, first + count, cut)
    run = range(first, first + count)
    needed = {chunk for index in run for chunk in resident[index]}
    chunks = tuple(sorted(needed | set(run)))
    place = {chunk: index for index, chunk in enumerate(chunks)}
    return Layout(
        chunks=chunks,
        windows=tuple(tuple(place[c] for c in resident[k] if c in place) for k in chunks),
        positions=tuple(_position(stream, chunk, cut) for chunk in chunks),
        prompts=tuple(_prompt(chunk, cut) for chunk in chunks),
        trained=count,
        cut=cut if cut is not None and cut < first + count else None,
    )


def sample_layout(stream: StreamConfig, count: int, longest: int, random: Random) -> Layout:
    """A start, a later stretch, or either with a cut in it or before it; up to chunk `longest`."""
    first = random.choice((0, random.randint(3, 8), random.randint(3, longest - count)))
    kind = random.random()
    cut = None
    if kind < 0.4:  # inside the stretch
        cut = random.randint(max(first, 1), first + count - 1) if count > 1 or first else None
    elif kind < 0.6 and first > 1:  # at any time before it
        cut = random.randint(max(1, first - 40), first - 1)
    return layout(stream, first, count, cut)


def position_tensor(layout: Layout, device: torch.device | str) -> Tensor:
    """The temporal position of the first frame of each entry, fp64."""
    return torch.tensor(layout.positions, dtype=torch.float64).to(device)


def _residency(stream: StreamConfig, count: int, cut: int | None) -> list[tuple[int, ...]]:
    """For each chunk, the older chunks in the cache while it is denoised."""
    table = PageTable(
        window_chunks=stream.window_chunks,
        sink_chunks=stream.sink_chunks,
        multi_shot_sink=stream.multi_shot_sink,
    )
    resident = []
    for chunk in range(count):
        table = table.begin(chunk)
        resident.append(table.resident)
        table = table.commit(scene_cut=chunk == cut)
    return resident


def _position(stream: StreamConfig, chunk: int, cut: int | None) -> float:
    shots = int(cut is not None and chunk >= cut)
    return chunk * stream.frames_per_chunk + shots * stream.multi_shot_rope_offset


def _prompt(chunk: int, cut: int | None) -> int:
    if cut is None or chunk < cut:
        return FIRST_SHOT
    return CUT_CHUNK if chunk == cut else SECOND_SHOT
