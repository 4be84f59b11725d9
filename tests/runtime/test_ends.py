"""However a video ends, it ends: nobody waits for anybody, and what it held is given back."""

from __future__ import annotations

import gc
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import torch

from llvq.errors import SessionError
from llvq.runtime.executable import CompiledStage, Executable
from llvq.runtime.session import Prompt, Session
from tests.runtime.fakes import streamed

pytestmark = pytest.mark.timeout(60)
CHUNKS = 12


@pytest.fixture
def model(executable: Executable) -> Executable:
    return streamed(executable)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def session_of(model: Executable, **options: Any) -> Session:
    facts = model.facts
    prompt = Prompt(torch.ones(1, facts.text_len, facts.text_dim, dtype=facts.torch_dtype))
    return Session(model, [prompt] * CHUNKS, steps=1, **options)


def replaced(model: Executable, name: str, call: Callable[..., Any]) -> Executable:
    stage = model.stage(name)
    made = CompiledStage(name, call, stage.inputs, stage.outputs)  # type: ignore[arg-type]
    return replace(model, stages={**model.stages, name: made})


def held_by(session: Session) -> list[weakref.ref[torch.Tensor]]:
    """Pages, and the rings of the decoder."""
    pages, decoder = session._denoiser.pages, session._emitter._decoder
    assert decoder is not None
    return [weakref.ref(tensor) for tensor in (*pages.values(), *decoder.state.values())]


def all_dead(held: list[weakref.ref[torch.Tensor]]) -> bool:
    gc.collect()
    return all(ref() is None for ref in held)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_finished_session_holds_nothing(model: Executable, depth: int) -> None:
    session = session_of(model, decode_depth=depth)
    held = held_by(session)
    assert not all_dead(held)
    for chunk in session:
        assert chunk.frames is not None
    assert all_dead(held)
    with pytest.raises(SessionError, match="has made its video"):
        list(session)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_cancelled_session_holds_nothing(model: Executable, depth: int) -> None:
    session = session_of(model, decode_depth=depth)
    held = held_by(session)
    for chunk in session:
        if chunk.index == 2:
            session.cancel()
    assert all_dead(held)


def test_a_cancel_from_another_thread(model: Executable) -> None:
    session, seen = session_of(model), threading.Event()
    held = held_by(session)
    canceller = threading.Thread(target=lambda: (seen.wait(), session.cancel()))
    canceller.start()
    for _ in session:
        seen.set()
    canceller.join()
    assert all_dead(held)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("stage", ["decode_first", "decode", "denoise", "refresh"])
def test_an_error_in_a_stage(model: Executable, stage: str, depth: int) -> None:
    """What a traceback would keep is let go even while the error is looked at."""
    compute = model.stage(stage).graph
    calls = []

    def breaks(*values: torch.Tensor) -> Any:
        calls.append(1)
        if stage == "decode_first" or len(calls) == 4:
            raise MemoryError("out of memory")
        return compute(*values)

    session = session_of(replaced(model, stage, breaks), decode_depth=depth)
    held = held_by(session)
    thread = "decode" if stage.startswith("decode") else "denoise"
    with pytest.raises(SessionError, match=f"stage {thread} failed") as caught:
        list(session)
    assert isinstance(caught.value.__cause__, MemoryError)
    assert all_dead(held)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_an_error_of_the_consumer(model: Executable, depth: int, error: BaseException) -> None:
    session = session_of(model, decode_depth=depth)
    held = held_by(session)
    with pytest.raises(type(error)), closing(iter(session)) as chunks:
        for chunk in chunks:
            if chunk.index == 1:
                raise error
    assert all_dead(held)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("stage", ["denoise", "decode"])
def test_ctrl_c_while_the_caller_waits(model: Executable, stage: str, depth: int) -> None:
    compute, calls = model.stage(stage).graph, []

    def slow(*values: torch.Tensor) -> Any:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)  # the main thread takes it
            time.sleep(0.05)
        return compute(*values)

    session = session_of(replaced(model, stage, slow), decode_depth=depth)
    held = held_by(session)
    with pytest.raises(KeyboardInterrupt):
        list(session)
    assert all_dead(held)


def test_frames_leave_while_the_denoiser_is_held(model: Executable) -> None:
    """Whatever holds the thread that denoises, frames of the chunk before are the caller's."""
    compute, calls, open_ = model.stage("denoise").graph, [], threading.Event()

    def held_up(*values: torch.Tensor) -> Any:
        calls.append(1)
        assert len(calls) < 2 or open_.wait(30)
        return compute(*values)

    parts = session_of(replaced(model, "denoise", held_up)).parts()
    with closing(parts):
        while (part := next(parts)).chunk is None:
            assert part.index == 0
        assert part.index == 0 and not open_.is_set()
        open_.set()
        assert next(parts).index == 1


@pytest.mark.parametrize("stage", ["denoise", "refresh"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_chunks_before_an_error_of_the_denoiser_come_first(
    model: Executable, stage: str, depth: int
) -> None:
    compute, calls, seen = model.stage(stage).graph, [], []

    def breaks(*values: torch.Tensor) -> Any:
        calls.append(1)
        assert len(calls) < 5
        return compute(*values)

    with pytest.raises(SessionError, match="stage denoise failed"):
        for chunk in session_of(replaced(model, stage, breaks), decode_depth=depth):
            seen.append(chunk.index)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_slow_consumer_holds_the_denoiser_back(model: Executable, depth: int) -> None:
    session, ahead = session_of(model, decode_depth=depth), []
    for chunk in session:
        time.sleep(0.02)
        ahead.append(session._next - 1 - chunk.index)
    assert max(ahead) <= depth + 2
    assert len(ahead) == CHUNKS


def test_whoever_stops_early_leaves_nothing(model: Executable) -> None:
    session = session_of(model)
    held = held_by(session)
    chunks = iter(session)
    next(chunks)
    del chunks
    assert all_dead(held)
