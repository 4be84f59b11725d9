"""One report of a box: stages alone, then a video end to end, then its quantized linears."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from llvq.artifact import Box
from llvq.bench.linears import LinearTime, time_linears
from llvq.bench.machine import (
    device_text,
    gpu_state,
    peak_memory,
    reset_peak_memory,
    versions,
)
from llvq.bench.stages import StageTime, random_script, time_stages
from llvq.bench.timing import Spread, spread
from llvq.runtime.device import TARGET_DEVICES
from llvq.runtime.embedder import ENCODER
from llvq.runtime.executable import Executable
from llvq.runtime.load import executable
from llvq.runtime.session import Session

# (what is done, how much of it, of how much)
Tell = Callable[[str, int, int], None]
# Stages that a video from random embeddings does not run.
LEFT_OUT = (ENCODER, "encode_image")
EMBEDDINGS = "random: speed does not depend on what a prompt says"
TIMED = (
    "video: denoise + decode + copy of the frames to the host, wall clock, CUDA graphs on a GPU, "
    "after warm-up; stages: one after the other, launched op by op"
)


@dataclass(frozen=True)
class EndToEnd:
    """A video, decoding beside denoising. `chunk` has the time between one chunk's frames and the
    next one's, and `fps` their frames, both once the window is full."""

    first_frame: float
    chunk: Spread
    frames: int
    fps: float


@dataclass(frozen=True)
class Report:
    """Seconds and bytes. `slower` names the quantized linears that bf16 would beat."""

    box: str
    id: str
    target: str
    numerics: str
    video: str
    steps: int
    seed: int
    embeddings: str
    device: str
    gpu: dict[str, str]
    versions: dict[str, str]
    loading: float
    stages: list[StageTime]
    end_to_end: EndToEnd
    timed: str
    memory: dict[str, Any]
    linears: list[LinearTime]

    @property
    def slower(self) -> list[LinearTime]:
        return [linear for linear in self.linears if linear.slower]

    def to_dict(self) -> dict[str, Any]:
        rows = [asdict(linear) | {"slower": linear.slower} for linear in self.linears]
        return asdict(self) | {"linears": rows}


def bench_box(box: Box, *, chunks: int, steps: int | None, seed: int, tell: Tell) -> Report:
    """Load an open box and measure it. Raises ArtifactError, SessionError."""
    device, began = TARGET_DEVICES[box.manifest["target"]], time.perf_counter()
    model = executable(box, device, stages=box.manifest["stages"].keys() - set(LEFT_OUT))
    loading, facts = time.perf_counter() - began, model.facts
    total = facts.window_chunks + chunks
    reset_peak_memory(model.device)
    stages, given = time_stages(
        model, chunks=chunks, steps=steps, seed=seed, tell=lambda n: tell("stages", n, total)
    )
    video = time_video(
        model, chunks=chunks, steps=steps, seed=seed, tell=lambda n: tell("video", n, total)
    )
    memory, gpu = dict(peak_memory(model.device)), gpu_state(model.device)
    linears = time_linears(model.stage("denoise"), given)
    height, width = facts.pixel_hw
    return Report(
        box=str(box.path),
        id=box.id,
        target=box.manifest["target"],
        numerics=box.manifest["numerics"],
        video=f"{height}x{width}, chunks of {facts.frames_per_chunk} latent frames, "
        f"a window of {facts.window_chunks}, pages in {facts.pages.text}",
        steps=steps or facts.steps,
        seed=seed,
        embeddings=EMBEDDINGS,
        device=device_text(model.device),
        gpu=gpu,
        versions=versions(),
        loading=loading,
        stages=stages,
        end_to_end=video,
        timed=TIMED,
        memory=memory,
        linears=linears,
    )


def time_video(
    model: Executable, *, chunks: int, steps: int | None, seed: int, tell: Callable[[int], None]
) -> EndToEnd:
    """`chunks` chunks after the window is full, on the host as they come."""
    full = model.facts.window_chunks
    began = time.perf_counter()
    session = Session(
        model,
        random_script(model, full + chunks, seed),
        seed=seed,
        steps=steps,
        latents_only="decode" not in model.stages,
    )
    ends, frames, first = [], [], None
    for part in session.parts():
        first = time.perf_counter() - began if first is None else first
        if part.chunk is None:
            continue
        made = part.chunk.latents[0] if part.chunk.frames is None else part.chunk.frames
        frames.append(len(made))
        ends.append(time.perf_counter())
        tell(part.index + 1)
    gaps = [later - earlier for earlier, later in zip(ends[full - 1 :], ends[full:], strict=False)]
    counted = sum(frames[full:])
    return EndToEnd(first or 0.0, spread(gaps), sum(frames), counted / sum(gaps))
