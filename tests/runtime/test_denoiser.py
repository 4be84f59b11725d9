"""The denoiser on compiled stages against the eager model: windows, sinks, cuts, images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.compiler import Compiled, compile_model, instantiate
from llvq.models.config import ModelConfig
from llvq.recipe import BF16, KvRecipe
from llvq.runtime.denoiser import Denoised, Denoiser, held
from llvq.runtime.sampler import schedule
from llvq.sources import DictSource

FP32 = replace(BF16, dtype="float32")
CHUNKS, CUT = 6, 2
Weights = Callable[[ModelConfig], DictSource]


@pytest.fixture(scope="module")
def inputs() -> Mapping[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    shapes = {
        "noise": (CHUNKS, 1, 2, 8, 4, 6),
        "prompts": (CHUNKS, 1, 5, 32),
        "image": (1, 1, 8, 4, 6),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def roll(
    run: Callable[..., Any], inputs: Mapping[str, Tensor], *, image: bool = False
) -> list[Any]:
    return [
        run(
            index,
            inputs["noise"][index],
            inputs["prompts"][index],
            scene_cut=index == CUT,
            image=inputs["image"] if image and index == 0 else None,
        )
        for index in range(CHUNKS)
    ]


def denoiser(compiled: Compiled, weights: DictSource) -> Denoiser:
    stream = compiled.config.stream
    return Denoiser(instantiate(compiled, weights), schedule(stream.steps, stream.shift))


def of_dit(weights: DictSource) -> dict[str, Tensor]:
    return {name.removeprefix("dit."): weights.read(name) for name in weights.names()}


STREAMS: dict[str, dict[str, Any]] = {
    "absolute": {},
    "relative": {"relative_rope": True},
    "no-sink": {"sink_frames": 0, "multi_shot_rope_offset": 0.0, "steps": 2},
    "one-sink": {"multi_shot_sink": False, "window_frames": 4, "steps": 1},
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("image", [False, True])
def test_compiled_is_eager(
    stream: str,
    image: bool,
    inputs: Mapping[str, Tensor],
    make_weights: Weights,
    eager_rollout: Any,
    compiled_by_stream: Callable[[str], Compiled],
) -> None:
    compiled = compiled_by_stream(stream)
    weights = make_weights(compiled.config)
    found = roll(denoiser(compiled, weights).run, inputs, image=image)
    expected = roll(eager_rollout(compiled.config, of_dit(weights)).run, inputs, image=image)
    for chunk, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        worst = (ours.x0 - theirs).abs().max() / theirs.abs().max()
        assert worst <= 1e-5, f"chunk {chunk} is off by {worst}"


@pytest.fixture(scope="module")
def compiled_by_stream(tiny_config: ModelConfig) -> Callable[[str], Compiled]:
    made: dict[str, Compiled] = {}

    def compiled(name: str) -> Compiled:
        if name not in made:
            stream = replace(tiny_config.stream, **STREAMS[name])
            made[name] = compile_model(replace(tiny_config, stream=stream), FP32)
        return made[name]

    return compiled


def test_x0_follows_from_latent_sigma_and_velocity(
    compiled_fp32: Compiled, tiny_config: ModelConfig, inputs: Any, make_weights: Weights
) -> None:
    results: list[Denoised] = roll(
        denoiser(compiled_fp32, make_weights(tiny_config)).run, inputs, image=True
    )
    for result in results:
        x0 = result.latent - result.sigma[:, :, None, None, None] * result.velocity
        torch.testing.assert_close(x0, result.x0, atol=1e-4, rtol=1e-4)
    assert results[0].sigma[0, 0] == 0 and torch.equal(results[0].x0[:, :1], inputs["image"])


def test_the_same_inputs_give_the_same_bytes(
    compiled_nvfp4: Compiled, tiny_config: ModelConfig, inputs: Any, make_weights: Weights
) -> None:
    weights = make_weights(tiny_config)
    low = {name: value.to(torch.bfloat16) for name, value in inputs.items()}
    first, second = (roll(denoiser(compiled_nvfp4, weights).run, low) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.x0.dtype == torch.bfloat16 and torch.equal(one.x0, other.x0)
        assert one.x0.isfinite().all()


@pytest.mark.parametrize(("kv_format", "error"), [("fp8", 0.05), ("nvfp4", 0.3)])
def test_quantized_pages_stay_near(
    kv_format: str,
    error: float,
    compiled_fp32: Compiled,
    tiny_config: ModelConfig,
    inputs: Any,
    make_weights: Weights,
) -> None:
    weights = make_weights(tiny_config)
    recipe = replace(FP32, kv=KvRecipe(kv_format))
    exact, held_pages = (
        torch.cat([result.x0 for result in roll(denoiser(compiled, weights).run, inputs)])
        for compiled in (compiled_fp32, compile_model(tiny_config, recipe))
    )
    assert 0 < (held_pages - exact).norm() / exact.norm() < error


def test_a_prompt_is_encoded_once_until_it_changes(
    compiled_fp32: Compiled, tiny_config: ModelConfig, inputs: Any, make_weights: Weights
) -> None:
    ours = denoiser(compiled_fp32, make_weights(tiny_config))
    prompt = inputs["prompts"][0]
    assert ours._condition(prompt) is ours._condition(prompt)
    assert ours._condition(inputs["prompts"][1]) is not ours._condition(prompt)


def test_held_replaces_frame_zero_alone() -> None:
    latent, image = torch.zeros(1, 3, 2, 2, 2), torch.ones(1, 1, 2, 2, 2)
    assert held(latent, None) is latent
    assert held(latent, image)[:, 0].all() and not held(latent, image)[:, 1:].any()


KEEPING = replace(FP32, kv=KvRecipe("nvfp4", keep=("sink", "newest")))


@pytest.mark.parametrize("relative", [False, True])
def test_a_window_of_sink_and_newest_that_are_kept_is_not_rounded(
    relative: bool, inputs: Mapping[str, Tensor], tiny_config: ModelConfig, make_weights: Weights
) -> None:
    """Three chunks: sink, newest, own. A cut pins nothing, so every history is kept whole."""
    stream = replace(
        tiny_config.stream, window_frames=6, multi_shot_sink=False, relative_rope=relative
    )
    config = replace(tiny_config, stream=stream)
    weights = make_weights(config)
    plain, rounded, kept = (
        roll(denoiser(compile_model(config, recipe), weights).run, inputs)
        for recipe in (FP32, replace(FP32, kv=KvRecipe("nvfp4")), KEEPING)
    )
    for ours, theirs in zip(kept, plain, strict=True):
        assert torch.equal(ours.x0, theirs.x0)
    assert not torch.equal(rounded[-1].x0, plain[-1].x0)


def test_a_chunk_that_failed_in_its_refresh_leaves_what_is_kept(
    inputs: Mapping[str, Tensor], tiny_config: ModelConfig, make_weights: Weights
) -> None:
    """Its page and its kept slot are written; the chunk is begun again and reads neither."""
    compiled = compile_model(tiny_config, KEEPING)
    weights = make_weights(tiny_config)
    wanted = roll(denoiser(compiled, weights).run, inputs)
    found = denoiser(compiled, weights)
    for index in range(CHUNKS):
        noise, prompt, before = inputs["noise"][index], inputs["prompts"][index], found.table
        found.run(index, noise * 3, prompt, scene_cut=False, image=None)
        found.table = before
        again = found.run(index, noise, prompt, scene_cut=index == CUT, image=None)
        assert torch.equal(again.x0, wanted[index].x0)
