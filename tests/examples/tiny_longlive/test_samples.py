"""The model of the repository shows what it is asked for. Minutes of video are in the docs."""

from __future__ import annotations

import pytest

from examples.tiny_longlive import data
from examples.tiny_longlive.captions import parse
from examples.tiny_longlive.identity import Shot, identity
from examples.tiny_longlive.model import TRAINED, read_denoiser, read_vae, tiny_longlive
from examples.tiny_longlive.rollout import decode_frames, generate, to_uint8
from examples.tiny_longlive.samples import ONE_SHOT

PROMPTS = (ONE_SHOT[0], ONE_SHOT[5])


def test_all_three_parts_fit_in_40_megabytes() -> None:
    assert sum(file.stat().st_size for file in TRAINED.iterdir()) <= 40e6


@pytest.mark.parametrize("steps", [4, 2])
def test_objects_are_there_in_their_colour_shape_and_place(steps: int) -> None:
    config = tiny_longlive()
    dit, text = (model.float() for model in read_denoiser(TRAINED, config))
    vae = read_vae(TRAINED, config).float()
    latents = generate(config, dit, text, [[p] for p in PROMPTS], 1, steps=steps, seed=0)
    pixels = decode_frames(vae, latents, range(0, 13, 6))
    frames = to_uint8(pixels).movedim(2, -1)
    for prompt, clip in zip(PROMPTS, frames, strict=True):
        found = identity(clip, [Shot(0, parse(prompt))], fps=data.FPS / 6)
        for thing in found.objects:
            assert all(thing.present) and all(thing.holds), f"{thing.name}, of {prompt}"
            assert thing.start_error is not None and thing.start_error < 35
