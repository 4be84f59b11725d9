"""A box on the GPU that it is for: loaded, checked, replayed, and the same video every way."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llvq.backends.base import NUMERICS_OF_TARGET, find_target
from llvq.box import export_box, write_program
from llvq.checks import replay
from llvq.compiler import Compiled
from llvq.models.config import ModelConfig
from llvq.runtime.device import chip_of
from llvq.runtime.executable import Executable
from llvq.runtime.load import executable, open_checked, open_runnable
from llvq.runtime.session import Chunk, Prompt, Session
from llvq.sources import DictSource

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CHIP = chip_of(torch.cuda.get_device_capability()) if torch.cuda.is_available() else "none"
CHUNKS = 7  # a window of four, and what has rolled


@pytest.fixture(scope="module")
def program(
    whole_config: ModelConfig,
    compiled_whole: Compiled,
    make_whole_weights: Callable[[ModelConfig], DictSource],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "m.nvfp4"
    write_program(compiled_whole, make_whole_weights(whole_config), path)
    return path


@pytest.fixture(scope="module", params=NUMERICS_OF_TARGET.get(CHIP, ("none",)))
def box(request: pytest.FixtureRequest, program: Path) -> Path:
    path = program.with_name(f"{request.param}.llvq")
    target = find_target(CHIP, request.param)
    export_box(open_checked(program, kinds=("program",)), target, path)
    return path


@pytest.fixture(scope="module")
def model(box: Path) -> Executable:
    """Loading calls every kernel of the box and holds it against its reference."""
    opened = open_runnable(box)
    return executable(opened, "cuda", stages=opened.manifest["stages"].keys() - {"encode_text"})


def video(model: Executable, *, depth: int = 1, cuda_graphs: bool = True) -> list[Chunk]:
    """Two shots, each with a prompt of its own."""
    facts, random = model.facts, torch.Generator().manual_seed(8)
    embeds = torch.randn(2, 1, facts.text_len, facts.text_dim, generator=random)
    first, second = (Prompt(e.to(facts.torch_dtype)) for e in embeds)
    script = [first] * 3 + [Prompt(second.embeds, scene_cut=True)] + [second] * (CHUNKS - 4)
    options = {"decode_depth": depth, "cuda_graphs": cuda_graphs}
    return list(Session(model, script, seed=6, **options))


@pytest.fixture(scope="module")
def plain(model: Executable) -> list[Chunk]:
    """Launched call by call, decoded in turn."""
    return video(model, depth=0, cuda_graphs=False)


def same(a: list[Chunk], b: list[Chunk]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.latents, y.latents) and torch.equal(x.frames, y.frames)
        for x, y in zip(a, b, strict=True)
    )


def test_kernels_compute_what_the_reference_recorded_on_a_cpu(box: Path, model: Executable) -> None:
    found = replay(model, open_checked(box))
    assert found and not [result for result in found if not result.passed]


def test_the_same_seed_gives_the_same_bytes(model: Executable, plain: list[Chunk]) -> None:
    assert same(plain, video(model, depth=0, cuda_graphs=False))


@pytest.mark.parametrize(("depth", "cuda_graphs"), [(1, False), (0, True), (1, True), (3, True)])
def test_however_it_is_run_the_video_is_the_same(
    model: Executable, plain: list[Chunk], depth: int, cuda_graphs: bool
) -> None:
    assert same(plain, video(model, depth=depth, cuda_graphs=cuda_graphs))


def test_chunks_are_on_the_host(plain: list[Chunk]) -> None:
    assert {t.device.type for c in plain for t in (c.frames, c.latents)} == {"cpu"}
    assert all(c.latents.isfinite().all() for c in plain)


def test_nothing_of_a_session_stays(model: Executable) -> None:
    """But for what cuBLAS keeps: 32 MiB for each stream of the model."""
    held = []
    for _ in range(2):
        video(model)
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_reserved())
    assert held[1] <= held[0]


def test_the_chunk_loop_never_waits_for_the_gpu(model: Executable) -> None:
    """PyTorch raises where a call would synchronize; recording graphs does so by itself."""
    session = Session(model, [Prompt(torch.ones(
        1, model.facts.text_len, model.facts.text_dim, dtype=model.facts.torch_dtype
    ))] * CHUNKS, latents_only=True, cuda_graphs=False)  # fmt: skip
    session._denoise(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for index in range(1, CHUNKS):
            session._denoise(index)
    finally:
        torch.cuda.set_sync_debug_mode("default")
