"""The whole system of a box: a video end to end, and the same model in plain PyTorch beside it.

    python -m benchmarks.end_to_end build/5b.llvq --seconds 64 --out benchmarks/results
    python -m benchmarks.end_to_end build/5b.llvq --decode-device cuda:1 --steps 2
    python -m benchmarks.end_to_end build/5b.llvq --steps 2 --chunks 10 --trace build/trace.json
    python -m benchmarks.end_to_end build/5b.llvq --low-memory --limit 8 --plain-chunks 0
    python -m benchmarks.end_to_end --tiny

Frames per second count from the moment a session is asked for until the last frame is in the memory
of the host. A session of a few chunks comes before, so that libraries are loaded; a session records
its CUDA graphs itself, within what is measured. The plain model has random weights of the same
shapes, the fastest attention that PyTorch has, its VAE channels last, and no overlap. Without a box
one of the 5B model is written first, with random weights; that takes minutes.

What matters most is measured first, and what is there is printed when the run is cut off: end it
with `timeout -s INT`.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.device_memory import give_back
from benchmarks.end_to_end_plain import PlainVideo
from benchmarks.end_to_end_table import text_of
from benchmarks.random_box import recipe_of, recipe_options, write_random_box
from benchmarks.random_weights import device_weights, weight_specs
from benchmarks.report import command_of, note, write_files
from benchmarks.sizes import model_sizes, size_options
from benchmarks.watched_video import Watched, figures, new_watched
from llvq.artifact import Box
from llvq.backends.base import find_target
from llvq.bench.machine import device_text, gpu_state, versions
from llvq.bench.run import LEFT_OUT
from llvq.bench.stages import random_script
from llvq.errors import LlvqError
from llvq.models.config import ModelConfig
from llvq.plan import plan_box
from llvq.runtime.device import TARGET_DEVICES
from llvq.runtime.executable import Executable
from llvq.runtime.load import executable, executable_on_two, open_runnable
from llvq.runtime.session import Session
from llvq.runtime.shots import chunks_for
from llvq.runtime.timeline import Timeline

SEED = 0
WARMUP_CHUNKS = 2


class Run:
    """The state of one run, and what it has found so far as plain data."""

    def __init__(self, options: argparse.Namespace, box: Box) -> None:
        self.options, self.box = options, box
        self.videos: list[Watched] = []
        self.found: dict[str, Any] = {
            "command": command_of("end_to_end"),
            "versions": versions(),
            "box": str(box.path),
            "id": box.id,
            "target": box.manifest["target"],
            "numerics": box.manifest["numerics"],
            "videos": [],
        }

    def video(
        self, name: str, steps: int, chunks: int, warm: int, devices: Sequence[torch.device]
    ) -> Watched:
        note(f"{name}, {steps} steps, {chunks} chunks")
        made = new_watched(name, steps, warm, chunks, devices)
        self.videos.append(made)
        return made

    def watch(
        self, video: Watched, made: Iterable[Any], began: float, devices: Sequence[torch.device]
    ) -> None:
        """Files are written after each video, in case that this process finds no time to end."""
        video.watch(made, began, devices)
        found = figures(video)
        note(f"{found['fps']:.2f} FPS, steady {found['fps_steady'] or 0.0:.2f}")
        self.write()

    def write(self) -> str:
        """What is there by now, as text, and in the files."""
        self.found["videos"] = [asdict(video) for video in self.videos]
        text = text_of(self.found)
        write_files(self.options.out, self.options.name, self.found, text)
        return text


def run(state: Run, config: ModelConfig) -> None:
    """llvq in each number of steps, then plain PyTorch. Raises LlvqError."""
    device = _run_llvq(state)
    give_back([device])
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)
    if state.options.plain_chunks:
        _run_plain(state, config, device)


def _run_llvq(state: Run) -> torch.device:
    options, found = state.options, state.found
    began = time.perf_counter()
    model = _load(state.box, options)
    _synchronize(model.device)
    facts, devices = model.facts, _devices(model)
    found |= {
        "loading": time.perf_counter() - began,
        "loading_peak": _peak(model.device),
        "devices": [device_text(device) for device in devices],
        "gpu": gpu_state(model.device),
        "video": _video_text(model),
    }
    chunks = options.chunks or chunks_for(
        options.seconds, facts.fps, facts.frames_per_chunk, facts.temporal_stride
    )
    target = state.box.manifest["target"]
    plan = plan_box(state.box, target=target, low_memory=options.low_memory)
    found["plan"] = plan.to_dict() | {"roofline": None}
    found["streamed"] = None if model.streamed is None else asdict(model.streamed) | {"names": []}
    note("warming up")
    for _ in _session(model, WARMUP_CHUNKS, options.steps[0]):
        pass
    for steps in options.steps:
        timeline = Timeline() if options.trace and steps == options.steps[0] else None
        video = state.video("llvq", steps, chunks, facts.window_chunks, devices)
        # What a session before left in the pools, which a process with one has not.
        give_back(devices)
        began = time.perf_counter()
        session = _session(model, chunks, steps, timeline)
        state.watch(video, video.chunks_of(session, began, timeline), began, devices)
        if timeline is not None:
            timeline.write(options.trace)
    return model.device


def _load(box: Box, options: argparse.Namespace) -> Executable:
    stages, low_memory = box.manifest["stages"].keys() - set(LEFT_OUT), options.low_memory
    device = TARGET_DEVICES[box.manifest["target"]]
    if options.limit is not None:
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(options.limit * 1e9 / whole)
    if options.decode_device is None:
        return executable(box, device, stages=stages, low_memory=low_memory)
    where = device, options.decode_device
    return executable_on_two(box, *where, stages=stages, low_memory=low_memory)


def _session(
    model: Executable, chunks: int, steps: int, timeline: Timeline | None = None
) -> Session:
    script = random_script(model, chunks, SEED)
    return Session(model, script, seed=SEED, steps=steps, timeline=timeline)


def _run_plain(state: Run, config: ModelConfig, device: torch.device) -> None:
    options, stream = state.options, config.stream
    weights = device_weights(weight_specs(config, torch.bfloat16), device, SEED)
    model = PlainVideo(config, weights, device, calls=options.plain_latents, seed=SEED)
    del weights
    note("warming up PyTorch")
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        for _ in model.chunks(WARMUP_CHUNKS, 1):
            pass
        for steps in options.steps:
            chunks = stream.window_chunks + options.plain_chunks
            video = state.video("PyTorch bf16", steps, chunks, stream.window_chunks, [device])
            began = time.perf_counter()
            state.watch(video, model.chunks(chunks, steps), began, [device])


def _devices(model: Executable) -> list[torch.device]:
    return list(dict.fromkeys([model.device, model.decodes_on]))


def _video_text(model: Executable) -> str:
    facts = model.facts
    height, width = facts.pixel_hw
    return (
        f"{height}x{width}, {facts.frames_per_chunk} latents per chunk, a window of "
        f"{facts.window_chunks} chunks, pages in {facts.pages.text}, "
        f"{facts.latents_per_decode} latents per call of the decoder, random weights and prompts"
    )


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("box", type=Path, nargs="?", help="default: a random one is written")
    add("--write", type=Path, default=Path("build/end_to_end.llvq"), help="where it is written to")
    add("--target", help="of the random box (default: sm_90a, or cpu with --tiny)")
    add("--numerics", help="of the random box")
    recipe_options(parser)
    size_options(parser)
    add("--steps", type=int, nargs="*", default=[2, 4], help="default: 2 4")
    add("--seconds", type=float, default=64.0, help="of video (default 64)")
    add("--chunks", type=int, help="in place of --seconds")
    add("--decode-device", metavar="DEVICE", help="decode there, as cuda:1")
    add("--low-memory", action="store_true", help="weights stay in the memory of the host")
    add("--limit", type=float, metavar="GB", help="what PyTorch may take of the GPU, at most")
    add("--plain-chunks", type=int, default=4, help="of PyTorch, behind a full window; 0: none")
    add("--plain-latents", type=int, default=2, help="per call of PyTorch's VAE (default 2)")
    add("--trace", type=Path, metavar="FILE", help="what was done when, in the first --steps")
    add("--out", type=Path, help="a folder for NAME.txt and NAME.json")
    add("--name", default="end_to_end")
    return parser.parse_args(given)


def _box(options: argparse.Namespace, config: ModelConfig) -> Box:
    if options.box is not None:
        return open_runnable(options.box, hash_weights=False)
    name = options.target or ("cpu" if options.tiny else "sm_90a")
    options.write.parent.mkdir(parents=True, exist_ok=True)
    target = find_target(name, options.numerics)
    write_random_box(options.write, config, target, recipe_of(options))
    return open_runnable(options.write, hash_weights=False)


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    # A shell starts what is in its background with SIGINT switched off.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config = model_sizes(options)
    try:
        state = Run(options, _box(options, config))
    except LlvqError as error:
        print(error, file=sys.stderr)
        return 2
    failed = True
    try:
        with suppress(KeyboardInterrupt):
            run(state, config)
            failed = False
    finally:
        print(state.write())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
