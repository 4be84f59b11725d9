"""What is recorded gives what was called: every length of history, every prompt, pages in place.

A recorder for the CPU runs the call where a GPU would replay it: on the tensors that it was
recorded with, into the tensors that it gave then.
"""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
from torch import Tensor

from llvq.errors import ContractError
from llvq.runtime.cuda_graphs import Buffers, recorder
from llvq.runtime.denoiser import Denoiser
from llvq.runtime.executable import Executable
from llvq.runtime.session import schedule_of
from llvq.runtime.streams import Streams
from tests.runtime.fakes import Recorder

Results = tuple[Tensor, ...]


class RecordedDenoiser(Denoiser):
    """A denoiser that records, as on a GPU."""

    def __init__(self, executable: Executable) -> None:
        self.recorder = Recorder()
        super().__init__(executable, schedule_of(executable.facts), record=self.recorder)


def rolled(denoiser: Denoiser, chunks: int) -> list[Tensor]:
    """x0 of each chunk; the prompt changes after every second one, and one begins a shot."""
    facts, random = denoiser.facts, torch.Generator().manual_seed(4)
    shape = (1, facts.frames_per_chunk, facts.latent_channels, *facts.latent_hw)
    prompts = [
        torch.randn(1, facts.text_len, facts.text_dim, generator=random).to(facts.torch_dtype)
        for _ in range(chunks)
    ]
    made = []
    for index in range(chunks):
        noise = torch.randn(shape, generator=random).to(facts.torch_dtype)
        given = {"scene_cut": index == 3, "image": None}
        made.append(denoiser.run(index, noise, prompts[index // 2], **given).x0)
    return made


def test_a_recorded_rollout_is_the_rollout(executable: Executable) -> None:
    chunks = executable.facts.window_chunks + 4
    plain = Denoiser(executable, schedule_of(executable.facts))
    recorded = RecordedDenoiser(executable)
    wanted, found = rolled(plain, chunks), rolled(recorded, chunks)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    for name, page in plain.pages.items():
        assert torch.equal(recorded.pages[name].view(torch.uint8), page.view(torch.uint8))


def test_each_length_of_history_is_recorded_once_at_its_second_call(
    executable: Executable,
) -> None:
    facts, denoiser = executable.facts, RecordedDenoiser(executable)
    rolled(denoiser, facts.window_chunks)
    assert denoiser.recorder.recorded == facts.window_chunks, "denoise, of each length"
    assert denoiser.recorder.replayed == facts.window_chunks * (facts.steps - 1)
    rolled_on = RecordedDenoiser(executable)
    rolled(rolled_on, facts.window_chunks + 3)
    assert rolled_on.recorder.recorded == facts.window_chunks + 1, "and refresh of a full window"


def test_results_are_the_callers(executable: Executable) -> None:
    """The velocities of earlier steps are read after later ones."""
    denoiser = RecordedDenoiser(executable)
    stage = denoiser._recorded["denoise"]
    values = inputs_of(denoiser)
    first, second, third = (stage(values)["velocity"] for _ in range(3))
    assert torch.equal(first, second) and torch.equal(second, third)
    assert len({t.data_ptr() for t in (first, second, third)}) == 3


def inputs_of(denoiser: Denoiser) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    stage = denoiser.executable.stage("denoise")
    values = {
        spec.name: torch.randn(spec.sizes, generator=random).to(spec.dtype)
        for spec in stage.inputs
        if spec.dtype.is_floating_point
    }
    table = torch.zeros(0, dtype=torch.int64)
    return {**values, **denoiser.pages, "page_table": table, "slot": torch.tensor(0),
            "kept_slot": torch.tensor(-1)} | {"latent": values["latent"]}  # fmt: skip


def test_another_session_has_pages_of_its_own(executable: Executable) -> None:
    denoiser = RecordedDenoiser(executable)
    stage, values = denoiser._recorded["denoise"], inputs_of(denoiser)
    for _ in range(2):
        stage(values)
    assert denoiser.recorder.recorded == 1
    moved = {name: page.clone() for name, page in denoiser.pages.items()}
    for _ in range(2):
        stage({**values, **moved})
    assert denoiser.recorder.recorded == 2


def test_inputs_are_those_that_the_stage_takes(executable: Executable) -> None:
    stage = RecordedDenoiser(executable)._recorded["denoise"]
    with pytest.raises(ContractError, match="is missing"):
        stage({})


def test_a_buffer_is_filled_when_another_tensor_is_given() -> None:
    buffers = Buffers(("pages",))
    page, x = torch.zeros(3), torch.arange(6.0).view(2, 3).t()
    assert buffers.place("pages", page) is page
    place = buffers.place("x", x)
    assert place is not x and place.is_contiguous() and torch.equal(place, x)
    place.zero_()
    assert buffers.place("x", x) is place and not place.any(), "it was given before"
    assert torch.equal(buffers.place("x", x + 1), x + 1)
    assert buffers.place("x", torch.zeros(4)) is not place


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cuda_graph_replays_on_what_lies_in_its_inputs() -> None:
    x = torch.randn(64, 64, device="cuda")
    torch.mm(x, x)
    record, place = recorder(Streams(), x.device, "test"), x.clone()
    assert record is not None
    replay, (y,) = record(lambda: (torch.mm(place, place) + 1,))
    for scale in (1.0, 2.0):
        place.copy_(x * scale)
        replay()
        assert torch.equal(y, torch.mm(place, place) + 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_first_call_and_recordings_share_their_memory() -> None:
    """Results of the first call are the caller's: neither a recording nor a replay writes there."""
    size, x = 32 * 2**20, torch.ones(2**20, device="cuda")
    record = recorder(Streams(), x.device, "test")
    assert record is not None
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        (first,) = record.warm(partial(_through_much, x, size, 1.0))
        taken = torch.cuda.memory_reserved() - before
        made = [record(partial(_through_much, x, size, scale)) for scale in (2.0, 3.0)]
        for replay, _ in made:
            replay()
        small = 2 * 2**20  # where every graph has the state of its random numbers
        assert torch.cuda.memory_reserved() - before <= taken + small
        assert first.eq(1).all() and all(
            result.eq(scale).all() for (_, (result,)), scale in zip(made, (2.0, 3.0), strict=True)
        )


def _through_much(x: Tensor, size: int, scale: float) -> Results:
    """A small result by way of a large tensor, which is free again at the end."""
    large = torch.full((size,), scale, device=x.device)
    return (large[: len(x)] * x,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_threads_record_one_after_the_other() -> None:
    """A recording begins by waiting for the device, which CUDA refuses while another is made."""
    streams, wrong = Streams(), []

    def record(use: str) -> None:
        made = recorder(streams, torch.device("cuda", 0), use)
        x = torch.ones(64, 64, device="cuda")
        assert made is not None
        torch.mm(x, x)
        with torch.cuda.stream(torch.cuda.Stream()):
            for scale in range(1, 20):
                replay, (y,) = made(partial(_scaled, x, scale))
                replay()
                torch.cuda.current_stream().synchronize()
                if float(y[0, 0]) != 64.0 * scale:
                    wrong.append(scale)

    threads = [threading.Thread(target=record, args=(use,)) for use in ("a", "a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _scaled(x: Tensor, scale: int) -> Results:
    return (torch.mm(x, x) * scale,)


def test_on_a_cpu_nothing_is_recorded() -> None:
    assert recorder(Streams(), torch.device("cpu"), "denoise") is None
