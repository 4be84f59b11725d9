"""The model of the repository shows what it is asked for. Minutes of video are in the docs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from examples.tiny_longlive.captions import parse
from examples.tiny_longlive.identity import Identity
from examples.tiny_longlive.model import TRAINED, read_denoiser, read_vae, tiny_longlive
from examples.tiny_longlive.samples import ONE_SHOT
from examples.tiny_longlive.validation import watched

PROMPTS = (ONE_SHOT[0], ONE_SHOT[5])
TUMBLING = (
    "A large green square in the center tumbles right, over a gray plain background.",
    "A small red triangle on the left tumbles down, over a navy striped background.",
)


def test_all_three_parts_fit_in_40_megabytes() -> None:
    assert sum(file.stat().st_size for file in TRAINED.iterdir()) <= 40e6


@pytest.mark.parametrize("steps", [4, 2])
def test_objects_are_there_in_their_colour_shape_and_place(steps: int) -> None:
    for prompt, found in zip(PROMPTS, videos_of(PROMPTS, chunks=1, steps=steps), strict=True):
        for thing in found.objects:
            assert all(thing.present) and all(thing.holds), f"{thing.name}, of {prompt}"
            assert thing.start_error is not None and thing.start_error < 35


def test_a_shape_that_turns_while_it_travels_stays_itself() -> None:
    for prompt, found in zip(TUMBLING, videos_of(TUMBLING, chunks=3, steps=2), strict=True):
        assert all(found.objects[0].holds), f"{found.objects[0].holds}, of {prompt}"


def videos_of(prompts: Sequence[str], *, chunks: int, steps: int) -> list[Identity]:
    """What the detector finds in a video of each prompt."""
    config = tiny_longlive()
    modules = (*read_denoiser(TRAINED, config), read_vae(TRAINED, config))
    dit, text, vae = (module.float() for module in modules)
    scenes = [parse(prompt) for prompt in prompts]
    return watched(config, dit, text, vae, scenes, steps=steps, chunks=chunks, seed=0)
