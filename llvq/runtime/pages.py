"""Where each chunk's keys and values live: LongLive-2.0's rolling window as a table of integers.

A page is one slot of the KV cache and holds one chunk, for all layers. The reference keeps one
buffer and moves the data when it rolls; here the order of the buffer is a tuple and a slot, once
written, never moves: the slot of the evicted chunk is the one that the new chunk overwrites.

Chunks that matter most may be kept a second time, in the model's dtype, in a smaller pool. They are
read from there; their pages are written all the same, since the newest chunk is soon an old one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llvq.errors import CacheError

KEEPABLE = ("sink", "newest")


@dataclass(frozen=True)
class Page:
    """A resident chunk and the slot that holds it."""

    chunk: int
    slot: int


@dataclass(frozen=True)
class Placement:
    """The slots to write a chunk to, and the slots it attends to, in buffer order.

    A history entry is a page slot, or `window_chunks` + a kept slot. `kept_slot` is -1 for a chunk
    that is not kept.
    """

    chunk: int
    slot: int
    history: tuple[int, ...]
    kept_slot: int = -1


@dataclass(frozen=True, kw_only=True)
class PageTable:
    """One state of the window. `begin` and `commit` return the next one.

        table = table.begin(chunk)              # a slot is chosen, the oldest chunk is evicted
        ... table.placement.slot, table.placement.history ...
        table = table.commit(scene_cut=False)   # after the refresh: the chunk is resident

    The first `sink_chunks` chunks stay for good. With `multi_shot_sink`, the chunk of the latest
    scene cut is pinned: it rolls left like any other until it lies next to the sink, and from then
    on it stays, until a later cut pins another chunk. A table from before `begin` is valid for as
    long as nobody has written to the chosen slot, which is what cancelling a chunk needs.

    `keep` names what is kept in the model's dtype as well: "sink", the first `sink_chunks` chunks;
    "newest", the chunk before the one that is begun. The newest take turns in two slots of their
    own, so that no chunk is written over the one that it reads.

    All sizes are chunks. Raises CacheError if the window has no slot left beside sink and pin.
    """

    window_chunks: int
    sink_chunks: int = 0
    multi_shot_sink: bool = False
    keep: tuple[str, ...] = ()
    pages: tuple[Page, ...] = ()
    pinned: int | None = None
    placement: Placement | None = None

    def __post_init__(self) -> None:
        pins = int(self.multi_shot_sink and self.sink_chunks > 0)
        if self.sink_chunks >= 0 and self.sink_chunks + pins < self.window_chunks:
            return
        raise CacheError(
            f"a window of {self.window_chunks} chunks has no room to roll",
            because=f"{self.sink_chunks} sink chunks and {pins} pinned chunk are never evicted",
            fix=f"set window_frames to {self.sink_chunks + pins + 1} chunks or more, "
            "or lower sink_frames" + (", or set multi_shot_sink = false" if pins else ""),
        )

    @property
    def resident(self) -> tuple[int, ...]:
        """The chunks that have been committed and not evicted, in buffer order."""
        return tuple(page.chunk for page in self.pages)

    @property
    def next_chunk(self) -> int:
        return self.pages[-1].chunk + 1 if self.pages else 0

    @property
    def protected(self) -> int:
        """How many pages at the left end do not roll: the sink, and a pin that touches it."""
        touching = self.resident[self.sink_chunks : self.sink_chunks + 1]
        return self.sink_chunks + int(touching == (self.pinned,))

    @property
    def kept_slots(self) -> int:
        """The size of the pool in the model's dtype."""
        return self._kept_sinks + (2 if "newest" in self.keep else 0)

    @property
    def _kept_sinks(self) -> int:
        return self.sink_chunks if "sink" in self.keep else 0

    def begin(self, chunk: int) -> PageTable:
        """Choose the slot for `chunk`, evicting the oldest unprotected chunk of a full window."""
        if self.placement is not None:
            raise CacheError(
                f"chunk {chunk} begins before chunk {self.placement.chunk} is committed",
                fix="call commit() after the refresh, or go back to the table before begin()",
            )
        if chunk != self.next_chunk:
            raise CacheError(
                f"chunk {chunk} begins where chunk {self.next_chunk} is next",
                because="the window holds the chunks of one video, in order",
                fix=f"begin chunk {self.next_chunk}, or start a new PageTable for a new video",
            )
        pages = self.pages
        if len(pages) == self.window_chunks:
            pages = pages[: self.protected] + pages[self.protected + 1 :]
        slot = min(set(range(self.window_chunks)).difference(page.slot for page in pages))
        history = tuple(self._address(page, chunk) for page in pages)
        placement = Placement(chunk, slot, history, self._kept_slot(chunk))
        return replace(self, pages=pages, placement=placement)

    def _kept_slot(self, chunk: int) -> int:
        if chunk < self._kept_sinks:
            return chunk
        return self._kept_sinks + chunk % 2 if "newest" in self.keep else -1

    def _address(self, page: Page, reader: int) -> int:
        """Where the chunk of a page is read by the chunk `reader`."""
        is_newest = "newest" in self.keep and page.chunk == reader - 1
        kept = is_newest or page.chunk < self._kept_sinks
        return self.window_chunks + self._kept_slot(page.chunk) if kept else page.slot

    def commit(self, *, scene_cut: bool) -> PageTable:
        """Make the begun chunk resident, and pin it if it is the first of a new scene."""
        if self.placement is None:
            raise CacheError("commit() without a begun chunk", fix="call begin(chunk) first")
        page = Page(self.placement.chunk, self.placement.slot)
        pins = scene_cut and self.multi_shot_sink and self.sink_chunks > 0
        pinned = page.chunk if pins else self.pinned
        return replace(self, pages=(*self.pages, page), pinned=pinned, placement=None)


def history_lengths(window_chunks: int) -> tuple[int, ...]:
    """Every history length, in chunks, that a video can meet: one static graph shape for each."""
    return tuple(range(window_chunks))
