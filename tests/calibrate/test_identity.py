"""What makes a calibration another one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from llvq import canonical_json
from llvq.calibrate.configs import CONFIGS
from llvq.calibrate.identity import checkpoint_digest, identity_of, prompts_digest
from llvq.checkpoints.model import VideoModel
from llvq.sources import DictSource

WEIGHTS = {"dit.a.weight": torch.arange(12.0).reshape(6, 2), "dit.a.bias": torch.zeros(6)}


def digest(**changes: torch.Tensor) -> str:
    tensors = WEIGHTS | {f"dit.a.{name}": tensor for name, tensor in changes.items()}
    return checkpoint_digest(DictSource(tensors), "dit.")


@pytest.mark.parametrize(
    "change",
    [
        {"weight": WEIGHTS["dit.a.weight"] + 1},
        {"weight": WEIGHTS["dit.a.weight"].bfloat16()},
        {"weight": WEIGHTS["dit.a.weight"].reshape(2, 6)},
        {"bias": torch.ones(6)},
    ],
)
def test_another_weight_is_another_checkpoint(change: dict[str, torch.Tensor]) -> None:
    assert digest(**change) != digest()


def test_facts_are_no_part_of_the_checkpoint() -> None:
    assert digest(input_scale=torch.ones(()), lora_up=torch.ones(6, 1)) == digest()


def test_prompts_are_told_apart() -> None:
    embeds = torch.ones(2, 3, 4, dtype=torch.bfloat16)
    ones = [("a", "b"), ("ab",), ("b", "a"), embeds, embeds + 1]
    assert len({prompts_digest(prompts) for prompts in ones}) == len(ones)


@pytest.mark.parametrize("change", ["config", "layers", "videos", "tool", "schedule"])
def test_each_part_counts(model: VideoModel, change: str) -> None:
    given: dict[str, Any] = {
        "model": model,
        "config": CONFIGS["max"],
        "layers": ("a", "b"),
        "videos": {"chunks": 3},
        "tool": "0.47.0",
    }
    other = (
        given
        | {
            "config": {"config": CONFIGS["mse"]},
            "layers": {"layers": ("a",)},
            "videos": {"videos": {"chunks": 2}},
            "tool": {"tool": "0.47.1"},
            "schedule": {"model": with_steps(model)},
        }[change]
    )
    assert canonical_json.dumps(identity_of(**given)) != canonical_json.dumps(identity_of(**other))


def with_steps(model: VideoModel) -> VideoModel:
    stream = replace(model.config.stream, steps=2)
    return replace(model, config=replace(model.config, stream=stream))
