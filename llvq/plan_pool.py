"""PyTorch's pools of device memory, as far as they decide how much of it is taken.

What it asks of the driver are segments: of 2 MiB for requests up to 1 MiB, of 20 MiB below 10 MiB,
and of the size of the request above, rounded to 2 MiB. A request takes the smallest free block that
holds it, and leaves the rest of it free; neighbours that are free become one again. A segment is
given back by nobody but `trim`. (`c10/cuda/CUDACachingAllocator.cpp`; its options at their
defaults.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

MIB = 2**20
UNIT = 512
SMALL, SMALL_SEGMENT = MIB, 2 * MIB
MEDIUM, MEDIUM_SEGMENT = 10 * MIB, 20 * MIB
LARGE_UNIT = 2 * MIB


@dataclass(eq=False)
class Block:
    """A part of a segment; `segment` has them all in order, and is empty where nothing rounds."""

    segment: list[Block]
    size: int
    free: bool = True


@dataclass
class Pool:
    """One pool: of a stream, or of CUDA graphs that share one. `most` is the most that it took.

    `rounds` False is a machine whose allocator takes what it is asked for, and gives it back.
    """

    rounds: bool = True
    reserved: int = 0
    most: int = 0
    _small: list[list[Block]] = field(default_factory=list)
    _large: list[list[Block]] = field(default_factory=list)

    def allocate(self, nbytes: int) -> Block:
        if not self.rounds:
            self._take(nbytes)
            return Block([], nbytes, free=False)
        size = max(UNIT, -(-nbytes // UNIT) * UNIT)
        segments = self._small if size <= SMALL else self._large
        fitting = (b for blocks in segments for b in blocks if b.free and b.size >= size)
        block = min(fitting, key=lambda b: b.size, default=None) or self._grow(segments, size)
        _split(block, size, UNIT if size <= SMALL else SMALL + 1)
        block.free = False
        return block

    def free(self, block: Block) -> None:
        if not block.segment:
            self.reserved -= block.size
            return
        block.free = True
        blocks, place = block.segment, 0
        while place + 1 < len(blocks):
            one, two = blocks[place : place + 2]
            if one.free and two.free:
                one.size += two.size
                del blocks[place + 1]
            else:
                place += 1

    def run(self, events: Iterable[tuple[int, int | None]]) -> dict[int, Block]:
        """Carry out allocations by number, and None for what is given back; gives what is left."""
        held: dict[int, Block] = {}
        for number, nbytes in events:
            if nbytes is None:
                self.free(held.pop(number))
            else:
                held[number] = self.allocate(nbytes)
        return held

    def trim(self) -> None:
        """Give back segments that nothing lies in."""
        for segments in (self._small, self._large):
            for blocks in [each for each in segments if len(each) == 1 and each[0].free]:
                self.reserved -= blocks[0].size
                segments.remove(blocks)

    def _grow(self, segments: list[list[Block]], size: int) -> Block:
        taken = -(-size // LARGE_UNIT) * LARGE_UNIT
        if size < MEDIUM:
            taken = SMALL_SEGMENT if size <= SMALL else MEDIUM_SEGMENT
        self._take(taken)
        blocks: list[Block] = []
        blocks.append(Block(blocks, taken))
        segments.append(blocks)
        return blocks[0]

    def _take(self, nbytes: int) -> None:
        self.reserved += nbytes
        self.most = max(self.most, self.reserved)


def _split(block: Block, size: int, least: int) -> None:
    """Leave the rest of a block free, if it is as much as `least`."""
    rest = block.size - size
    if rest >= least:
        block.segment.insert(block.segment.index(block) + 1, Block(block.segment, rest))
        block.size = size
