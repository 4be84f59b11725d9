"""An executable: compiled stages with their weights, and the facts that the runtime needs.

It comes out of a box (`runtime/load.py`) or, in one process, straight from the compiler. The
runtime never asks which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from llvq.errors import ArtifactError
from llvq.runtime.contract import InputSpec, check


@dataclass(frozen=True)
class CompiledStage:
    """One stage: a graph with its weights, and the names of what goes in and comes out."""

    name: str
    graph: GraphModule
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run on the values that its inputs name; surplus values are left alone."""
        given = {spec.name: values[spec.name] for spec in self.inputs if spec.name in values}
        check(self.inputs, given, stage=self.name)
        with torch.inference_mode():
            results = self.graph(*(given[spec.name] for spec in self.inputs))
        return dict(zip(self.outputs, results, strict=True))


@dataclass(frozen=True)
class PageSpec:
    """The page pool: `tensors` are (name, dtype, shape) of pages for all layers."""

    kv_format: str
    slots: int
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]

    @property
    def nbytes(self) -> int:
        return sum(torch.Size(shape).numel() * getattr(torch, dtype).itemsize
                   for _, dtype, shape in self.tensors)  # fmt: skip


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
    multi_shot_sink: bool
    multi_shot_rope_offset: float
    scene_cut_prefix: str
    relative_rope: bool
    fps: int
    spatial_stride: int
    temporal_stride: int
    pages: PageSpec
    loops: tuple[tuple[str, str], ...] = ()

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def pixel_hw(self) -> tuple[int, int]:
        height, width = self.latent_hw
        return height * self.spatial_stride, width * self.spatial_stride

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> RunFacts:
        """The inverse of `to_dict`, lists back to tuples. Raises ArtifactError."""
        names = {f.name for f in fields(cls)}
        if set(document) != names:
            raise ArtifactError(
                "the run facts of the box do not fit this version of llvq",
                because=f"missing or unknown: {', '.join(sorted(names ^ set(document)))}",
                fix="export the model again",
            )
        values = {key: _tuples(value) for key, value in document.items()}
        pages = PageSpec(**{key: _tuples(value) for key, value in document["pages"].items()})
        return cls(**{**values, "pages": pages})


@dataclass(frozen=True)
class Executable:
    """Stages by name, on one device."""

    stages: Mapping[str, CompiledStage]
    facts: RunFacts
    device: torch.device

    def stage(self, name: str) -> CompiledStage:
        if name not in self.stages:
            raise ArtifactError(
                f"this program has no {name!r} stage",
                because=f"it has {', '.join(self.stages)}",
                fix="quantize again with the part that is missing (--vae, --text-encoder)",
            )
        return self.stages[name]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
