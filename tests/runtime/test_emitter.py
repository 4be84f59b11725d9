"""Chunks on the host: whole, kept while anybody looks at them, in memory that goes round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from llvq.runtime.decoder import Decoder
from llvq.runtime.emitter import ON_THE_HOST, Chunk, Emitter, Part
from llvq.runtime.executable import Executable
from llvq.runtime.timeline import Timeline
from tests.runtime.fakes import random_chunk, streamed


@pytest.fixture(params=["as captured", "streamed"])
def model(request: pytest.FixtureRequest, executable: Executable) -> Executable:
    return streamed(executable) if request.param == "streamed" else executable


def parts_of(model: Executable, emitter: Emitter, chunks: int) -> Iterator[Part]:
    for index in range(chunks):
        yield from emitter(emitter.take(index, random_chunk(model, index)))


def emitted(model: Executable, emitter: Emitter, chunks: int) -> Iterator[Chunk]:
    for part in parts_of(model, emitter, chunks):
        if part.chunk is not None:
            yield part.chunk


def test_a_chunk_is_what_the_decoder_makes_of_it(model: Executable) -> None:
    decoder = Decoder(model)
    for chunk in emitted(model, Emitter(model, decodes=True, depth=1), 3):
        given = random_chunk(model, chunk.index)
        assert torch.equal(chunk.latents, given.x0) and chunk.latents.dtype == given.x0.dtype
        assert chunk.frames is not None and torch.equal(chunk.frames, decoder(given))


def test_parts_are_the_chunk_in_the_same_memory(model: Executable) -> None:
    calls = model.facts.frames_per_chunk // model.facts.latents_per_decode
    parts = list(parts_of(model, Emitter(model, decodes=True, depth=1), 2))
    assert [part.index for part in parts] == [0] * calls + [1] * calls
    for index in range(2):
        own = [part for part in parts if part.index == index]
        assert [part.chunk is None for part in own] == [True] * (calls - 1) + [False]
        chunk, frames = own[-1].chunk, [part.frames for part in own if part.frames is not None]
        assert chunk is not None and chunk.frames is not None
        assert torch.equal(torch.cat(frames), chunk.frames)
        assert frames[0].data_ptr() == chunk.frames.data_ptr()


def test_a_part_is_there_before_the_next_is_made(model: Executable) -> None:
    """A call of the decoder, a copy of what it made, and out it goes."""
    timeline = Timeline()
    emitter = Emitter(model, decodes=True, depth=1, timeline=timeline)
    for number, _ in enumerate(parts_of(model, emitter, 1), 1):
        names = [s.name for s in timeline.spans()]
        assert (names.count("decode"), names.count("copy")) == (number, number + 1)


def test_whoever_keeps_a_part_keeps_it_as_it_was(executable: Executable) -> None:
    model = streamed(executable)
    kept, copies = [], []
    for chunk in emitted(model, Emitter(model, decodes=True, depth=1), 30):
        assert chunk.frames is not None
        for part in (chunk.frames[1:], chunk.frames.numpy()[0], chunk.latents[0, 1]):
            kept.append(part)
            copies.append(torch.as_tensor(part).clone())
    assert all(torch.equal(torch.as_tensor(a), b) for a, b in zip(kept, copies, strict=True))


def test_memory_goes_round(executable: Executable) -> None:
    model = streamed(executable)
    emitter, places = Emitter(model, decodes=True, depth=1), set()
    for chunk in emitted(model, emitter, 40):
        assert chunk.frames is not None
        places.add((chunk.frames.data_ptr(), chunk.latents.data_ptr()))
        del chunk
    assert len(places) <= 3, "a chunk of ours, of the generators, and the next"
    assert emitter._frame_memory.made <= 3 and emitter._frame_memory.limit == 1 + ON_THE_HOST


def test_without_frames_there_is_no_decoder(executable: Executable) -> None:
    stages = {k: v for k, v in executable.stages.items() if not k.startswith("decode")}
    model = replace(executable, stages=stages)
    (chunk,) = emitted(model, Emitter(model, decodes=False, depth=0), 1)
    assert chunk.frames is None and torch.equal(chunk.latents, random_chunk(model, 0).x0)


def test_a_timeline_has_every_call_and_every_copy(model: Executable) -> None:
    timeline = Timeline()
    list(emitted(model, Emitter(model, decodes=True, depth=1, timeline=timeline), 2))
    calls = model.facts.frames_per_chunk // model.facts.latents_per_decode
    found = [(s.name, s.lane, s.chunk) for s in timeline.spans()]
    for index in range(2):
        assert found.count(("decode", "decode", index)) == calls
        assert found.count(("copy", "copy to host", index)) == calls + 1
