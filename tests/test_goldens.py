"""The reference's rollouts, by the eager model and by the compiled graphs.

Every golden in the folder that LLVQ_GOLDENS names (tests/data without it) is run, whatever its
sizes; tests/data/README.md describes the form.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llvq.compiler import Compiled, compile_model, instantiate
from llvq.models.config import DitConfig, ModelConfig, StreamConfig
from llvq.recipe import BF16
from llvq.runtime.denoiser import Denoiser
from llvq.runtime.executable import CompiledStage, Executable
from llvq.runtime.sampler import schedule
from llvq.sources import DictSource

FOLDER = Path(os.environ.get("LLVQ_GOLDENS", Path(__file__).parent / "data"))
TOLERANCE = 1e-4
FP32 = replace(BF16, dtype="float32")


@cache
def compiled(config: ModelConfig) -> Compiled:
    """Goldens that differ only in prompts and weights share a program."""
    return compile_model(config, FP32)


def rollouts() -> list[str]:
    documents = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
    return [name for name, document in documents.items() if "prompts" in document]


@dataclass(frozen=True)
class Golden:
    """A rollout of the reference: configuration, weights, inputs and results."""

    config: ModelConfig
    prompts: tuple[str, ...]
    weights: Mapping[str, Tensor]
    io: Mapping[str, Tensor]

    @classmethod
    def read(cls, name: str) -> Golden:
        document = json.loads((FOLDER / f"{name}.json").read_text())
        weights = load_file(FOLDER / f"{name}.weights.safetensors")
        weights = {key.removeprefix("model."): value.float() for key, value in weights.items()}
        io = load_file(FOLDER / f"{name}.io.safetensors")
        config = ModelConfig(
            dit=DitConfig(**_known(DitConfig, document)),
            stream=StreamConfig(**_known(StreamConfig, document)),
            vae=None,
            text=None,
            latent_hw=tuple(document["latent_hw"]),
        )
        return cls(config, tuple(document["prompts"]), MappingProxyType(weights), io)

    @property
    def image(self) -> Tensor | None:
        return self.io.get("initial_latent")

    def scene_cut(self, chunk: int) -> bool:
        return chunk > 0 and self.prompts[chunk].startswith(self.config.stream.scene_cut_prefix)

    def noise(self, chunk: int) -> Tensor:
        return self.io["noise"].split(self.config.stream.frames_per_chunk, dim=1)[chunk]

    def prompt(self, chunk: int) -> Tensor:
        return self.io["prompt_embeds"][chunk : chunk + 1]

    def roll(self, run: Callable[..., Tensor]) -> Tensor:
        """All latents, by `run(index, noise, prompt, scene_cut=, image=)` of each chunk."""
        chunks = [
            run(
                chunk,
                self.noise(chunk),
                self.prompt(chunk),
                scene_cut=self.scene_cut(chunk),
                image=self.image if chunk == 0 else None,
            )
            for chunk in range(len(self.prompts))
        ]
        return torch.cat(chunks, dim=1)


def _known(cls: Any, document: Mapping[str, Any]) -> dict[str, Any]:
    """What the document says of a configuration, in the types of its defaults."""
    defaults = {name: spec.default for name, spec in cls.__dataclass_fields__.items()}
    return {name: type(default)(document[name])
            for name, default in defaults.items() if name in document}  # fmt: skip


@dataclass(frozen=True)
class Recorder:
    """Runs a compiled stage and keeps the velocity of each call.

    The refresh has none left after rewriting, so the denoise stage is asked for it.
    """

    stage: CompiledStage
    denoise: CompiledStage
    velocities: list[Tensor]

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.velocities.append(self.denoise(values)["velocity"])
        return self.stage(values)


def compiled_rollout(golden: Golden) -> tuple[Tensor, list[Tensor]]:
    """Latents and the velocity of every call, by the compiled program."""
    source = DictSource({f"dit.{name}": value for name, value in golden.weights.items()})
    executable = instantiate(compiled(golden.config), source)
    velocities: list[Tensor] = []
    denoise = executable.stage("denoise")
    recorded = {name: Recorder(executable.stage(name), denoise, velocities)
                for name in ("denoise", "refresh")}  # fmt: skip
    stages: Any = {**executable.stages, **recorded}
    executable = Executable(stages, executable.facts, executable.device)
    stream = golden.config.stream
    denoiser = Denoiser(executable, schedule(stream.steps, stream.shift))
    latents = golden.roll(lambda *args, **kwargs: denoiser.run(*args, **kwargs).x0)
    return latents, velocities


def assert_close(found: Tensor, expected: Tensor, what: str) -> None:
    assert found.shape == expected.shape, what
    worst = (found - expected).abs().max().item()
    largest = expected.abs().max().item()
    assert worst <= TOLERANCE * largest, f"{what}: off by {worst} of {largest}"


def assert_velocities(found: list[Tensor], golden: Golden) -> None:
    expected = golden.io["velocity"]
    assert len(found) == len(expected)
    for call, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert_close(ours, theirs, f"velocity of call {call}")


def test_there_are_goldens() -> None:
    assert rollouts(), f"no rollout in {FOLDER}"


@pytest.mark.parametrize("name", rollouts())
def test_eager_model_follows_the_reference(name: str, eager_rollout: Any) -> None:
    golden = Golden.read(name)
    rollout = eager_rollout(golden.config, golden.weights)
    latents = golden.roll(rollout.run)
    torch.testing.assert_close(torch.stack(rollout.timesteps), golden.io["timesteps"])
    assert_velocities(rollout.velocities, golden)
    assert_close(latents, golden.io["latents"], "latents")


@pytest.mark.parametrize("name", rollouts())
def test_compiled_model_follows_the_reference(name: str) -> None:
    golden = Golden.read(name)
    latents, velocities = compiled_rollout(golden)
    assert_velocities(velocities, golden)
    assert_close(latents, golden.io["latents"], "latents")
