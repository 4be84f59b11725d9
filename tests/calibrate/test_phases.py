"""The forward loop: how often the model runs, what is shown, and what is saved."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from llvq.calibrate.configs import CONFIGS
from llvq.calibrate.phases import Phases
from llvq.calibrate.rollout import Video
from llvq.calibrate.work import Work
from llvq.models.config import ModelConfig
from llvq.models.dit import CausalWanDit

CALLS = 5  # four steps and the refresh


def videos(config: ModelConfig) -> list[Video]:
    embeds = torch.zeros(1, config.dit.text_len, config.dit.text_dim)
    return [Video(embeds, seed, chunks=2) for seed in (0, 1, 2)]


class Counted:
    """A model that counts its calls, and gives none of the statistics of ModelOpt."""

    def __init__(self, config: ModelConfig) -> None:
        self.model, self.calls = CausalWanDit(config.dit).bfloat16(), 0
        self.model.register_forward_hook(self._count)

    def _count(self, model: nn.Module, inputs: object, outputs: object) -> None:
        self.calls += 1


def test_a_saved_video_is_not_run_again(tmp_path: Path, tiny_config: ModelConfig) -> None:
    counted, told = Counted(tiny_config), []
    state = Work(tmp_path / "w", {})
    for name, done in (("phase-1", "3"), ("phase-2", "1")):
        state.put(name, {}, videos=done)
    phases = Phases(
        CONFIGS["awq_lite"], tiny_config, videos(tiny_config), state, lambda *a: told.append(a)
    )
    phases(counted.model)
    assert counted.calls == 0 and told == [("awq_lite, pass 1 of 2", 6, 6)]
    phases(counted.model)
    assert counted.calls == 2 * 2 * CALLS
    assert told[1:] == [("awq_lite, pass 2 of 2", done, 6) for done in (2, 3, 4, 5, 6)]
    saved = state.get("phase-2")
    assert saved is not None and saved[1] == {"videos": "3"}
