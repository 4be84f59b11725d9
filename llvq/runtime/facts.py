"""The facts of a model that the chunk loop needs, as a manifest states them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from llvq.errors import ArtifactError, CacheError, SessionError
from llvq.graphs.values import DTYPES
from llvq.runtime.pages import KEEPABLE, PageTable
from llvq.runtime.sampler import SAMPLERS, TRAIN_TIMESTEPS, schedule

DTYPE_OF = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
COMPUTED_IN = ("bfloat16", "float16", "float32")
MAX_SIZE = 2**20  # of any one dimension, in the units of the field
MAX_ELEMENTS = 2**48  # as in a graph
MAX_TEXT = 1000
KEPT = "pages.kept"


@dataclass(frozen=True)
class PageSpec:
    """The page pool: `tensors` are (name, dtype, shape) of pages for all layers.

    `keep` names the chunks that are held in the model's dtype as well, in the tensor KEPT.
    """

    kv_format: str
    slots: int
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]
    keep: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(math.prod(shape) * getattr(torch, dtype).itemsize
                   for _, dtype, shape in self.tensors)  # fmt: skip

    @property
    def kept_slots(self) -> int:
        return sum(sum(shape[2:3]) for name, _, shape in self.tensors if name == KEPT)

    @property
    def text(self) -> str:
        """The format, and what is kept beside it."""
        return " + ".join([self.kv_format, *(f"{name} kept" for name in self.keep)])


@dataclass(frozen=True)
class RunFacts:
    """What the chunk loop needs to know of the model. Frames are latent frames."""

    dtype: str
    latent_channels: int
    latent_hw: tuple[int, int]
    text_len: int
    text_dim: int
    frames_per_chunk: int
    window_frames: int
    sink_frames: int
    steps: int
    shift: float
    sampler: str
    timesteps: tuple[int, ...]
    multi_shot_sink: bool
    multi_shot_rope_offset: float
    scene_cut_prefix: str
    relative_rope: bool
    fps: int
    spatial_stride: int
    temporal_stride: int
    latents_per_decode: int
    pages: PageSpec
    loops: tuple[tuple[str, str], ...] = ()

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def pixel_hw(self) -> tuple[int, int]:
        height, width = self.latent_hw
        return height * self.spatial_stride, width * self.spatial_stride

    @property
    def window_chunks(self) -> int:
        return self.window_frames // self.frames_per_chunk

    @property
    def page_table(self) -> PageTable:
        """The table of a video that has not begun."""
        return PageTable(
            window_chunks=self.window_chunks,
            sink_chunks=self.sink_frames // self.frames_per_chunk,
            multi_shot_sink=self.multi_shot_sink,
            keep=self.pages.keep,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> RunFacts:
        """The inverse of `to_dict`, lists back to tuples.

        Raises ArtifactError that lists every field which is missing, unknown, of another type or
        outside its range.
        """
        names = {f.name for f in fields(cls)}
        if surplus := sorted(names ^ set(document)):
            raise _misfit([f"{name} is missing or unknown" for name in surplus])
        values = {key: _tuples(value) for key, value in document.items()}
        wrong = sorted(name for name, value in values.items() if not _fits(name, value))
        if wrong:
            raise _misfit([f"{name} is {_short(values[name])}" for name in wrong])
        facts = cls(**{**values, "pages": PageSpec(**values["pages"])})
        if problems := _contradictions(facts):
            raise _misfit(problems)
        return facts


def _fits(name: str, value: Any) -> bool:
    """Whether one field is of its type and in its range."""
    if name in INTEGERS:
        return _is_integer(value, *INTEGERS[name])
    if name in FLAGS:
        return type(value) is bool
    if name in NUMBERS:
        return type(value) in (int, float) and NUMBERS[name] < value < math.inf
    return CHECKS[name](value)


def _is_integer(value: Any, low: int = 1, high: int = MAX_SIZE) -> bool:
    return type(value) is int and low <= value <= high


def _is_dtype(value: Any) -> bool:
    return value in COMPUTED_IN


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _is_size(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_integer, value))


def _is_sampler(value: Any) -> bool:
    return isinstance(value, str) and value in SAMPLERS


def _are_timesteps(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= TRAIN_TIMESTEPS
        and all(_is_integer(timestep, 1, TRAIN_TIMESTEPS) for timestep in value)
    )


def _are_loops(value: Any) -> bool:
    """(input, output) pairs of names."""
    return isinstance(value, tuple) and all(
        isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(name, str) for name in pair)
        for pair in value
    )


def _are_pages(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == set(PageSpec.__dataclass_fields__)
        and _is_text(value["kv_format"])
        and _is_integer(value["slots"], 0)
        and isinstance(value["tensors"], tuple)
        and all(map(_is_page_tensor, value["tensors"]))
        and isinstance(value["keep"], tuple)
        and all(name in KEEPABLE for name in value["keep"])
    )


def _is_page_tensor(value: Any) -> bool:
    if not isinstance(value, tuple) or len(value) != 3:
        return False
    name, dtype, shape = value
    if not isinstance(name, str) or not isinstance(dtype, str) or dtype not in DTYPE_OF:
        return False
    sizes = isinstance(shape, tuple) and all(map(_is_integer, shape))
    return sizes and math.prod(shape) <= MAX_ELEMENTS


# Lowest and highest value of each integer field, both included.
INTEGERS = {
    "latent_channels": (1, MAX_SIZE),
    "text_len": (1, MAX_SIZE),
    "text_dim": (1, MAX_SIZE),
    "frames_per_chunk": (1, MAX_SIZE),
    "window_frames": (1, MAX_SIZE),
    "sink_frames": (0, MAX_SIZE),
    "steps": (1, TRAIN_TIMESTEPS),
    "fps": (1, 1000),
    "spatial_stride": (1, 1024),
    "temporal_stride": (1, 1024),
    "latents_per_decode": (1, MAX_SIZE),
}
FLAGS = ("multi_shot_sink", "relative_rope")
# What each number is above; all are finite.
NUMBERS = {"shift": 0.0, "multi_shot_rope_offset": -math.inf}
CHECKS: dict[str, Callable[[Any], bool]] = {
    "dtype": _is_dtype,
    "latent_hw": _is_size,
    "sampler": _is_sampler,
    "timesteps": _are_timesteps,
    "scene_cut_prefix": _is_text,
    "pages": _are_pages,
    "loops": _are_loops,
}


def _contradictions(facts: RunFacts) -> list[str]:
    """What no field shows alone."""
    chunk, window, sink = facts.frames_per_chunk, facts.window_frames, facts.sink_frames
    problems = [
        f"{name} {frames} is not whole chunks of {chunk} frames"
        for name, frames in (("window_frames", window), ("sink_frames", sink))
        if frames % chunk
    ]
    if chunk % facts.latents_per_decode:
        problems.append(f"latents_per_decode {facts.latents_per_decode} does not divide {chunk}")
    try:
        kept = facts.page_table.kept_slots
        if kept != facts.pages.kept_slots:
            problems.append(f"pages keep {facts.pages.kept_slots} chunks in {KEPT}, not {kept}")
        schedule(facts.steps, facts.shift, facts.sampler, facts.timesteps)
    except (CacheError, SessionError) as error:
        problems.append(error.what)
    return problems


def _misfit(problems: list[str]) -> ArtifactError:
    return ArtifactError(
        "the run facts of the box do not fit this version of llvq",
        because="; ".join(problems),
        fix="export the model again",
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
