"""The videos that the eager model is looked at on: prompts, lengths, seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llvq.calibrate import prompts
from llvq.calibrate.phases import Progress
from llvq.calibrate.rollout import Video
from llvq.checkpoints.model import VideoModel
from llvq.errors import RecipeError, TargetError
from llvq.models.config import ModelConfig
from llvq.runtime.session import check_seed


@dataclass(frozen=True, kw_only=True)
class Videos:
    """Each prompt is a video of `chunks`; video i has the seed `seed` + i.

    `prompts`: a file of one prompt per line, or a safetensors file of prompt_embeds; None is a few
    of ours. `size`: (height, width) in pixels; None is the model's.
    """

    prompts: Path | None = None
    chunks: int = 3
    size: tuple[int, int] | None = None
    seed: int = 0
    device: str = "cpu"

    def sized(self, model: VideoModel) -> ModelConfig:
        return model.config.at(*self.size) if self.size else model.config

    def of(self, embeds: Tensor) -> list[Video]:
        """One for each row of embeds [videos, X, text_dim]."""
        rows = enumerate(embeds.split(1))
        return [Video(row, self.seed + index, self.chunks) for index, row in rows]


def check_videos(videos: Videos) -> None:
    """Raises RecipeError, SessionError (the seed), TargetError (the device)."""
    check_seed(videos.seed)
    if videos.chunks < 1:
        raise RecipeError(f"{videos.chunks} chunks per video", fix="use --calibrate-chunks 3")
    usable = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    if videos.device not in usable:
        raise TargetError(
            f"cannot calibrate on {videos.device!r}",
            because=f"this machine has {', '.join(usable)}",
            fix=f"use --calibrate-device {usable[-1]}",
        )


def given_prompts(model: VideoModel, videos: Videos) -> tuple[str, ...] | Tensor:
    """Prompts, or embeddings. Raises SessionError, CheckpointError (no text encoder)."""
    if videos.prompts is not None and videos.prompts.suffix == prompts.TENSORS:
        return prompts.read_embeds(videos.prompts, model)
    prompts.check_encoder(model)
    return prompts.read_prompts(videos.prompts)


def embedded(
    model: VideoModel, given: tuple[str, ...] | Tensor, device: str, tell: Progress
) -> Tensor:
    """prompt_embeds [videos, X, text_dim], by the text encoder unless they are given."""
    if isinstance(given, Tensor):
        return given
    count = len(given)
    return prompts.encode(model, given, device, done=lambda n: tell("prompts", n, count))


def silent(what: str, done: int, total: int) -> None:
    """Nobody watches."""
