"""Stages check what they are given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llvq.compiler import Compiled, instantiate
from llvq.errors import ArtifactError, ContractError
from llvq.models.config import ModelConfig
from llvq.runtime.executable import Executable
from llvq.sources import DictSource


@pytest.fixture(scope="module")
def executable(
    compiled_fp32: Compiled,
    tiny_config: ModelConfig,
    make_weights: Callable[[ModelConfig], DictSource],
) -> Executable:
    return instantiate(compiled_fp32, make_weights(tiny_config))


def test_a_stage_gives_its_outputs_by_name(executable: Executable) -> None:
    stage = executable.stage("modulate")
    outputs = stage({"timestep": torch.tensor([[999.0, 0.0]]), "surplus": torch.ones(1)})
    assert tuple(outputs) == stage.outputs
    assert all(value.isfinite().all() for value in outputs.values())


def test_a_stage_refuses_another_shape_or_a_missing_input(executable: Executable) -> None:
    with pytest.raises(ContractError, match="timestep"):
        executable.stage("modulate")({"timestep": torch.zeros(1, 3)})
    with pytest.raises(ContractError, match="prompt_embeds is missing"):
        executable.stage("condition")({})


def test_a_stage_that_is_not_there(executable: Executable) -> None:
    with pytest.raises(ArtifactError, match="no 'encode_text' stage") as caught:
        executable.stage("encode_text")
    assert "denoise" in str(caught.value)
