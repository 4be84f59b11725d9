"""A rollout of training is the video that llvq makes of the same noise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from examples.tiny_longlive.layouts import layout, position_tensor
from examples.tiny_longlive.rollout import Rollout
from llvq.compiler import Compiled, instantiate
from llvq.models.config import ModelConfig
from llvq.models.dit import CausalWanDit
from llvq.runtime.sampler import schedule
from llvq.runtime.session import Prompt, Session
from llvq.sources import DictSource

CHUNKS, CUT = 6, 3


@pytest.mark.parametrize("steps", [2, 4])
@torch.no_grad()
def test_rollout_is_what_a_session_makes(
    tiny_config: ModelConfig,
    compiled_fp32: Compiled,
    make_weights: Callable[[ModelConfig], DictSource],
    steps: int,
) -> None:
    torch.manual_seed(0)
    weights = make_weights(tiny_config)
    dit = CausalWanDit(tiny_config.dit)
    dit.load_state_dict({name: weights.read(f"dit.{name}") for name in dit.state_dict()})
    config, stream = tiny_config.dit, tiny_config.stream
    first, second = torch.randn(2, 1, config.text_len, config.text_dim)
    shape = (1, CHUNKS * stream.frames_per_chunk, config.in_dim, *tiny_config.latent_hw)
    noise = torch.randn(shape)
    script = [
        Prompt(first if chunk < CUT else second, scene_cut=chunk == CUT) for chunk in range(CHUNKS)
    ]
    executable = instantiate(compiled_fp32, weights)
    session = Session(executable, script, seed=0, steps=steps, noise=noise, latents_only=True)
    expected = torch.cat([chunk.latents for chunk in session], dim=1)
    whole = layout(stream, 0, CHUNKS, CUT)
    rollout, made = Rollout(dit, whole, position_tensor(whole, "cpu")), []
    for chunk, start in enumerate(noise.split(stream.frames_per_chunk, dim=1)):
        plan = schedule(steps, stream.shift)
        made.append(rollout.denoise(chunk, plan, start, script[chunk].embeds).x0)
        rollout.refresh(chunk, made[-1], script[chunk].embeds)
    assert torch.allclose(torch.cat(made, dim=1), expected, atol=1e-3)
