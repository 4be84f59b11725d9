"""A whole rollout with kernels, on the GPU or interpreted, against the reference on the CPU.

A value next to a rounding boundary falls to the other side when a sum is taken in another order,
and four bits make that large. How large is measured: the reference once more, its first noise moved
by one rounding of bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llvq.backends.base import REFERENCE, Target, find_target
from llvq.backends.triton.specialize import Launcher
from llvq.checks import relative_l2
from llvq.compiler import Compiled, compile_model, instantiate
from llvq.lowered import lower_stages
from llvq.models.config import ModelConfig
from llvq.recipe import KvRecipe, Recipe
from llvq.runtime.bind import bind
from llvq.runtime.denoiser import Denoiser
from llvq.runtime.executable import Executable
from llvq.runtime.sampler import schedule
from llvq.sources import DictSource

CHUNKS = 3
INTERPRETED = (("w4a8", "nvfp4"), ("w4a4-emulated", "nvfp4"))
BF16_ROUNDING = 2**-8
ROOM = 1.5  # one nudge is one sample of how far roundings lead
Weights = Callable[[ModelConfig], DictSource]


def lowered(compiled: Compiled, target: Target) -> Compiled:
    """The stages as a box for that target has them."""
    return replace(compiled, stages=lower_stages(compiled.stages, compiled.recipe, target).stages)


def target_here(numerics: str, device: torch.device) -> Target:
    """Off a GPU there is no cuBLASLt for FP8 with a scale per row: the reference multiplies."""
    target = find_target("sm_90a", numerics)
    if device.type == "cuda":
        return target
    return replace(target, implementations={**target.implementations, "fp8_linear": REFERENCE})


def rollout(executable: Executable, config: ModelConfig, nudge: float = 0.0) -> list[Tensor]:
    """x0 of every chunk; the later ones attend to pages that the earlier ones wrote.

    The noise is moved by `nudge`, a part of itself, up or down at random.
    """
    random, dit = torch.Generator().manual_seed(0), config.dit
    like = {"device": executable.device, "dtype": torch.bfloat16}
    prompt = torch.randn(1, dit.text_len, dit.text_dim, generator=random).to(**like)
    shape = (CHUNKS, 1, config.stream.frames_per_chunk, dit.in_dim, *config.latent_hw)
    noises, signs = (torch.randn(shape, generator=random) for _ in range(2))
    noises = (noises * (1 + nudge * signs.sign())).to(**like)
    denoiser = Denoiser(executable, schedule(2, config.stream.shift))
    return [
        denoiser.run(index, noise, prompt, scene_cut=False, image=None).x0.cpu()
        for index, noise in enumerate(noises)
    ]


@pytest.mark.parametrize("kv_format", ["nvfp4", "fp8", "none"])
@pytest.mark.parametrize("numerics", ["w4a8", "w4a4-emulated", "w4a16"])
def test_kernels_make_the_video_that_the_reference_makes(
    launch: Launcher,
    device: torch.device,
    tiny_config: ModelConfig,
    make_weights: Weights,
    numerics: str,
    kv_format: str,
) -> None:
    if device.type != "cuda" and (numerics, kv_format) not in INTERPRETED:
        pytest.skip("interpreted, this takes half a minute; its ops are tested one by one")
    weights = make_weights(tiny_config)
    compiled = compile_model(tiny_config, Recipe(kv=KvRecipe(format=kv_format)))
    made = lowered(compiled, target_here(numerics, device))
    reference = instantiate(made, weights)
    wanted = rollout(reference, tiny_config)
    nudged = rollout(reference, tiny_config, BF16_ROUNDING)
    ours = instantiate(made, weights, str(device))
    for stage in ours.stages.values():
        bind(stage.graph, launch)
    found = rollout(ours, tiny_config)
    for chunk, floor, exact in zip(found, nudged, wanted, strict=True):
        assert relative_l2(chunk, exact) <= ROOM * relative_l2(floor, exact)
