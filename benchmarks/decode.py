"""The decode stage alone: a steady chunk of each box, op by op, beside PyTorch's own VAE.

    python -m benchmarks.decode build/5b.llvq build/5b_fp8.llvq --out benchmarks/results
    python -m benchmarks.decode --tiny

Frames of the first box are what those of the others are compared with, as PSNR: boxes that
`benchmarks.random_box` made have the same VAE, but for what their recipes say. The peer is the
published VAE in bf16, eager, channels last, so that cuDNN is as fast as it can be. Every
convolution is timed in cuDNN as well, at its own shape and without padding; the floor is all FLOP
of a chunk at the best rate that cuDNN has there.
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.convolutions import Convolution, convolution_of
from benchmarks.decode_table import text_of
from benchmarks.denoise_ops import costs, time_ops
from benchmarks.device_memory import peak_beyond
from benchmarks.end_to_end_plain import PlainDecoder, first_latents
from benchmarks.random_box import write_random_box
from benchmarks.random_weights import device_weights, weight_specs
from benchmarks.report import command_of, note, write_files
from benchmarks.sizes import model_sizes, size_options
from llvq.artifact import Box
from llvq.backends.base import CPU
from llvq.bench.machine import device_text, gpu_state, versions
from llvq.bench.stages import with_stopwatch
from llvq.bench.timing import Timer, measure
from llvq.errors import LlvqError
from llvq.models.config import ModelConfig
from llvq.quality.metrics import psnr_db
from llvq.runtime.decoder import Decoder
from llvq.runtime.denoiser import Denoised
from llvq.runtime.device import TARGET_DEVICES
from llvq.runtime.executable import DECODING, Executable
from llvq.runtime.load import executable, open_runnable

SEED = 0
LATER = DECODING[1]


class Run:
    """The state of one run, and what it has found so far as plain data."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device("cpu")
        self.found: dict[str, Any] = {
            "command": command_of("decode"),
            "versions": versions(),
            "boxes": [],
            "plain": [],
            "cudnn": {},
        }
        self.convolutions: dict[str, Convolution] = {}

    def time(self, call: Callable[[], Any]) -> dict[str, Any]:
        return asdict(measure([call], self.device, repeats=self.options.repeats))

    def held(self) -> int | None:
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize(self.device)
        return torch.cuda.memory_allocated(self.device)

    def write(self) -> str:
        """What is there by now, as text, and in the files."""
        text = text_of(self.found)
        write_files(self.options.out, self.options.name, self.found, text)
        return text


def run(state: Run, boxes: Sequence[Path], config: ModelConfig) -> None:
    """Every box, then PyTorch, then cuDNN alone. Raises LlvqError."""
    wanted: Tensor | None = None
    for path in boxes:
        note(str(path))
        frames = _run_box(state, open_runnable(path, hash_weights=False))
        if wanted is None:
            wanted = frames
        else:
            state.found["boxes"][-1]["psnr"] = _psnr(frames, wanted)
        state.write()
        gc.collect()
    for latents in state.options.plain_latents:
        note(f"PyTorch, {latents} latents per call")
        _run_plain(state, config, latents)
        state.write()
    note("cuDNN alone")
    for text, convolution in state.convolutions.items():
        rate = convolution.cudnn_rate(state.device, state.options.repeats)
        state.found["cudnn"][text] = rate


def _run_box(state: Run, box: Box) -> Tensor:
    """Frames of a video of two chunks, in the memory of the host."""
    before = state.held()
    model = executable(box, TARGET_DEVICES[box.manifest["target"]], stages=DECODING)
    state.device = model.device
    state.found |= {"device": device_text(model.device), "gpu": gpu_state(model.device)}
    chunk, decoder, facts = random_chunk(model), Decoder(model), model.facts
    frames = torch.cat([decoder(chunk).cpu() for _ in range(2)])
    row: dict[str, Any] = {
        "name": str(box.path),
        "decode": box.manifest["recipe"]["decode"],
        "frames": facts.frames_per_chunk * facts.temporal_stride,
        "eager": state.time(lambda: decoder(chunk)),
        "held": _beyond(state.held(), before),
        "peak": peak_beyond(lambda: decoder(chunk), state.device, before or 0),
        "graph": None,
        "ops": [],
        "calls": facts.frames_per_chunk // facts.latents_per_decode,
    }
    state.found["boxes"].append(row)
    if model.device.type == "cuda" and not facts.loops:
        row["graph"] = state.time(_graphed(decoder, chunk))
    row["ops"] = _ops(state, box, model, chunk)
    return frames


def random_chunk(model: Executable) -> Denoised:
    """Latents that nobody denoised."""
    facts, random = model.facts, torch.Generator().manual_seed(SEED)
    shape = (1, facts.frames_per_chunk, facts.latent_channels, *facts.latent_hw)
    latent, velocity = (
        torch.randn(shape, generator=random).to(model.device, facts.torch_dtype) for _ in range(2)
    )
    sigma = torch.full(shape[:2], 0.5, device=model.device)
    return Denoised(latent - 0.5 * velocity, latent, velocity, sigma)


def _graphed(decoder: Decoder, chunk: Denoised) -> Callable[[], Any]:
    """A steady chunk as one CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decoder(chunk)
    return graph.replay


def _ops(state: Run, box: Box, model: Executable, chunk: Denoised) -> list[dict[str, Any]]:
    """Of one steady call."""
    watched, timed = with_stopwatch(model, Timer(model.device))
    decoder = Decoder(watched)
    for _ in range(2):
        decoder(chunk)
    stage, known = model.stage(LATER), costs(box.graph(LATER))
    for node in stage.graph.graph.nodes:
        if (convolution := convolution_of(node)) is not None:
            state.convolutions[convolution.text] = convolution
    rows = time_ops(stage, timed[LATER].given, known, runs=state.options.op_runs)
    return [row.facts() for row in rows]


def _psnr(frames: Tensor, wanted: Tensor) -> float | None:
    """None of frames of another size."""
    return psnr_db(wanted.float(), frames.float()) if frames.shape == wanted.shape else None


def _run_plain(state: Run, config: ModelConfig, latents: int) -> None:
    specs = weight_specs(config, torch.bfloat16)
    own = {name: spec for name, spec in specs.items() if name.startswith("vae.")}
    before = state.held()
    weights = device_weights(own, state.device, SEED)
    decoder = PlainDecoder(config, weights, state.device, latents)
    latent = first_latents(config, state.device, SEED)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        decoder.frames(latent)
        row = {
            "name": f"PyTorch eager, bf16, {latents} latents per call",
            "time": state.time(lambda: decoder.frames(latent)),
            "held": _beyond(state.held(), before),
            "peak": peak_beyond(lambda: decoder.frames(latent), state.device, before or 0),
        }
    state.found["plain"].append(row)


def _beyond(nbytes: int | None, before: int | None) -> int | None:
    return None if nbytes is None else nbytes - (before or 0)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("boxes", type=Path, nargs="*", help="boxes of one size of video")
    size_options(parser)  # of the plain model; --tiny writes a box first
    add("--write", type=Path, default=Path("build/decode.llvq"), help="where it is written to")
    add("--plain-latents", type=int, nargs="*", default=[1, 2, 4], help="per call of PyTorch's VAE")
    add("--repeats", type=int, default=10, help="of a chunk (default 10)")
    add("--op-runs", type=int, default=3, help="runs of all ops one by one (default 3)")
    add("--out", type=Path, help="a folder for NAME.txt and NAME.json")
    add("--name", default="decode")
    options = parser.parse_args(given)
    if not options.boxes and not options.tiny:
        parser.error("name a box (benchmarks.random_box writes one), or give --tiny")
    return options


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    # A shell starts what is in its background with SIGINT switched off.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config, failed = model_sizes(options), True
    if not options.boxes:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        write_random_box(options.write, config, CPU)
    state = Run(options)
    try:
        with suppress(KeyboardInterrupt):
            run(state, options.boxes or [options.write], config)
            failed = False
    except LlvqError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        print(state.write())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
