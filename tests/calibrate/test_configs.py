"""Names of calibrations, and what is said about one that does not exist."""

from __future__ import annotations

import pytest

from llvq.calibrate.configs import CONFIGS, config_of
from llvq.errors import RecipeError


@pytest.mark.parametrize("name", ["max", "awq_lite", "smoothquant", "svdquant", "mse"])
def test_the_calibrations_are_named(name: str) -> None:
    assert config_of(f"modelopt:{name}") is CONFIGS[name]


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(RecipeError, match="modelopt:awq_lit") as caught:
        config_of("modelopt:awq_lit")
    assert "did you mean 'modelopt:awq_lite'?" in str(caught.value)


@pytest.mark.parametrize("name", ["", "max", "torchao:max", "modelopt"])
def test_another_tool_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="no calibration"):
        config_of(name)
