"""The model of the repository shows what it is asked for. Minutes of video are in the docs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from examples.tiny_longlive import data
from examples.tiny_longlive.captions import parse
from examples.tiny_longlive.identity import Identity, identity
from examples.tiny_longlive.model import TRAINED, read_denoiser, read_vae, tiny_longlive
from examples.tiny_longlive.rollout import decode_frames, generate, to_uint8
from examples.tiny_longlive.samples import ONE_SHOT
from examples.tiny_longlive.spans import Shot

PROMPTS = (ONE_SHOT[0], ONE_SHOT[5])
TUMBLING = (
    "A large green square in the center tumbles right, over a gray plain background.",
    "A small red triangle on the left tumbles down, over a navy striped background.",
)


def test_all_three_parts_fit_in_40_megabytes() -> None:
    assert sum(file.stat().st_size for file in TRAINED.iterdir()) <= 40e6


@pytest.mark.parametrize("steps", [4, 2])
def test_objects_are_there_in_their_colour_shape_and_place(steps: int) -> None:
    for prompt, found in zip(PROMPTS, watched(PROMPTS, chunks=1, steps=steps), strict=True):
        for thing in found.objects:
            assert all(thing.present) and all(thing.holds), f"{thing.name}, of {prompt}"
            assert thing.start_error is not None and thing.start_error < 35


def test_a_shape_that_turns_while_it_travels_stays_itself() -> None:
    for prompt, found in zip(TUMBLING, watched(TUMBLING, chunks=3, steps=2), strict=True):
        assert all(found.objects[0].holds), f"{found.objects[0].holds}, of {prompt}"


def watched(prompts: Sequence[str], *, chunks: int, steps: int) -> list[Identity]:
    """What the detector finds in every sixth frame of a video of each prompt."""
    config = tiny_longlive()
    dit, text = (model.float() for model in read_denoiser(TRAINED, config))
    vae = read_vae(TRAINED, config).float()
    latents = generate(config, dit, text, [[p] for p in prompts], chunks, steps=steps, seed=0)
    pixels = decode_frames(vae, latents, range(0, 4 * latents.shape[1] - 3, 6))
    frames = to_uint8(pixels).movedim(2, -1)
    return [
        identity(clip, [Shot(0, parse(prompt))], fps=data.FPS / 6)
        for prompt, clip in zip(prompts, frames, strict=True)
    ]
