"""The page table against the residency measured on the reference, and against a token buffer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llvq.errors import CacheError
from llvq.runtime.pages import PageTable, Placement, history_lengths

SHIPPED = PageTable(window_chunks=4, sink_chunks=1, multi_shot_sink=True)


def roll(table: PageTable, cuts: set[int], chunks: int) -> list[tuple[int, ...]]:
    """The resident chunks after each chunk."""
    resident = []
    for chunk in range(chunks):
        table = table.begin(chunk).commit(scene_cut=chunk in cuts)
        resident.append(table.resident)
    return resident


def rows(text: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, row.split())) for row in text.split("|")]


# Observed on the reference, window of 4 chunks, sink of 1.
MEASURED = {
    (): "0 | 0 1 | 0 1 2 | 0 1 2 3 | 0 2 3 4 | 0 3 4 5 | 0 4 5 6 | 0 5 6 7",
    (6,): "0 | 0 1 | 0 1 2 | 0 1 2 3 | 0 2 3 4 | 0 3 4 5 | 0 4 5 6 | 0 5 6 7 | 0 6 7 8"
    " | 0 6 8 9 | 0 6 9 10",
    (1, 6, 9): "0 | 0 1 | 0 1 2 | 0 1 2 3 | 0 1 3 4 | 0 1 4 5 | 0 1 5 6 | 0 5 6 7 | 0 6 7 8"
    " | 0 6 8 9 | 0 8 9 10 | 0 9 10 11 | 0 9 11 12",
}


@pytest.mark.parametrize(("cuts", "expected"), MEASURED.items(), ids=str)
def test_residency_is_that_of_the_reference(cuts: tuple[int, ...], expected: str) -> None:
    assert roll(SHIPPED, set(cuts), len(rows(expected))) == rows(expected)


def test_without_multi_shot_sink_cuts_change_nothing() -> None:
    plain = PageTable(window_chunks=4, sink_chunks=1)
    assert roll(plain, {1, 6, 9}, 13) == roll(plain, set(), 13)


def test_without_sink_the_window_only_slides() -> None:
    table = PageTable(window_chunks=3, sink_chunks=0, multi_shot_sink=True)
    assert roll(table, {2}, 5)[-1] == (2, 3, 4)


def test_slots_are_reused_and_never_move() -> None:
    table, placements = SHIPPED, []
    for chunk in range(6):
        begun = table.begin(chunk)
        placements.append(begun.placement)
        table = begun.commit(scene_cut=False)
    assert placements == [
        Placement(0, 0, ()),
        Placement(1, 1, (0,)),
        Placement(2, 2, (0, 1)),
        Placement(3, 3, (0, 1, 2)),
        Placement(4, 1, (0, 2, 3)),
        Placement(5, 2, (0, 3, 1)),
    ]


def test_going_back_before_begin_cancels_the_chunk() -> None:
    table = SHIPPED.begin(0).commit(scene_cut=False)
    assert table.begin(1) == table.begin(1)
    assert table.resident == (0,)


@pytest.mark.parametrize(
    ("window", "sink", "multi_shot"),
    [(4, 4, False), (4, 5, False), (4, 3, True), (2, 1, True), (0, 0, False), (4, -1, False)],
)
def test_a_window_that_cannot_roll_is_refused(window: int, sink: int, multi_shot: bool) -> None:
    with pytest.raises(CacheError, match="no room to roll") as caught:
        PageTable(window_chunks=window, sink_chunks=sink, multi_shot_sink=multi_shot)
    assert caught.value.fix is not None
    assert ("multi_shot_sink = false" in caught.value.fix) == multi_shot


def test_begin_and_commit_alternate() -> None:
    begun = SHIPPED.begin(0)
    with pytest.raises(CacheError, match="before chunk 0 is committed"):
        begun.begin(1)
    with pytest.raises(CacheError, match="without a begun chunk"):
        SHIPPED.commit(scene_cut=False)
    with pytest.raises(CacheError, match="chunk 2 begins where chunk 1 is next"):
        begun.commit(scene_cut=False).begin(2)


@dataclass
class TokenBuffer:
    """The reference's cache as its description reads: one list of tokens that rolls left.

    Every count is in tokens. A token is the pair (chunk, index in chunk).
    """

    capacity: int
    chunk: int
    sink: int
    multi_shot: bool
    pinned_start: int = -1
    pinned_len: int = 0
    tokens: list[tuple[int, int]] = field(default_factory=list)

    def effective_sink(self) -> int:
        global_sink = self.sink if self.multi_shot else 0
        if self.pinned_start < 0:
            return max(global_sink, self.sink)
        after_sink = self.pinned_start == global_sink
        return global_sink + (self.pinned_len if after_sink else 0)

    def append(self, chunk: int) -> None:
        evicted = max(0, self.chunk + len(self.tokens) - self.capacity)
        sink = self.effective_sink()
        if self.pinned_start >= sink + evicted:
            self.pinned_start -= evicted
        kept = self.tokens[:sink] + self.tokens[sink + evicted :]
        self.tokens = kept + [(chunk, index) for index in range(self.chunk)]

    def cut(self) -> None:
        if self.multi_shot and self.sink > 0:
            self.pinned_start = len(self.tokens) - self.chunk
            self.pinned_len = min(self.sink, self.chunk)

    def chunks(self) -> tuple[int, ...]:
        assert all(token[1] == at % self.chunk for at, token in enumerate(self.tokens))
        return tuple(token[0] for token in self.tokens[:: self.chunk])


@st.composite
def tables(draw: st.DrawFn) -> PageTable:
    sink, multi_shot = draw(st.integers(0, 3)), draw(st.booleans())
    smallest = sink + int(multi_shot and sink > 0) + 1
    window = draw(st.integers(smallest, smallest + 4))
    return PageTable(window_chunks=window, sink_chunks=sink, multi_shot_sink=multi_shot)


@settings(max_examples=200, deadline=None)
@given(tables(), st.lists(st.booleans(), max_size=30), st.integers(1, 3))
def test_any_video_is_that_of_a_token_buffer(
    table: PageTable, cuts: list[bool], tokens: int
) -> None:
    buffer = TokenBuffer(
        capacity=table.window_chunks * tokens,
        chunk=tokens,
        sink=table.sink_chunks * tokens,
        multi_shot=table.multi_shot_sink,
    )
    written: dict[int, int] = {}  # slot -> chunk: what a real cache would hold
    for chunk, cut in enumerate(cuts):
        buffer.append(chunk)
        begun = table.begin(chunk)
        place = begun.placement
        assert place is not None
        assert place.slot not in place.history
        assert len(set(place.history)) == len(place.history) < table.window_chunks
        assert len(place.history) in history_lengths(table.window_chunks)
        assert tuple(written[slot] for slot in place.history) == buffer.chunks()[:-1]
        written[place.slot] = chunk
        table = begun.commit(scene_cut=cut)
        if cut:
            buffer.cut()
        sink = min(table.sink_chunks, chunk + 1)
        assert table.resident == buffer.chunks()
        assert table.resident[:sink] == tuple(range(sink))
        assert table.pinned is None or table.pinned in table.resident


KEEPS = [(), ("sink",), ("newest",), ("sink", "newest"), ("newest", "sink")]


@pytest.mark.parametrize(
    ("keep", "slots", "expected"),
    [
        ((), 0, [((), -1), ((0,), -1), ((0, 1), -1), ((0, 1, 2), -1), ((0, 2, 3), -1)]),
        (("sink",), 1, [((), 0), ((4,), -1), ((4, 1), -1), ((4, 1, 2), -1), ((4, 2, 3), -1)]),
        (("newest",), 2, [((), 0), ((4,), 1), ((0, 5), 0), ((0, 1, 4), 1), ((0, 2, 5), 0)]),
        (("sink", "newest"), 3, [((), 0), ((4,), 2), ((4, 6), 1), ((4, 1, 5), 2), ((4, 2, 6), 1)]),
    ],
)
def test_what_is_kept_is_read_beyond_the_pages(
    keep: tuple[str, ...], slots: int, expected: list[tuple[tuple[int, ...], int]]
) -> None:
    """Entries from 4 on are kept slots: the pages of this window are 0 to 3."""
    table = PageTable(window_chunks=4, sink_chunks=1, keep=keep)
    assert table.kept_slots == slots
    found = []
    for chunk in range(len(expected)):
        begun = table.begin(chunk)
        assert begun.placement is not None
        found.append((begun.placement.history, begun.placement.kept_slot))
        table = begun.commit(scene_cut=False)
    assert found == expected


@settings(max_examples=200, deadline=None)
@given(tables(), st.sampled_from(KEEPS), st.lists(st.booleans(), max_size=20), st.data())
def test_keeping_reads_the_same_chunks_from_what_is_more_precise(
    table: PageTable, keep: tuple[str, ...], cuts: list[bool], data: st.DataObject
) -> None:
    """Against two dictionaries, and a table that keeps nothing. Any chunk may be cancelled late."""
    keeping = replace(table, keep=keep)
    pages: dict[int, int] = {}  # slot -> chunk: what the two pools would hold
    kept: dict[int, int] = {}
    for chunk, cut in enumerate(cuts):
        plain = table.begin(chunk).placement
        for _ in range(1 + data.draw(st.booleans())):  # once more, if it was cancelled
            place = keeping.begin(chunk).placement
            assert plain is not None and place is not None
            assert place.slot == plain.slot and place.kept_slot < keeping.kept_slots
            precise, chunks = read_all(place, keeping.window_chunks, pages, kept)
            assert chunks == [pages[slot] for slot in plain.history]
            assert precise == [is_kept(old, chunk, keeping) for old in chunks]
            pages[place.slot] = chunk
            if place.kept_slot >= 0:
                kept[place.kept_slot] = chunk
            # Its own writes must not reach what it reads: a refresh writes before it reads.
            assert read_all(place, keeping.window_chunks, pages, kept) == (precise, chunks)
        table = table.begin(chunk).commit(scene_cut=cut)
        keeping = keeping.begin(chunk).commit(scene_cut=cut)


def read_all(
    place: Placement, window: int, pages: dict[int, int], kept: dict[int, int]
) -> tuple[list[bool], list[int]]:
    """Of each history entry: whether it is read from the kept pool, and the chunk found there."""
    found = [kept[at - window] if at >= window else pages[at] for at in place.history]
    return [at >= window for at in place.history], found


def is_kept(chunk: int, reader: int, table: PageTable) -> bool:
    sink = "sink" in table.keep and chunk < table.sink_chunks
    return sink or ("newest" in table.keep and chunk == reader - 1)


def test_the_buckets_of_the_shipped_window() -> None:
    assert history_lengths(SHIPPED.window_chunks) == (0, 1, 2, 3)
