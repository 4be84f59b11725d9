"""The state of one run of `benchmarks.denoise`, and what PyTorch gave for others to be held to."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.denoise_rollout import Drawn
from benchmarks.device_memory import peak_beyond
from benchmarks.prepared import denoiser_config
from benchmarks.random_weights import weight_specs
from benchmarks.report import command_of
from llvq.bench.machine import device_text, gpu_state, versions
from llvq.bench.timing import Spread, measure
from llvq.models.config import ModelConfig
from llvq.runtime.device import chip_of, exact_device

SEED = 0


@dataclass(frozen=True)
class Wanted:
    """What PyTorch gave: the velocity, K and V of each layer written before it, and a video."""

    velocity: Tensor
    written: Sequence[tuple[Tensor, Tensor]]
    drawn: Drawn
    video: Sequence[Tensor]


class Run:
    """The state of one run, and what it has found so far as plain data."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, exact_device(options.device)
        self.config = denoiser_config(tiny=options.tiny)
        self.specs = weight_specs(self.config, torch.bfloat16)
        self.found: dict[str, Any] = {
            "command": command_of("denoise"),
            "device": device_text(self.device),
            "versions": versions(),
            "gpu": {"at the beginning": gpu_state(self.device)},
            "model": _model_text(self.config),
            "forwards": [],
            "pages": [],
            "errors": [],
            "rollouts": [],
            "ops": {},
            "failed": {},
        }

    @property
    def target(self) -> str:
        if self.device.type != "cuda":
            return "cpu"
        return chip_of(torch.cuda.get_device_capability(self.device))

    def forward(self, call: Callable[[], Any]) -> Spread:
        return measure([call], self.device, repeats=self.options.repeats)

    def held(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def peak_of(self, call: Callable[[], Any], before: int) -> int | None:
        """The most bytes of tensors while `call` runs, beyond those that were there `before`."""
        return peak_beyond(call, self.device, before)


def _model_text(config: ModelConfig) -> str:
    height, width = config.pixel_hw
    tokens, chunks = config.chunk_tokens, config.stream.window_chunks
    return (
        f"{config.dit.num_layers} layers of {config.dit.dim}, {height}x{width}, {tokens} queries, "
        f"{tokens * chunks} keys, seed {SEED}"
    )
