"""The example's pass: fuses, says why it did not, changes no number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from examples.my_pass import GatedMlp, compile_mlp, main
from llvq.errors import MissError
from llvq.recipe import LinearRecipe, Recipe

NOTHING = Recipe(linear=LinearRecipe(exclude=("*",)))


class OneSided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x) * x[..., :1]


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    said = capsys.readouterr().out
    assert "llvq.swiglu" in said and "fuse-swiglu          1 of 1" in said


def test_the_pass_changes_no_number() -> None:
    model, x = GatedMlp(), torch.randn(1, 5, 64)
    assert torch.equal(compile_mlp(model, x, NOTHING).module()(x), model(x))


def test_a_near_miss_has_a_reason() -> None:
    with pytest.raises(MissError, match="left 1 of 1 sites") as caught:
        compile_mlp(OneSided(), torch.randn(1, 5, 64), NOTHING)
    assert "swiglu does not broadcast" in str(caught.value)
