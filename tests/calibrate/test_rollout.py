"""The eager video: which calls it makes. Its numbers are held by tests/test_goldens.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from llvq.calibrate.rollout import EagerRollout, Video, roll
from llvq.models.config import ModelConfig
from llvq.models.dit import CausalWanDit

RENOISE = {"sampler": "renoise", "timesteps": (1000, 750, 500), "steps": 3}


class Calls:
    """What the model was called with."""

    def __init__(self, model: CausalWanDit) -> None:
        self.timesteps: list[float] = []
        self.history: list[int] = []
        self.latents: list[torch.Tensor] = []
        model.register_forward_hook(self._keep)
        model.blocks[1].self_attn.register_forward_pre_hook(self._measure)

    def _keep(self, model: CausalWanDit, inputs: tuple[Any, ...], outputs: object) -> None:
        self.latents.append(inputs[0])
        self.timesteps.append(inputs[1].unique().item())

    def _measure(self, attention: Any, inputs: tuple[Any, ...]) -> None:
        keys, values = inputs[2]
        assert keys.shape == values.shape
        self.history.append(keys.shape[1])


@pytest.fixture
def dit(tiny_config: ModelConfig) -> CausalWanDit:
    torch.manual_seed(0)
    return CausalWanDit(tiny_config.dit).bfloat16()


@pytest.fixture
def video(tiny_config: ModelConfig) -> Video:
    dit = tiny_config.dit
    return Video(torch.randn(1, dit.text_len, dit.text_dim), seed=5, chunks=6)


@pytest.mark.parametrize("change", [{}, RENOISE], ids=["unipc", "renoise"])
def test_every_step_and_the_refresh_of_every_chunk(
    tiny_config: ModelConfig, dit: CausalWanDit, video: Video, change: dict[str, Any]
) -> None:
    config = replace(tiny_config, stream=replace(tiny_config.stream, **change))
    calls, chunks = Calls(dit), []
    roll(dit, config, video, done=lambda: chunks.append(len(calls.timesteps)))
    per_chunk = config.stream.steps + 1
    assert chunks == [per_chunk * n for n in range(1, 7)]
    assert calls.timesteps[per_chunk - 1 :: per_chunk] == [0.0] * 6  # the refresh
    assert min(calls.timesteps[:2]) > 0
    in_window = [n * config.chunk_tokens for n in (0, 1, 2, 3, 3, 3)]
    assert calls.history[::per_chunk] == in_window


def test_a_seed_is_a_video(tiny_config: ModelConfig, dit: CausalWanDit, video: Video) -> None:
    calls = Calls(dit)
    for seed in (5, 5, 6):
        roll(dit, tiny_config, replace(video, seed=seed, chunks=1), done=int)
    one, same, other = (torch.cat(calls.latents[i : i + 5]) for i in (0, 5, 10))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.dtype == torch.bfloat16


def test_renoising_takes_fresh_noise(tiny_config: ModelConfig, dit: CausalWanDit) -> None:
    stream = replace(tiny_config.stream, **RENOISE)
    shape = (1, stream.frames_per_chunk, tiny_config.dit.in_dim, *tiny_config.latent_hw)
    noises = torch.randn(3, *shape).bfloat16().unbind()
    prompt = torch.zeros(1, tiny_config.dit.text_len, tiny_config.dit.text_dim).bfloat16()
    whole = EagerRollout(dit, stream).run(0, noises, prompt)
    other = EagerRollout(dit, stream).run(0, (*noises[:2], noises[0]), prompt)
    assert whole.isfinite().all() and not torch.equal(whole, other)
