"""The example's pass: fuses, says why it did not, changes no number."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from llvq.errors import MissError
from llvq.recipe import LinearRecipe, Recipe

NOTHING = Recipe(linear=LinearRecipe(exclude=("*",)))


@pytest.fixture
def example() -> ModuleType:
    """Imported late: it registers an op, which tests that list the dialect should not meet."""
    return import_module("examples.my_pass")


class OneSided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x) * x[..., :1]


def test_the_example_runs(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    example.main()
    said = capsys.readouterr().out
    assert "llvq.swiglu" in said and "fuse-swiglu          1 of 1" in said


def test_the_pass_changes_no_number(example: ModuleType) -> None:
    model, x = example.GatedMlp(), torch.randn(1, 5, 64)
    assert torch.equal(example.compile_mlp(model, x, NOTHING).module()(x), model(x))


def test_a_near_miss_has_a_reason(example: ModuleType) -> None:
    with pytest.raises(MissError, match="left 1 of 1 sites") as caught:
        example.compile_mlp(OneSided(), torch.randn(1, 5, 64), NOTHING)
    assert "swiglu does not broadcast" in str(caught.value)
