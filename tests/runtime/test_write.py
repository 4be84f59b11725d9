"""Writing beside making: every chunk once, in order; and each way to fail ends all threads."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.errors import OutputError, SessionError
from llvq.runtime.executable import CompiledStage, Executable
from llvq.runtime.session import Prompt, Session
from llvq.runtime.timeline import Timeline
from llvq.runtime.video import VideoWriter
from llvq.runtime.write import write
from tests.runtime.fakes import streamed

pytestmark = pytest.mark.timeout(60)
CHUNKS, PARTS = 8, 2


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def session_of(executable: Executable, **options: Any) -> Session:
    facts = executable.facts
    prompt = Prompt(torch.ones(1, facts.text_len, facts.text_dim, dtype=facts.torch_dtype))
    return Session(streamed(executable), [prompt] * CHUNKS, steps=1, **options)


class Kept:
    """Keeps what is appended, in `delay` seconds each; the sixth is an error, if there is one."""

    def __init__(self, delay: float = 0.0, error: BaseException | None = None) -> None:
        self.frames: list[Tensor] = []
        self.delay, self.error = delay, error

    def append(self, frames: Tensor) -> None:
        time.sleep(self.delay)
        if self.error is not None and len(self.frames) == 5:
            raise self.error
        self.frames.append(frames.clone())


@pytest.mark.parametrize("delay", [0.0, 0.05])
@pytest.mark.parametrize("latents_only", [False, True])
def test_what_is_written_is_what_is_made(
    executable: Executable, latents_only: bool, delay: float
) -> None:
    wanted = list(session_of(executable, latents_only=latents_only))
    kept, began = Kept(delay), time.perf_counter()
    told = list(write(session_of(executable, latents_only=latents_only), kept))
    assert [written.chunk for written in told if written.whole] == list(range(CHUNKS))
    assert len(told) == len(kept.frames) == CHUNKS * (1 if latents_only else PARTS)
    assert began < told[0].when and told == sorted(told, key=lambda written: written.when)
    made = [chunk.latents if chunk.frames is None else chunk.frames for chunk in wanted]
    assert torch.equal(torch.cat(kept.frames), torch.cat(made))


def test_frames_are_written_before_the_rest_of_their_chunk_is_made(executable: Executable) -> None:
    """The second call of the decoder waits until what the first one made is written."""
    model, written = streamed(executable), threading.Event()
    stage = model.stage("decode")

    def waits(*values: Tensor) -> Any:
        assert written.wait(30)
        return stage.graph(*values)

    class Told(Kept):
        def append(self, frames: Tensor) -> None:
            super().append(frames)
            written.set()

    later = CompiledStage("decode", waits, stage.inputs, stage.outputs)  # type: ignore[arg-type]
    model = replace(model, stages={**model.stages, "decode": later})
    prompt = session_of(executable).script[0]
    kept = Told()
    list(write(Session(model, [prompt] * 2, steps=1), kept))
    assert len(kept.frames) == 2 * PARTS


def test_it_is_written_while_the_next_is_made(executable: Executable) -> None:
    timeline = Timeline()
    list(write(session_of(executable, timeline=timeline), Kept(0.2), timeline))
    spans = timeline.spans()
    assert {s.lane for s in spans} == {"denoise", "decode", "copy to host", "write"}
    ends = {(s.lane, s.chunk): s.end for s in spans}
    begins = {(s.lane, s.chunk): s.begin for s in reversed(spans)}
    assert begins["denoise", 2] < ends["write", 0], "not one after the other"
    assert all(begins["decode", i] < begins["write", i] for i in range(CHUNKS))
    assert all(ends["decode", i] < ends["write", i] for i in range(CHUNKS))


def test_an_error_of_the_file_system(executable: Executable) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(SessionError, match="stage write failed") as caught:
        list(write(session_of(executable), Kept(error=full)))
    assert caught.value.__cause__ is full


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OutputError("the disk is full")])
def test_other_errors_come_as_they_are(executable: Executable, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        list(write(session_of(executable), Kept(0.02, error)))
    assert caught.value is error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_no_file(executable: Executable, tmp_path: Path) -> None:
    (tmp_path / f".a.mp4.part-{os.getpid()}").symlink_to("/dev/full")
    height, width = executable.facts.pixel_hw
    with (
        pytest.raises(OutputError, match="cannot write"),
        VideoWriter(tmp_path / "a.mp4", fps=24, height=height, width=width) as writer,
    ):
        list(write(session_of(executable), writer))
    assert not list(tmp_path.iterdir())


def test_whoever_stops_listening_ends_it(executable: Executable) -> None:
    kept = Kept(0.02)
    with pytest.raises(KeyboardInterrupt), closing(write(session_of(executable), kept)) as told:
        for _ in told:
            raise KeyboardInterrupt
    assert len(kept.frames) < CHUNKS
