"""An executable: compiled stages with their weights, and the facts that the runtime needs.

It comes out of a box (`runtime/load.py`) or, in one process, straight from the compiler. The
runtime never asks which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule

from llvq.errors import ArtifactError
from llvq.runtime.contract import InputSpec, check
from llvq.runtime.facts import PageSpec, RunFacts
from llvq.runtime.streams import Streams

__all__ = ["DECODING", "CompiledStage", "Executable", "PageSpec", "RunFacts", "Streamed"]

# Stages of the decoder: of the first latents of a video, and of all later ones.
DECODING = ("decode_first", "decode")


@dataclass(frozen=True)
class CompiledStage:
    """One stage: a graph with its weights, and the names of what goes in and comes out."""

    name: str
    graph: GraphModule
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run on the values that its inputs name; surplus values are left alone.

        Kernels are compiled for inputs whose elements lie one after another, so those that do not
        are copied. What only decoding takes is of no kernel of ours, and may lie as it likes.
        """
        given = {
            spec.name: values[spec.name] if spec.rate == "emit" else values[spec.name].contiguous()
            for spec in self.inputs
            if spec.name in values
        }
        check(self.inputs, given, stage=self.name)
        with torch.inference_mode():
            results = self.graph(*(given[spec.name] for spec in self.inputs))
        return dict(zip(self.outputs, results, strict=True))


@dataclass(frozen=True)
class Streamed:
    """Weights that are copied to the device whenever they are used: `host` bytes that stay in the
    memory of the host, `slots` bytes that they pass through on the device, bytes that a call of
    each stage copies, and their names."""

    host: int
    slots: int
    copied: Mapping[str, int]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Executable:
    """Stages by name, on one device; those of DECODING on another, if `decode_device` names it.

    With `streamed`, no CUDA graph can be made of them, and no two sessions run at once. All
    sessions share the `streams`.
    """

    stages: Mapping[str, CompiledStage]
    facts: RunFacts
    device: torch.device
    decode_device: torch.device | None = None
    streamed: Streamed | None = None
    streams: Streams = field(default_factory=Streams, compare=False, repr=False)

    @property
    def decodes_on(self) -> torch.device:
        return self.decode_device or self.device

    def stage(self, name: str) -> CompiledStage:
        if name not in self.stages:
            raise ArtifactError(
                f"this program has no {name!r} stage",
                because=f"it has {', '.join(self.stages)}",
                fix="quantize again with the part that is missing (--vae, --text-encoder)",
            )
        return self.stages[name]
