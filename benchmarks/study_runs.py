"""The videos of a study: every variant of a model from the same noise and prompts, by seed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor
from torch.nn.attention import sdpa_kernel

from benchmarks.study_rows import Row, Sample, measure, summarize
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
Identity = Callable[[Sequence[Tensor], Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class Variant:
    """One row: a recipe, run as it is, with another attention, or from another seed."""

    name: str
    recipe: Recipe
    attention: bool = False
    other_seed: bool = False


@dataclass(frozen=True)
class Study:
    """The rows, the first chunk that is judged, and the bytes that a row is about."""

    title: str
    variants: tuple[Variant, ...]
    first: int
    nbytes: Callable[[Executable], int]


@dataclass(frozen=True)
class Setting:
    """What all variants share. `scripts` and `prompts` are by seed, an entry for each chunk."""

    model: VideoModel
    plain: Executable
    scripts: Mapping[int, list[Prompt]]
    prompts: Mapping[int, list[str]]
    steps: int
    identity: Identity | None


def setting(
    model: VideoModel,
    shots: Mapping[int, Sequence[str]],
    *,
    chunks: int,
    device: str,
    steps: int | None,
    identity: Identity | None,
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
    return Setting(model, plain, scripts, prompts, steps or plain.facts.steps, identity)


def build(at: Setting, variant: Variant) -> Executable:
    if variant.recipe is BF16:
        return at.plain
    compiled = compile_model(at.model.config, variant.recipe)
    return instantiate(compiled, at.model.source, str(at.plain.device))


def videos(at: Setting, model: Executable, variant: Variant) -> Iterator[list[Chunk]]:
    """The video of every seed, a dot for each chunk."""
    for seed, script in at.scripts.items():
        begun = seed + OTHER_SEED * variant.other_seed
        take = Take(script, begun, at.steps, latents_only="decode" not in model.stages)
        with sdpa_kernel(OTHER_ATTENTION) if variant.attention else nullcontext():
            yield run(model, take, done=_dot)
    print(f" {variant.name}", file=sys.stderr)


def _dot() -> None:
    print(".", end="", file=sys.stderr, flush=True)


def run_study(study: Study, at: Setting) -> list[Row]:
    """A row for each variant; the first is bf16 itself."""
    original = Variant("bf16", BF16)
    references = list(videos(at, at.plain, original))
    rows = [_row(study, at, original, at.plain, references, references)]
    for variant in study.variants:
        model = build(at, variant)
        rows.append(_row(study, at, variant, model, references, videos(at, model, variant)))
    return rows


def _row(
    study: Study,
    at: Setting,
    variant: Variant,
    model: Executable,
    references: Iterable[list[Chunk]],
    made: Iterable[list[Chunk]],
) -> Row:
    samples = []
    for seed, reference, found in zip(at.scripts, references, made, strict=True):
        chunks = measure(reference, found)
        frames = [chunk.frames for chunk in found if chunk.frames is not None]
        if at.identity is not None and frames:
            scores = at.identity(frames, at.prompts[seed])
            chunks = [{**c, "identity": float(s)} for c, s in zip(chunks, scores, strict=True)]
        numbers = summarize(chunks, study.first)
        samples.append(Sample(seed, tuple(dict.fromkeys(at.prompts[seed])), chunks, numbers))
    return Row(variant.name, study.nbytes(model), samples)
