"""The reference's rollouts, by the eager model and by the compiled graphs.

Every golden in the folder that LLVQ_GOLDENS names (tests/data without it) is run, whatever its
sizes; tests/data/README.md describes the form.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
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
from llvq.models.dit import CausalWanDit
from llvq.recipe import BF16
from llvq.runtime.denoiser import Denoiser, held
from llvq.runtime.executable import CompiledStage, Executable
from llvq.runtime.pages import PageTable
from llvq.runtime.sampler import advance, schedule
from llvq.weights import DictSource

FOLDER = Path(os.environ.get("LLVQ_GOLDENS", Path(__file__).parent / "data"))
TOLERANCE = 1e-4
FP32 = replace(BF16, dtype="float32")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are three times slower on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def _known(cls: Any, document: Mapping[str, Any]) -> dict[str, Any]:
    """What the document says of a configuration, in the types of its defaults."""
    defaults = {name: spec.default for name, spec in cls.__dataclass_fields__.items()}
    return {name: type(default)(document[name])
            for name, default in defaults.items() if name in document}  # fmt: skip


class EagerRollout:
    """The algorithm in plain words: history as tensors, gathered chunk by chunk."""

    def __init__(self, golden: Golden) -> None:
        stream = golden.config.stream
        self.golden, self.stream = golden, stream
        self.model = CausalWanDit(golden.config.dit, relative_rope=stream.relative_rope)
        self.model.load_state_dict(dict(golden.weights))
        self.table = PageTable(
            window_chunks=stream.window_chunks,
            sink_chunks=stream.sink_chunks,
            multi_shot_sink=stream.multi_shot_sink,
        )
        self.cached: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self.velocities: list[Tensor] = []
        self.timesteps: list[Tensor] = []
        self.offset = 0.0

    def run(self) -> Tensor:
        chunks = range(len(self.golden.prompts))
        with torch.inference_mode():
            return torch.cat([self.chunk(index) for index in chunks], dim=1)

    def chunk(self, index: int) -> Tensor:
        golden, plan = self.golden, schedule(self.stream.steps, self.stream.shift)
        cut, noise = golden.scene_cut(index), golden.noise(index)
        image = golden.image if index == 0 else None
        self.offset += cut * self.stream.multi_shot_rope_offset
        self.table = self.table.begin(index)
        latent, velocities = held(noise, image), []
        for step, timestep in enumerate(plan.timesteps):
            velocities.append(self.call(index, latent, timestep, image)[0])
            latent = held(advance(plan, step, noise, velocities), image)
        _, keys, values = self.call(index, latent, 0, image)
        assert self.table.placement is not None
        self.cached[self.table.placement.slot] = (keys, values)
        self.table = self.table.commit(scene_cut=cut)
        return latent

    def call(
        self, index: int, latent: Tensor, timestep: int, image: Tensor | None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        timesteps = torch.full(latent.shape[:2], float(timestep))
        if image is not None:
            timesteps[:, 0] = 0.0
        result = self.model(
            latent,
            timesteps,
            self.positions(index),
            self.golden.prompt(index),
            *self.history(latent),
        )
        self.velocities.append(result[0])
        self.timesteps.append(timesteps)
        return result

    def positions(self, index: int) -> Tensor:
        frames = self.stream.frames_per_chunk
        if self.stream.relative_rope:
            assert self.table.placement is not None
            return torch.arange((len(self.table.placement.history) + 1) * frames).double()
        return torch.arange(frames).double() + index * frames + self.offset

    def history(self, latent: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        assert self.table.placement is not None
        dit = self.golden.config.dit
        empty = [latent.new_empty(1, 0, dit.num_heads, dit.head_dim)] * dit.num_layers
        pages = [(empty, empty), *(self.cached[slot] for slot in self.table.placement.history)]
        keys, values = ([torch.cat(layer, dim=1) for layer in zip(*parts, strict=True)]
                        for parts in zip(*pages, strict=True))  # fmt: skip
        return keys, values


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
    latents = [
        denoiser.run(
            chunk,
            golden.noise(chunk),
            golden.prompt(chunk),
            scene_cut=golden.scene_cut(chunk),
            image=golden.image if chunk == 0 else None,
        ).x0
        for chunk in range(len(golden.prompts))
    ]
    return torch.cat(latents, dim=1), velocities


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
def test_eager_model_follows_the_reference(name: str) -> None:
    golden = Golden.read(name)
    rollout = EagerRollout(golden)
    latents = rollout.run()
    torch.testing.assert_close(torch.stack(rollout.timesteps), golden.io["timesteps"])
    assert_velocities(rollout.velocities, golden)
    assert_close(latents, golden.io["latents"], "latents")


@pytest.mark.parametrize("name", rollouts())
def test_compiled_model_follows_the_reference(name: str) -> None:
    golden = Golden.read(name)
    latents, velocities = compiled_rollout(golden)
    assert_velocities(velocities, golden)
    assert_close(latents, golden.io["latents"], "latents")
