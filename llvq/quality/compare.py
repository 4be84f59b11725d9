"""Compare a quantized program with its checkpoint: structure, bytes, layers, and a video.

In memory at once: the BF16 model while it runs, then the quantized one. Layers are compared one
by one.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import llvq
from llvq.compiler import instantiate
from llvq.errors import TargetError
from llvq.quality.attention import AttentionError, add_attention_probes
from llvq.quality.comparison import Comparison, Judged, Video
from llvq.quality.layers import (
    LayerError,
    add_probes,
    quantized_layers,
    unmeasured,
    weight_errors,
)
from llvq.quality.pair import Pair, open_pair
from llvq.quality.rollout import (
    DEFAULT_PROMPTS,
    ChunkError,
    Take,
    chunk_errors,
    make_script,
    run,
    run_forced,
)
from llvq.quality.sizes import sizes
from llvq.quality.structure import structure
from llvq.quality.vmaf import Vmaf, find_vmaf
from llvq.runtime.executable import Executable
from llvq.runtime.load import executable
from llvq.runtime.prompts import PromptTokenizer
from llvq.runtime.session import Chunk
from llvq.runtime.shots import cues

# What torch does not take by itself on either device: the noise of one implementation to the next.
OTHER_ATTENTION = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

# Told (what is being done, how much of it is done, how much there is).
Progress = Callable[[str, int, int], None]
# Given the frames of each chunk, uint8 [F, H, W, 3], and the prompt of each: a value for each chunk
# by the name of a curve.
Judge = Callable[[Sequence[Tensor], Sequence[str]], Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class Request:
    """The video to compare on: one prompt per shot. `steps` None is the model's own number.

    Without prompts, the shots of DEFAULT_PROMPTS. `frames` judges the video by the whole protocol:
    noise floor, another seed, and VMAF if this machine has it. `judge` is asked about both sides:
    what only someone who knows the model can see, as whether the objects of a prompt are there.
    """

    prompts: tuple[str, ...] = ()
    chunks: int = 3
    seed: int = 0
    steps: int | None = None
    device: str = "cpu"
    frames: bool = False
    judge: Judge | None = None

    @property
    def shots(self) -> tuple[str, ...]:
        return self.prompts or DEFAULT_PROMPTS[: self.chunks]


def compare(
    checkpoint: str | Path,
    program: str | Path,
    request: Request | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Comparison:
    """Compare a program or a box with `checkpoint`; `options` are those of `open_model`.

    Raises LlvqError.
    """
    request, tell = request or Request(), progress or _silent
    _check_device(request.device)
    tell("compile BF16", 0, 1)
    pair = open_pair(checkpoint, program, **options)
    tell("compile BF16", 1, 1)
    before_and_after, nbytes = structure(pair), sizes(pair)
    layers = _compare_weights(pair, tell)
    baseline = _run_baseline(pair, request, layers, tell)
    video = _compare_videos(pair, request, baseline, tell)
    measured, notes = _measured(pair, request), _notes(pair, request, video)
    return Comparison(measured, notes, before_and_after, nbytes, layers, baseline.attention, video)


def _check_device(device: str) -> None:
    usable = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    if device not in usable:
        raise TargetError(
            f"cannot run videos on {device!r}",
            because=f"this machine has {', '.join(usable)}",
            fix=f"use --device {usable[-1]}",
        )


def _compare_weights(pair: Pair, tell: Progress) -> list[LayerError]:
    total, errors = len(quantized_layers(pair)), []
    for error in weight_errors(pair):
        errors.append(error)
        tell("compare weights", len(errors), total)
    return errors


@dataclass(frozen=True)
class Baseline:
    """What the BF16 program gave, and what its probes found behind attention.

    `others` is BF16 again, if asked for: with another attention, and from another seed.
    """

    take: Take
    chunks: list[Chunk]
    attention: list[AttentionError]
    others: dict[str, list[Chunk]]

    def errors(self, name: str, vmaf: Vmaf | None) -> list[ChunkError] | None:
        others = self.others.get(name)
        return None if others is None else chunk_errors(self.chunks, others, vmaf)


def _compare_videos(pair: Pair, request: Request, baseline: Baseline, tell: Progress) -> Video:
    quantized, chunks = executable(pair.box, request.device), baseline.chunks
    free = run(quantized, baseline.take, done=_counter(tell, "run NVFP4", request))
    done = _counter(tell, "run NVFP4 on BF16 history", request)
    forced = run_forced(quantized, baseline.take, chunks, done=done)
    vmaf = find_vmaf() if request.frames else None
    return Video(
        free=chunk_errors(chunks, free, vmaf),
        forced=chunk_errors(chunks, forced),
        floor=baseline.errors("floor", vmaf),
        ceiling=baseline.errors("ceiling", vmaf),
        baseline=chunks,
        quantized=free,
        steps=baseline.take.steps,
        judged=_judged(pair, request, {"bf16": chunks, "nvfp4": free}),
    )


def _judged(pair: Pair, request: Request, sides: Mapping[str, list[Chunk]]) -> Judged:
    if request.judge is None or not pair.has_vae:
        return {}
    script = cues(request.shots, request.chunks, pair.facts.scene_cut_prefix)
    prompts = [cue.prompt for cue in script]
    found = {
        side: request.judge([c.frames for c in chunks if c.frames is not None], prompts)
        for side, chunks in sides.items()
    }
    names = dict.fromkeys(name for curves in found.values() for name in curves)
    return {
        name: {side: list(curves[name]) for side, curves in found.items() if name in curves}
        for name in names
    }


def _run_baseline(
    pair: Pair, request: Request, layers: list[LayerError], tell: Progress
) -> Baseline:
    """Run BF16 with a probe behind every layer and every attention over pages."""
    model = instantiate(pair.baseline, pair.model.source, request.device)
    tokenizer = PromptTokenizer(pair.box.path / "tokenizer", pair.facts.text_len)
    script = make_script(model, tokenizer, request.shots, request.chunks)
    take = Take(script, request.seed, request.steps or pair.facts.steps, not pair.has_vae)
    others = _run_references(model, request, take, tell) if request.frames else {}
    add_probes(model, layers, pair)
    attention = add_attention_probes(model, pair)
    chunks = run(model, take, done=_counter(tell, "run BF16 and every layer", request))
    return Baseline(take, chunks, attention, others)


def _run_references(
    model: Executable, request: Request, take: Take, tell: Progress
) -> dict[str, list[Chunk]]:
    with sdpa_kernel(OTHER_ATTENTION):
        floor = run(model, take, done=_counter(tell, "run BF16, other attention", request))
    elsewhere = replace(take, seed=take.seed + 1)
    ceiling = run(model, elsewhere, done=_counter(tell, "run BF16, other seed", request))
    return {"floor": floor, "ceiling": ceiling}


def _measured(pair: Pair, request: Request) -> dict[str, Any]:
    """On what: files, machine, versions, and the video."""
    manifest, gpu = pair.box.manifest, request.device == "cuda"
    height, width = pair.facts.pixel_hw
    return {
        "checkpoint": str(pair.model.bundle.dit),
        "program": str(pair.box.path),
        "program_id": pair.box.id,
        "recipe": pair.recipe.name,
        "dtype": pair.recipe.dtype,
        "target": manifest["target"],
        "numerics": manifest["numerics"] or "w4a4-emulated (reference)",
        "device": torch.cuda.get_device_name() if gpu else f"cpu ({platform.machine()})",
        "versions": {"llvq": llvq.__version__, "torch": torch.__version__},
        "video": {
            "size": f"{height}x{width}",
            "chunks": request.chunks,
            "latent_frames_per_chunk": pair.facts.frames_per_chunk,
            "steps": request.steps or pair.facts.steps,
            "seed": request.seed,
            "prompts": list(request.shots),
        },
    }


def _notes(pair: Pair, request: Request, video: Video) -> list[str]:
    notes = [
        "The same weights, noise, prompts and schedule on both sides; only the recipe differs."
    ]
    if pair.random_weights:
        notes.append("The weights are random: no number here says how a trained model fares.")
    if not pair.has_vae:
        notes.append("The program has no VAE: latents are compared, frames are not.")
    if missing := unmeasured(pair):
        notes.append(
            f"{missing} linears are not in the table of layers: a norm holds their smoothing "
            "factor, and only a checkpoint with the facts of the calibration can say what it was."
        )
    if not request.frames:
        notes.append("No noise floor was measured (--frames runs BF16 twice more, for both ends).")
    elif pair.has_vae and not any(e.frames and e.frames.vmaf is not None for e in video.free):
        notes.append("No VMAF: there is no ffmpeg with libvmaf on the PATH.")
    return notes


def _counter(tell: Progress, what: str, request: Request) -> Callable[[], None]:
    counts = iter(range(1, request.chunks + 1))
    tell(what, 0, request.chunks)
    return partial(_count, tell, what, counts, request.chunks)


def _count(tell: Progress, what: str, counts: Any, total: int) -> None:
    tell(what, next(counts), total)


def _silent(what: str, done: int, total: int) -> None:
    return None
