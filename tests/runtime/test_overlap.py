"""On GPUs: decoding beside denoising, on one GPU or on two, and what is left when it ends."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llvq.backends.base import find_target
from llvq.box import export_box, write_program
from llvq.compiler import Compiled
from llvq.errors import SessionError
from llvq.models.config import ModelConfig
from llvq.runtime.device import check_decode_device, chip_of
from llvq.runtime.executable import CompiledStage, Executable
from llvq.runtime.load import executable, executable_on_two, open_checked, open_runnable
from llvq.runtime.session import Chunk, Prompt, Session
from llvq.runtime.timeline import Timeline
from llvq.sources import DictSource

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.timeout(120),
]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
CHUNKS = 7  # a window of four, and what has rolled
WORKSPACE = 1 << 25  # of cuBLAS, for a stream


@pytest.fixture(scope="module")
def box(
    whole_config: ModelConfig,
    compiled_whole: Compiled,
    make_whole_weights: Callable[[ModelConfig], DictSource],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("overlap")
    write_program(compiled_whole, make_whole_weights(whole_config), folder / "m.nvfp4")
    target = find_target(chip_of(torch.cuda.get_device_capability()), None)
    export_box(open_checked(folder / "m.nvfp4", kinds=("program",)), target, folder / "m.llvq")
    return folder / "m.llvq"


@pytest.fixture(scope="module")
def model(box: Path) -> Executable:
    opened = open_runnable(box)
    return executable(opened, "cuda", stages=opened.manifest["stages"].keys() - {"encode_text"})


@pytest.fixture(scope="module")
def on_two(box: Path) -> Executable:
    opened = open_runnable(box)
    other = check_decode_device("cuda:1", opened.manifest["target"])
    stages = opened.manifest["stages"].keys() - {"encode_text"}
    return executable_on_two(opened, "cuda", other, stages=stages)


def session_of(model: Executable, **options: Any) -> Session:
    facts, random = model.facts, torch.Generator().manual_seed(8)
    embeds = torch.randn(1, facts.text_len, facts.text_dim, generator=random)
    return Session(model, [Prompt(embeds.to(facts.torch_dtype))] * CHUNKS, seed=6, **options)


def same(a: list[Chunk], b: list[Chunk]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.latents, y.latents) and torch.equal(x.frames, y.frames)
        for x, y in zip(a, b, strict=True)
    )


def allocated(device: int = 0) -> int:
    gc.collect()
    torch.cuda.synchronize(device)
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated(device)


def test_frames_are_in_pinned_memory_that_goes_round(model: Executable) -> None:
    places = set()
    for chunk in session_of(model):
        assert chunk.frames is not None
        assert chunk.frames.is_pinned() and chunk.latents.is_pinned()
        places.add(chunk.frames.data_ptr())
        del chunk
    assert len(places) < CHUNKS


def test_chunks_that_are_kept_are_not_written_over(model: Executable) -> None:
    kept, copies = [], []
    for chunk in session_of(model):
        assert chunk.frames is not None
        kept.append(chunk.frames[-1:])
        copies.append(chunk.frames[-1:].clone())
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


def finished(model: Executable) -> None:
    assert len(list(session_of(model))) == CHUNKS


def cancelled(model: Executable) -> None:
    session = session_of(model)
    for _ in session:
        session.cancel()


def interrupted(model: Executable) -> None:
    with pytest.raises(KeyboardInterrupt), closing(iter(session_of(model))) as chunks:
        for chunk in chunks:
            if chunk.index == 2:
                raise KeyboardInterrupt


def out_of_memory(model: Executable) -> None:
    """The decoder asks for more than there is."""

    def greedy(*_: torch.Tensor) -> None:
        torch.empty(2**50, device="cuda")

    stage = model.stage("decode")
    broken = CompiledStage("decode", greedy, stage.inputs, stage.outputs)  # type: ignore[arg-type]
    with pytest.raises(SessionError) as caught:
        list(session_of(replace(model, stages={**model.stages, "decode": broken})))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


ENDS = [finished, cancelled, interrupted, out_of_memory]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_memory_of_the_gpu_is_given_back(
    model: Executable, end: Callable[[Executable], None]
) -> None:
    finished(model)  # what libraries keep
    before = allocated()
    end(model)
    assert allocated() == before


def test_sessions_leave_two_sets_of_workspaces_at_most(model: Executable) -> None:
    """cuBLAS keeps memory for every stream that each of its handles sees. A session has two threads
    with a handle each, and the next one's may have them the other way round, on three streams.
    """
    finished(model)
    before = torch.cuda.memory_allocated()
    for _ in range(6):
        finished(model)
    gc.collect()
    assert torch.cuda.memory_allocated() - before < 4 * WORKSPACE


def test_spans_are_of_the_gpu_and_in_order(model: Executable) -> None:
    timeline = Timeline()
    list(session_of(model, timeline=timeline))
    spans = timeline.spans()
    ends = {(s.lane, s.chunk): s.end for s in spans}
    begins = {(s.lane, s.chunk): s.begin for s in reversed(spans)}
    last_step = {s.chunk: s.end for s in spans if s.name == "denoise"}
    slack = 1e-4  # of what events resolve
    for index in range(CHUNKS):
        assert last_step[index] <= begins["decode", index] + slack
        assert ends["decode", index] <= ends["copy to host", index] + slack
    assert {s.lane for s in spans} == {"denoise", "decode", "copy to host"}


def test_a_timeline_makes_nobody_wait(model: Executable) -> None:
    session = session_of(model, timeline=Timeline(), cuda_graphs=False)
    handed = [session._emitter.take(0, session._denoise(0))]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for index in range(1, CHUNKS):
            handed.append(session._emitter.take(index, session._denoise(index)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    made = [p.chunk for item in handed for p in session._emitter(item) if p.chunk is not None]
    assert same(made, list(session_of(model, decode_depth=0)))


@two_gpus
@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_second_gpu_decodes_the_same_frames(
    model: Executable, on_two: Executable, depth: int, cuda_graphs: bool
) -> None:
    wanted = list(session_of(model, decode_depth=0, cuda_graphs=False))
    assert on_two.device.index == 0 and on_two.decodes_on.index == 1
    assert same(wanted, list(session_of(on_two, decode_depth=depth, cuda_graphs=cuda_graphs)))


@two_gpus
def test_the_second_gpu_has_the_decoder_alone(on_two: Executable) -> None:
    for name, stage in on_two.stages.items():
        # What was folded into another weight stays as a shape.
        held = [t for t in stage.graph.state_dict().values() if t.device.type != "meta"]
        where = {t.device.index for t in held}
        assert where <= {1 if name in ("decode_first", "decode") else 0}
    session = session_of(on_two)
    decoder = session._emitter._decoder
    assert decoder is not None
    assert {t.device.index for t in decoder.state.values()} == {1}
    assert {t.device.index for t in session._denoiser.pages.values()} == {0}


@two_gpus
def test_handing_over_to_the_second_gpu_makes_nobody_wait(on_two: Executable) -> None:
    session = session_of(on_two, cuda_graphs=False)
    session._emitter.take(0, session._denoise(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for index in range(1, CHUNKS):
            session._emitter.take(index, session._denoise(index))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@two_gpus
def test_memory_of_both_gpus_is_given_back(on_two: Executable) -> None:
    finished(on_two)
    before = [allocated(index) for index in range(2)]
    for end in (finished, cancelled, interrupted):
        end(on_two)
        assert [allocated(index) for index in range(2)] == before
