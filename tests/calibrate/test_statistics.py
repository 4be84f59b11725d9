"""Saved statistics are all there are: put back, a phase goes on as if it had not stopped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llvq.calibrate.configs import CONFIGS
from llvq.calibrate.modelopt_backend import calibrate
from llvq.calibrate.statistics import gathered, put_back

INPUTS = [torch.randn(2, 32, generator=torch.Generator().manual_seed(i)).bfloat16() * (i + 1)
          for i in range(3)]  # fmt: skip
KEYS = {
    "max": {"input_quantizer.calib_amax", "weight_quantizer.calib_amax"},
    "smoothquant": {"input_quantizer.calib_amax", "weight_quantizer.calib_amax"},
    "awq_lite": {"input_quantizer.calib_amax", "input_quantizer.amax", "act_scale",
                 "num_cache_steps", "num_search_steps", "num_tokens", "loss"},
}  # fmt: skip


class Stopped:
    """A forward loop that keeps its statistics after each input, or begins with some of them."""

    def __init__(self, saved: dict[tuple[int, int], dict[str, Tensor]], start: int) -> None:
        self.saved, self.start, self.phase = saved, start, 0

    def __call__(self, model: nn.Module) -> None:
        self.phase += 1
        if self.start:
            put_back(model, self.saved[self.phase, self.start])
        for index in range(self.start, len(INPUTS)):
            model(INPUTS[index])
            if not self.start:
                self.saved[self.phase, index + 1] = gathered(model)


def calibrated(name: str, loop: Stopped) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32)).bfloat16()
    calibrate(model, ("0", "2"), CONFIGS[name], loop)
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("start", [1, 3])
def test_the_rest_of_every_phase_gives_the_same(name: str, start: int) -> None:
    saved: dict[tuple[int, int], dict[str, Tensor]] = {}
    whole = calibrated(name, Stopped(saved, 0))
    resumed = calibrated(name, Stopped(saved, start))
    assert len(saved) == CONFIGS[name].phases * len(INPUTS)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("name", sorted(KEYS))
def test_what_is_saved_has_names(name: str) -> None:
    saved: dict[tuple[int, int], dict[str, Tensor]] = {}
    calibrated(name, Stopped(saved, 0))
    layer = {key.removeprefix("0.") for key in saved[1, 3] if key.startswith("0.")}
    assert KEYS[name] <= layer
