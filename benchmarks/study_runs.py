"""The videos of a study: every variant of a model from the same noise and prompts, by seed."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from torch.nn.attention import sdpa_kernel

from benchmarks.study_parts import Part, Parts
from benchmarks.study_rows import Row, Sample, measure, summarize
from examples.tiny_longlive.identity import Identity
from llvq.calibrate.facts_file import with_facts
from llvq.calibrate.run import Request, calibrate
from llvq.checkpoints.model import VideoModel
from llvq.compiler import compile_model, instantiate
from llvq.errors import SessionError
from llvq.quality.compare import OTHER_ATTENTION
from llvq.quality.rollout import Take, make_script, run
from llvq.recipe import BF16, Recipe
from llvq.runtime.executable import Executable
from llvq.runtime.prompts import PromptTokenizer
from llvq.runtime.session import Chunk, Prompt
from llvq.runtime.shots import cues

OTHER_SEED = 1000
CALIBRATION_CHUNKS = 4  # of a video: a window is full
# Frames of each chunk, the prompt of each chunk, frames per second: a score for each chunk.
Judge = Callable[[Sequence[Tensor], Sequence[str], float], Identity]


@dataclass(frozen=True)
class Variant:
    """One row: a recipe, run as it is, with another attention, or from another seed.

    `calibrate` is what `llvq quantize --calibrate` is given for it.
    """

    name: str
    recipe: Recipe
    attention: bool = False
    other_seed: bool = False
    calibrate: str | None = None


ITSELF = Variant("bf16", BF16)


@dataclass(frozen=True)
class Study:
    """The rows, the first chunk that is judged, and the bytes that a row is about."""

    title: str
    variants: tuple[Variant, ...]
    first: int
    nbytes: Callable[[Executable], int]


@dataclass(frozen=True)
class Calibrations:
    """What ModelOpt finds, kept in `folder`. It sees videos of `prompts`, a file, or of the prompts
    of llvq; `device` is cpu or cuda."""

    folder: Path
    prompts: Path | None
    device: str

    def of(self, model: VideoModel, variant: Variant) -> VideoModel:
        """The model with what is found for a row, once. Raises LlvqError."""
        assert variant.calibrate is not None
        request = Request(
            variant.calibrate,
            prompts=self.prompts,
            chunks=CALIBRATION_CHUNKS,
            seed=2 * OTHER_SEED,
            device=self.device,
        )
        work = self.folder / variant.calibrate.replace(":", "-")
        made = calibrate(model, variant.recipe, request, work, progress=_dot_of_calibration)
        return with_facts(model, made.path)


@dataclass(frozen=True)
class Setting:
    """What all variants share. `scripts` and `prompts` are by seed, an entry for each chunk.

    `judge` is None where prompts do not say what to look for.
    """

    model: VideoModel
    plain: Executable
    scripts: Mapping[int, list[Prompt]]
    prompts: Mapping[int, list[str]]
    steps: int
    judge: Judge | None
    calibrations: Calibrations


def setting(
    model: VideoModel,
    shots: Mapping[int, Sequence[str]],
    *,
    chunks: int,
    device: str,
    steps: int | None,
    judge: Judge | None,
    calibrations: Calibrations,
) -> Setting:
    """Compile the bf16 model and encode the prompts. Raises LlvqError."""
    plain = instantiate(compile_model(model.config, BF16), model.source, device)
    if model.bundle.tokenizer is None or "encode_text" not in plain.stages:
        raise SessionError(
            "the checkpoint has no text encoder or no tokenizer",
            where=str(model.bundle.dit),
            because="the study makes videos of prompts",
            fix="put both beside the denoiser, as published",
        )
    tokenizer = PromptTokenizer(model.bundle.tokenizer, plain.facts.text_len)
    scripts = {s: make_script(plain, tokenizer, given, chunks) for s, given in shots.items()}
    prompts = {s: [cue.prompt for cue in cues(given, chunks, "")] for s, given in shots.items()}
    steps = steps or plain.facts.steps
    return Setting(model, plain, scripts, prompts, steps, judge, calibrations)


def build(at: Setting, variant: Variant) -> Executable:
    """The denoiser by a recipe, with VAE and text encoder of the bf16 model. Raises LlvqError."""
    plain = at.plain
    if variant.recipe is BF16:
        return plain
    model = at.calibrations.of(at.model, variant) if variant.calibrate else at.model
    denoiser = replace(model.config, vae=None, text=None)
    compiled = compile_model(denoiser, variant.recipe, calibration=model.calibration)
    made = instantiate(compiled, model.source, str(plain.device))
    facts = replace(plain.facts, pages=made.facts.pages)
    return replace(plain, stages={**plain.stages, **made.stages}, facts=facts)


def video(at: Setting, model: Executable, variant: Variant, seed: int) -> list[Chunk]:
    """The video of a seed, a dot on the terminal for each chunk."""
    begun = seed + OTHER_SEED * variant.other_seed
    latents_only = "decode" not in model.stages
    take = Take(at.scripts[seed], begun, at.steps, latents_only=latents_only)
    with sdpa_kernel(OTHER_ATTENTION) if variant.attention else nullcontext():
        return run(model, take, done=_dot, cuda_graphs=True)


def _dot_of_calibration(what: str, done: int, total: int) -> None:
    _dot()


def _dot() -> None:
    print(".", end="", file=sys.stderr, flush=True)


def run_study(study: Study, at: Setting, parts: Parts) -> list[Row]:
    """A row for each variant; the first is bf16 itself. What is in `parts` is not made again."""
    references: dict[int, list[Chunk]] = {}
    return [_row(study, at, variant, references, parts) for variant in (ITSELF, *study.variants)]


def _row(
    study: Study, at: Setting, variant: Variant, references: dict[int, list[Chunk]], parts: Parts
) -> Row:
    """`references`, the videos of bf16, are made when the first is needed."""
    found = {seed: parts.read(variant.name, seed) for seed in at.scripts}
    missing = [seed for seed, part in found.items() if part is None]
    model = build(at, variant) if missing else at.plain
    for seed in missing:
        if seed not in references:
            references[seed] = video(at, at.plain, ITSELF, seed)
        reference = references[seed]
        made = reference if variant is ITSELF else video(at, model, variant, seed)
        part = Part(study.nbytes(model), _sample(study, at, seed, reference, made))
        parts.write(variant.name, part)
        found[seed] = part
    print(f" {variant.name}" + ("" if missing else ": made before"), file=sys.stderr)
    done = [part for part in found.values() if part is not None]
    return Row(variant.name, done[0].nbytes, [part.sample for part in done])


def _sample(
    study: Study, at: Setting, seed: int, reference: list[Chunk], made: list[Chunk]
) -> Sample:
    """What is measured of a video, and what the judge says."""
    chunks = measure(reference, made, at.plain.device)
    frames = [chunk.frames for chunk in made if chunk.frames is not None]
    numbers = dict[str, float]()
    if at.judge is not None and frames:
        judged = at.judge(frames, at.prompts[seed], at.plain.facts.fps)
        chunks = [
            {**chunk, "identity": math.nan if score is None else score}
            for chunk, score in zip(chunks, judged.score, strict=True)
        ]
        slope = judged.drift["score"].per_minute
        numbers["identity_drift"] = math.nan if slope is None else slope
    numbers = summarize(chunks, study.first) | numbers
    return Sample(seed, tuple(dict.fromkeys(at.prompts[seed])), chunks, numbers)
