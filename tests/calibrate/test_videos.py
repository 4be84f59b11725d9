from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llvq.calibrate.videos import Videos, check_videos, embedded, given_prompts, silent
from llvq.checkpoints.model import VideoModel
from llvq.errors import CheckpointError, RecipeError, SessionError, TargetError


def test_every_prompt_is_a_video_with_a_seed_of_its_own(
    model: VideoModel, prompts_file: Path
) -> None:
    videos = Videos(prompts=prompts_file, chunks=2, seed=7)
    given = given_prompts(model, videos)
    assert given == ("A red kite.", "A blue boat, at night.")
    embeds = embedded(model, given, "cpu", silent)
    first, second = videos.of(embeds)
    assert (first.seed, second.seed, first.chunks) == (7, 8, 2)
    assert torch.equal(torch.cat([first.embeds, second.embeds]), embeds)


def test_embeddings_are_taken_as_they_are(model: VideoModel, embeds_file: Path) -> None:
    given = given_prompts(model, Videos(prompts=embeds_file))
    assert isinstance(given, torch.Tensor)
    assert embedded(model, given, "cpu", silent) is given


def test_a_size_is_that_of_the_videos_alone(model: VideoModel) -> None:
    assert Videos().sized(model) == model.config
    assert Videos(size=(64, 96)).sized(model).latent_hw == (4, 6)


def test_what_cannot_be_run(model: VideoModel) -> None:
    for videos, error in (
        (Videos(chunks=0), RecipeError),
        (Videos(seed=2**64), SessionError),
        (Videos(device="tpu"), TargetError),
    ):
        with pytest.raises(error):
            check_videos(videos)
    bare = replace(model, config=replace(model.config, text=None))
    with pytest.raises(CheckpointError, match="no text encoder"):
        given_prompts(bare, Videos())
