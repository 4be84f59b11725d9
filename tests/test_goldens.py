"""The reference's rollouts, VAE and NVFP4 vectors, by the eager model and by the compiled graphs.

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
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from llvq.backends.base import CPU
from llvq.compiler import Compiled, compile_model, instantiate, with_constants, with_weights
from llvq.formats import nvfp4
from llvq.lowered import loops_of, lower_stages
from llvq.models.chunk import meta_model
from llvq.models.config import DitConfig, ModelConfig, StreamConfig, VaeConfig
from llvq.recipe import BF16, DecodeRecipe
from llvq.runtime.decoder import Decoder
from llvq.runtime.denoiser import Denoised, Denoiser
from llvq.runtime.executable import CompiledStage, Executable
from llvq.runtime.sampler import schedule
from llvq.sources import DictSource

FOLDER = Path(os.environ.get("LLVQ_GOLDENS", Path(__file__).parent / "data"))
TOLERANCE = 1e-4
FP32 = replace(BF16, dtype="float32")
RULES = {"max": "static_6", "four_over_six": "mse"}  # Ours, and the reference's name for it.


@cache
def compiled(config: ModelConfig) -> Compiled:
    """Goldens that differ only in prompts and weights share a program."""
    return compile_model(config, FP32)


def goldens_with(key: str) -> list[str]:
    """Names of the goldens whose configuration has an entry of that name."""
    documents = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
    return [name for name, document in documents.items() if key in document]


def rollouts() -> list[str]:
    return goldens_with("prompts")


def vectors() -> list[tuple[str, str, str]]:
    """(file, input, rule of ours) of every NVFP4 vector that follows a rule we have."""
    found = []
    for path in sorted(FOLDER.glob("nvfp4*.safetensors")):
        with safe_open(path, "pt") as file:
            inputs = [n.removesuffix(".input") for n in file.keys() if n.endswith(".input")]  # noqa: SIM118
        found += [(path.name, name, rule) for name in inputs for rule in RULES]
    return found


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


def vae_config(name: str, io: Mapping[str, Tensor]) -> ModelConfig:
    """The VAE of a golden, behind the smallest denoiser that its latents fit."""
    document = json.loads((FOLDER / f"{name}.json").read_text())
    sizes = {key: document[key] for key in ("dim", "dec_dim", "z_dim", "num_res_blocks")}
    tuples = {key: tuple(document[key]) for key in ("dim_mult", "temporal_downsample")}
    statistics = {f"latent_{key}": tuple(io[key].tolist()) for key in ("mean", "std")}
    channels, latents = io["latent"].shape[1:3]
    dit = DitConfig(dim=32, ffn_dim=32, num_heads=1, num_layers=1, in_dim=channels,
                    out_dim=channels, text_dim=16, text_len=2)  # fmt: skip
    stream = StreamConfig(latents, 4 * latents, latents)
    vae = VaeConfig(**sizes, **tuples, **statistics)
    return ModelConfig(dit, stream, vae, None, tuple(document["latent_hw"]))


def vae_compiled(
    name: str, io: Mapping[str, Tensor], latents_per_call: int
) -> tuple[Compiled, DictSource]:
    config = vae_config(name, io)
    compiled = compile_model(config, replace(FP32, decode=DecodeRecipe(latents_per_call)))
    weights = load_file(FOLDER / f"{name}.weights.safetensors")
    denoiser = meta_model(config, torch.float32).dit.state_dict()
    tensors = {f"vae.{key}": value for key, value in weights.items()}
    tensors |= {f"dit.{key}": torch.zeros(value.shape) for key, value in denoiser.items()}
    return compiled, DictSource(tensors)


ONE_OR_ALL = pytest.mark.parametrize(
    "whole", [False, True], ids=["one latent per call", "all at once"]
)


@ONE_OR_ALL
@pytest.mark.parametrize("name", goldens_with("z_dim"))
def test_compiled_vae_follows_the_reference(name: str, whole: bool) -> None:
    io = load_file(FOLDER / f"{name}.io.safetensors")
    latent = io["latent"].transpose(1, 2)
    executable = instantiate(*vae_compiled(name, io, latent.shape[1] if whole else 1))
    chunk = Denoised(latent, latent, torch.zeros_like(latent), torch.zeros(latent.shape[:2]))
    frames = torch.cat(list(Decoder(executable).pixels(chunk)), dim=2)
    assert_close(frames, io["decoded"], "frames")
    first = executable.stage("encode_image")({"image": io["video"][:, :, :1]})["image_latent"]
    assert_close(first, io["encoded"].transpose(1, 2)[:, :1], "latent of the first frame")


@ONE_OR_ALL
@pytest.mark.parametrize("name", goldens_with("z_dim"))
def test_a_streamed_vae_shows_the_frames_of_the_reference(name: str, whole: bool) -> None:
    """Each pixel is the nearest of 256 steps, or where it is between two the next."""
    io = load_file(FOLDER / f"{name}.io.safetensors")
    latent = io["latent"].transpose(1, 2)
    compiled, source = vae_compiled(name, io, latent.shape[1] if whole else 1)
    stages = lower_stages(compiled.stages, compiled.recipe, CPU).stages
    built = with_weights(stages, compiled.weights, with_constants(compiled, source))
    facts = replace(compiled.facts, loops=loops_of(compiled.facts.loops, stages))
    chunk = Denoised(latent, latent, torch.zeros_like(latent), torch.zeros(latent.shape[:2]))
    frames = Decoder(Executable(built, facts, torch.device("cpu")))(chunk)
    wanted = (io["decoded"][0].movedim(0, -1).clamp(-1, 1) + 1) * 127.5
    assert frames.dtype == torch.uint8 and frames.shape == wanted.shape
    assert (frames - wanted).abs().amax() < 0.5 + 0.01


@pytest.mark.parametrize(("file", "name", "rule"), vectors())
def test_nvfp4_is_the_reference_byte_for_byte(file: str, name: str, rule: str) -> None:
    tensors = load_file(FOLDER / file)
    packed = nvfp4.quantize(tensors[f"{name}.input"], block_rule=rule)
    theirs = f"{name}.{RULES[rule]}"
    assert torch.equal(packed.codes, tensors[f"{theirs}.codes"])
    assert torch.equal(packed.scales.view(torch.uint8), tensors[f"{theirs}.scales"])
